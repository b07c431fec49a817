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


@dataclass
class Stepped:
    y: Tensor
    memory: Box


class Recurrent(nn.Module):
    """Returns what it takes again in the next step, as language models do with keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor, memory: Box | None = None) -> Stepped:
        hidden = torch.relu(self.hidden(x))
        before = hidden if memory is None else memory.value
        return Stepped(self.head(hidden + before), Box(hidden))


def test_state_of_the_model_is_not_frozen() -> None:
    # Caches froze the heads of every language model.
    traced = fxprune.trace(Recurrent().double(), torch.randn(2, 5, dtype=torch.float64))
    analysis = fxprune.analyze(traced, strict=True)
    assert [group.name for group in analysis.groups] == ["hidden.weight:0"]
    plan = checks.random_plan(analysis, lambda group: True)
    pruned = fxprune.rewrite(traced, plan)
    x = torch.randn(3, 5, dtype=torch.float64)
    assert pruned(x).memory.value.shape == (3, 3)
    assert checks.verify_all(traced, plan, pruned, {"x": x}).ok
    with torch.no_grad():
        pruned.hidden.bias[0] += 1
    assert not checks.verify_all(traced, plan, pruned, {"x": x}).ok


class Refined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, sample: Tensor) -> dict[str, Tensor]:
        return {"sample": self.linear(sample)}


def test_an_output_by_the_name_of_an_input_is_frozen() -> None:
    traced = fxprune.trace(Refined(), torch.randn(2, 5))
    assert fxprune.analyze(traced, strict=True).groups == ()
