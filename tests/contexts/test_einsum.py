"""Head dimensions that a bare parameter reads by einsum, in any order of its dimensions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import PruningPlan
from tests.masking import alive, traced

SIZES = {"h": 2, "d": 3, "c": 5}


class Heads(nn.Module):
    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.first = nn.Linear(4, 6)
        self.weight = nn.Parameter(torch.randn([SIZES[letter] for letter in order]))

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.tanh(self.first(x)).unflatten(-1, (2, 3))
        return torch.einsum(f"bthd,{self.order}->btc", heads, self.weight)


@pytest.mark.parametrize("order", ["dhc", "hdc", "chd", "cdh", "dch", "hcd"])
def test_every_head_keeps_its_own_dimensions(order: str) -> None:
    inputs = torch.randn(2, 3, 4, dtype=torch.float64)
    graph, analysis = traced(alive(Heads(order)), inputs)
    (group,) = (group for group in analysis.groups if group.size == 3)
    assert group.contexts == 2
    plan = PruningPlan.build(analysis, {group.name: [[0, 2], [1, 2]]})
    assert fxprune.verify(graph, plan, fxprune.rewrite(graph, plan), inputs).ok


class Pairs(nn.Module):
    """Every head meets every head, itself among them."""

    def __init__(self, distance: bool) -> None:
        super().__init__()
        self.distance = distance
        self.first, self.last = nn.Linear(4, 6), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.tanh(self.first(x)).unflatten(-1, (2, 3))
        pairs = torch.cdist(heads, heads) if self.distance else heads @ heads.mT
        return self.last(pairs.flatten(2))


@pytest.mark.parametrize("distance", [False, True])
def test_heads_that_meet_each_other_keep_the_same_dimensions(distance: bool) -> None:
    _, analysis = traced(Pairs(distance).double(), torch.randn(2, 3, 4, dtype=torch.float64))
    (group,) = (group for group in analysis.groups if group.size == 3)
    assert group.contexts == 1
