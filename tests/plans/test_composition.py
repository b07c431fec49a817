"""Two rounds of pruning are one plan against the original."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune import PlanError, PruningPlan
from tests.masking import alive, random_plan, traced


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        return self.head((x + self.branch(torch.tanh(x))).flatten(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 9), nn.Linear(9, 3)
        self.qkv, self.out = nn.Linear(9, 3 * 4 * 6), nn.Linear(4 * 6, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2))
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, 4, 6).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2)
        return self.head(x + self.out(y.flatten(2)))


class Shuffled(nn.Module):
    """Channels that are chunked, joined in another order and gathered by a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).split([5, 7], dim=1)
        x = self.second(torch.tanh(torch.cat([right, left], 1)))
        return self.head(x[:, [3, 1, 0, 2, 7, 6, 4, 5]] + x)


INPUTS = torch.randn(3, 3, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("build", [Residual, Attention, Shuffled])
@pytest.mark.parametrize("again", [False, True], ids=["as it is", "traced again"])
def test_the_composed_plan_makes_the_same_module(
    build: Callable[[], nn.Module], again: bool
) -> None:
    graph, analysis = traced(alive(build()), INPUTS[:2])
    for seed in range(4):
        first = random_plan(analysis, seed, keep=0.7)
        once = fxprune.rewrite(graph, first)
        if again:
            once, found = traced(once, INPUTS[:2])
        else:
            found = fxprune.analyze(once)
        second = random_plan(found, seed + 10, lambda group: group.size > 1)
        twice = fxprune.rewrite(once, second)
        composed = fxprune.compose(first, second)
        at_once = fxprune.rewrite(graph, composed)
        state = twice.state_dict()
        for name, tensor in at_once.named_parameters():
            assert torch.equal(tensor, state[name]), name
        torch.testing.assert_close(at_once(INPUTS), twice(INPUTS), rtol=1e-12, atol=1e-12)
        assert fxprune.compose(PruningPlan.build(analysis, {}), first) == first


def test_units_that_stay_keep_their_numbers() -> None:
    graph, analysis = traced(alive(Attention()), INPUTS[:2])
    name = "embed.weight:0"
    first = PruningPlan.build(analysis, {name: [1, 2, 5, 7]})
    after = fxprune.analyze(fxprune.rewrite(graph, first))
    second = PruningPlan.build(after, {name: [0, 3]}, criterion="mine", scope="global")
    composed = fxprune.compose(first, second)
    assert dict(composed.kept_units) == {name: (1, 7)}
    assert (composed.criterion, composed.scope) == ("mine", "global")
    assert composed.fingerprint == analysis.fingerprint


def test_a_plan_for_something_else_is_refused() -> None:
    _, analysis = traced(alive(Residual()), INPUTS[:2])
    plan = random_plan(analysis)
    with pytest.raises(PlanError, match="not a plan for the first one's result"):
        fxprune.compose(plan, plan)
    _, other = traced(alive(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))), INPUTS[:2])
    with pytest.raises(PlanError, match="No group of the original"):
        fxprune.compose(plan, random_plan(other))


class Halves(nn.Module):
    """Two runs of channels, each with units of its own, in the same two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).split([2, 3], 1)
        return self.head(torch.cat([torch.tanh(left), torch.sin(right)], 1))


def test_the_last_units_of_two_groups_stay() -> None:
    """They are alike, but for the slices that would be empty without one of them."""
    inputs = torch.randn(2, 3, dtype=torch.float64)
    graph, analysis = traced(alive(Halves()), inputs)
    assert [group.size for group in analysis.groups] == [2, 3]
    first = PruningPlan.build(analysis, {group.name: [0] for group in analysis.groups})
    assert fxprune.analyze(fxprune.rewrite(graph, first)).groups == ()


def test_what_is_no_plan_is_refused() -> None:
    _, analysis = traced(Residual(), torch.randn(2, 3, 4, 4))
    plan = PruningPlan.build(analysis, {})
    nothing: Any = None
    with pytest.raises(PlanError, match="takes two plans, and the second is a NoneType"):
        fxprune.compose(plan, nothing)
    with pytest.raises(PlanError, match="takes two plans, and the first is a NoneType"):
        fxprune.compose(nothing, plan)
