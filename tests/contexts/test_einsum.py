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
