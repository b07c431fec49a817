"""Tensors in outputs that are no pytrees are outputs like any other."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fxprune
from tests.zoo import checks


@dataclass
class Pair:
    first: Tensor
    others: dict[str, Tensor]


class Box:
    """An object of the user's that holds a tensor."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class Model(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind
        self.hidden, self.head = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Pair | Box:
        hidden = torch.relu(self.hidden(x))
        y = self.head(hidden)
        return Pair(y, {"twice": 2 * y}) if self.kind is Pair else Box(y)


def test_their_tensors_are_frozen() -> None:
    # They were looked for in pytrees only: the outputs' own dimensions became prunable.
    for kind in (Pair, Box):
        traced = fxprune.trace(Model(kind), torch.randn(2, 5))
        analysis = fxprune.analyze(traced, strict=True)
        assert [group.name for group in analysis.groups] == ["hidden.weight:0"]


def test_their_tensors_are_compared() -> None:
    # verify compared no tensor at all, and agreed.
    for kind in (Pair, Box):
        traced = fxprune.trace(Model(kind).double(), torch.randn(2, 5, dtype=torch.float64))
        plan = checks.random_plan(fxprune.analyze(traced), lambda group: True)
        pruned = fxprune.rewrite(traced, plan)
        inputs = {"x": torch.randn(3, 5, dtype=torch.float64)}
        assert checks.verify_all(traced, plan, pruned, inputs).ok
        spoiled = copy.deepcopy(pruned)
        with torch.no_grad():
            spoiled.head.weight[0, 0] += 1
        report = checks.verify_all(traced, plan, spoiled, inputs)
        assert not report.ok
        assert report.first_mismatch is not None
        assert "'head'" in report.first_mismatch
