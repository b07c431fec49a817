"""A product whose other factors are frozen units has one factor left, at other sizes as well."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune


class RepeatedUnit(nn.Module):
    """Repeats the last unit of a split, which is frozen; masks cannot stand for pruning."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(2, 7, 1), nn.GroupNorm(1, 7))
        self.twice, self.last = nn.Conv1d(7, 7, 1), nn.Conv1d(7, 3, 1)
        self.many, self.repeated, self.alone = (nn.Conv1d(n, 3, 1) for n in (6, 2, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        many, alone = torch.split(x, [6, 1], dim=1)
        repeated = self.repeated(alone.repeat(1, 2, 1))
        last = self.last(self.twice(self.twice(x)))
        return last, self.many(many), repeated, self.alone(alone)


def test_repeats_of_a_frozen_unit_are_coupled_as_at_the_examples_sizes() -> None:
    # `verify` took the axes of one factor to differ, and refused the inputs.
    torch.manual_seed(0)
    model = RepeatedUnit().double().eval()
    graph = fxprune.trace(model, torch.randn(2, 2, 1, dtype=torch.float64))
    analysis = fxprune.analyze(graph)
    kept = {"stem.0.weight:0": [0, 2, 3], "repeated.weight:1": [1]}
    plan = fxprune.PruningPlan.build(analysis, kept)
    pruned = fxprune.rewrite(graph, plan)
    assert fxprune.verify(graph, plan, pruned, torch.randn(3, 2, 1, dtype=torch.float64)).ok
