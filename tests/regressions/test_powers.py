"""Powers of negative numbers, which Python reads as the negative of a power."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import fxprune
from tests.masking import alive, random_plan, traced


class Alternating(nn.Module):
    """Every other unit changes its sign, as in the high-pass of a wavelet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.register_buffer("order", torch.arange(6))

    def forward(self, x: Tensor) -> Tensor:
        signs = (-1) ** self.order * (-2.0) ** -self.order
        return self.last(self.first(x) * signs) * (-1) ** x.shape[1] * x.shape[1] ** 2


def test_powers_of_negative_numbers_keep_their_sign(tmp_path: Path) -> None:
    # The code of the traced graph was `-1 ** order`, which is -1 for every order.
    model, inputs = alive(Alternating()), torch.randn(3, 4, 5, dtype=torch.float64)
    graph, analysis = traced(model, inputs[:2])
    for length in (4, 3):
        torch.testing.assert_close(graph(inputs[:, :length]), model(inputs[:, :length]))
    plan = random_plan(analysis)
    pruned = fxprune.rewrite(graph, plan)
    report = fxprune.verify(graph, plan, pruned, inputs[:, :3])
    assert report.ok, str(report)
    assert fxprune.save((pruned, plan), tmp_path) == ()
    assert torch.equal(fxprune.load(tmp_path)(inputs), pruned(inputs))
