"""Group normalisation of channels that a view moved to the positions, or in reverse order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune import PruningPlan
from tests.masking import alive, traced


class Groups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.group_norm(self.first(x).view(-1, 2, 1, 3), 2).flatten(1))


def test_statistics_over_pruned_positions_are_taken_over_what_is_left() -> None:
    # The number of positions that the operator is told was that of the original.
    inputs = torch.randn(3, 4, dtype=torch.float64)
    graph, analysis = traced(alive(Groups()), inputs[:2])
    (group,) = (g for g in analysis.groups if g.size == 3)
    rows = [[0, 1]] * group.contexts
    plan = PruningPlan.build(analysis, {group.name: rows if group.contexts > 1 else rows[0]})
    pruned = fxprune.rewrite(graph, plan)
    assert fxprune.verify(graph, plan, pruned, inputs).ok


class Reversed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.group_norm(self.first(x), 2).flip(1))


def test_one_unit_left_of_each_group_leaves_a_channel() -> None:
    # Single units of two factors, groups and channels in each, were one group: of its four units
    # one could be kept, and no channel was left.
    inputs = torch.randn(3, 3, 5, dtype=torch.float64)
    graph, analysis = traced(alive(Reversed()), inputs[:2])
    assert [group.size for group in analysis.groups] == [2, 2]
    plan = PruningPlan.build(analysis, {group.name: [1] for group in analysis.groups})
    pruned = fxprune.rewrite(graph, plan)
    assert pruned.get_parameter("first.weight").shape == (1, 3, 1)
    assert fxprune.verify(graph, plan, pruned, inputs).ok
