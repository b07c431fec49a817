"""Tensors without entries: a part of the inputs that happens to be empty in the example."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune


class Prompted(nn.Module):
    """One layer reads a prompt of no tokens, another one the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt, self.tokens, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.prompt(x[:, :0]), self.head(self.tokens(x).tanh())


def test_a_layer_that_runs_on_nothing_stays() -> None:
    """Its output is a view of an empty matrix, and no dimension of that tells where channels are.

    The layer was cut, and what it returns had another shape than its axes say.
    """
    x = torch.randn(2, 5, 6)
    result = fxprune.prune(Prompted().eval(), x, sparsity=0.5)
    assert result.module.prompt.out_features == 8
    assert result.module.tokens.out_features == 4
    assert fxprune.verify(result.analysis.traced, result.plan, result.module, x).ok
