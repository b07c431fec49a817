"""Ops that change a tensor in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune
from tests.zoo import checks


class Unsqueezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bi,bj->bi", self.first(x), x)
        result: Tensor = self.second(hidden.unsqueeze_(1))
        return result


def test_a_shape_that_changes_in_place() -> None:
    # The rewriter's check saw the later shape at the earlier node, and refused (BigBird's mask).
    traced = fxprune.trace(Unsqueezed().double(), torch.randn(2, 5, dtype=torch.float64))
    plan = checks.random_plan(fxprune.analyze(traced), lambda group: True)
    pruned = fxprune.rewrite(traced, plan)
    inputs = {"x": torch.randn(3, 5, dtype=torch.float64)}
    assert checks.verify_all(traced, plan, pruned, inputs).ok
