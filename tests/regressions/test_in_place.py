"""Ops that change a tensor in place."""

from __future__ import annotations

import pytest
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


class Doubled(nn.Module):
    """Every second feature is doubled in place, through a view or at once."""

    def __init__(self, through_a_view: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 4)
        self.through_a_view = through_a_view

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).clone()
        if self.through_a_view:
            hidden[:, ::2].mul_(2)
        else:
            hidden[:, ::2] = 1.0
        result: Tensor = self.second(hidden)
        return result


@pytest.mark.parametrize("through_a_view", [True, False])
def test_what_is_written_to_a_strided_view_is_not_lost(through_a_view: bool) -> None:
    """The pruned graph gathers such positions: what it wrote to went into a copy."""
    traced = fxprune.trace(Doubled(through_a_view).double(), torch.randn(2, 5, dtype=torch.float64))
    analysis = fxprune.analyze(traced)
    assert bool(analysis.groups) == (not through_a_view)
    for plan in [checks.random_plan(analysis, lambda group: True)] if analysis.groups else []:
        pruned = fxprune.rewrite(traced, plan)
        inputs = {"x": torch.randn(3, 5, dtype=torch.float64)}
        assert checks.verify_all(traced, plan, pruned, inputs).ok
