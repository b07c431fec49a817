"""Budgets: what they accept, what they count, and what they refuse."""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune import Budget, Limits, NothingPrunedWarning, PlanError, PruningPlan
from fxprune.costs import Amounts
from tests.costs import test_formulas
from tests.plans.fakes import analysis_of, chain

QUANTITIES = {"macs": "macs", "params": "parameters", "activation_memory": "activation_memory"}


class Network(nn.Module):
    """Convolutions, a residual sum, attention heads and a mirrored sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 12, 1)
        self.inner = nn.Conv1d(12, 20, 3, padding=1)
        self.back = nn.Conv1d(20, 12, 1)
        self.qkv = nn.Linear(12, 3 * 16)
        self.out = nn.Linear(16, 12)
        self.mirrored = nn.Linear(12, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = (y + self.back(self.inner(y).relu())).transpose(1, 2)
        batch, tokens, _ = y.shape
        q, k, v = self.qkv(y).reshape(batch, tokens, 3, 4, 4).permute(2, 0, 3, 1, 4)
        mixed = (
            ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, -1)
        )
        y = y + self.out(mixed)
        z = self.mirrored(y)
        return self.head(z + z.flip(-1))


@functools.cache
def analysed() -> fxprune.Analysis:
    torch.manual_seed(0)
    return fxprune.analyze(fxprune.trace(Network(), (torch.randn(3, 3, 7),)))


def table(seed: int) -> Mapping[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.shape, generator=generator) for g in analysed().groups}


def planned(scores: Mapping[str, Tensor], **options: Any) -> PruningPlan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingPrunedWarning)
        return fxprune.plan(analysed(), lambda group, _: scores[group.name], **options)


def total(plan: PruningPlan | None) -> Amounts:
    return fxprune.cost(analysed(), plan).total


SCOPES = st.sampled_from(["local", "global", "isomorphic"])
AMOUNTS = st.one_of(st.none(), st.floats(0.6, 1))


@given(st.integers(0, 1000), SCOPES, AMOUNTS, AMOUNTS, AMOUNTS, st.sampled_from([1, 2]))
@settings(max_examples=60)
def test_every_budget_is_met_and_no_step_is_too_many(
    seed: int,
    scope: str,
    macs: float | None,
    params: float | None,
    memory: float | None,
    round_to: int,
) -> None:
    if memory is not None:
        memory = (1 + memory) / 2  # inputs, outputs and attention keep their sizes
    given_ = {"macs": macs, "params": params, "activation_memory": memory}
    if all(amount is None for amount in given_.values()):
        return
    budget = Budget(macs=macs, params=params, activation_memory=memory)
    plan = planned(table(seed), scope=scope, budget=budget, round_to=round_to)
    dense, left = total(None), total(plan)
    limits = {QUANTITIES[n]: a * getattr(dense, QUANTITIES[n]) for n, a in given_.items() if a}
    assert all(getattr(left, name) <= limit for name, limit in limits.items())
    if plan.is_empty:
        return
    # One step back, in some group, breaks a budget: a step adds up to `round_to` units.
    backs = []
    for name in plan.kept_units:
        group = plan.group(name)
        width = min(group.size, (plan.kept(group).shape[-1] // round_to + 1) * round_to)
        rows = [
            sorted({*row, *[u for u in range(group.size) if u not in row][: width - len(row)]})
            for row in plan.kept(group).reshape(group.contexts, -1).tolist()
        ]
        kept = {**plan.kept_units, name: rows if group.contexts > 1 else rows[0]}
        backs.append(total(PruningPlan.build(analysed(), kept)))
    assert any(getattr(back, n) > limit for back in backs for n, limit in limits.items())


@given(st.integers(0, 1000), SCOPES)
@settings(max_examples=20)
def test_smaller_budgets_remove_more_of_the_same(seed: int, scope: str) -> None:
    scores = table(seed)
    plans = [planned(scores, scope=scope, budget=Budget(macs=m)) for m in (0.9, 0.6, 0.3)]
    for more, less in pairwise(plans):
        for group in analysed().groups:
            assert bool((more.kept_mask(group) | ~less.kept_mask(group)).all())


def test_absolute_numbers_are_per_sample() -> None:
    """The example batch has three samples; parameters are nobody's share."""
    dense = fxprune.cost(analysed())
    assert dense.batch == 3
    scores = table(0)
    for name, quantity in QUANTITIES.items():
        amount = getattr(dense, quantity) // 2
        plan = planned(scores, scope="global", budget=Budget(**{name: amount}))
        cost = fxprune.cost(analysed(), plan)
        fraction = planned(scores, scope="global", budget=Budget(**{name: 0.5}))
        assert 0.8 * amount < getattr(cost, quantity) <= amount
        assert fraction.kept_units == plan.kept_units


def test_a_budget_that_the_dense_network_meets_warns() -> None:
    with pytest.warns(NothingPrunedWarning, match=r"NOTHING IS PRUNED: budget macs=1\.0 with"):
        assert fxprune.plan(analysed(), budget=Budget(macs=1.0)).is_empty
    with pytest.warns(NothingPrunedWarning, match="Ask for a smaller budget"):
        assert fxprune.plan(analysed(), budget=Budget(params=10**9)).is_empty


def test_the_plan_and_its_text_say_the_budget() -> None:
    budget = Budget(macs=0.5, params=900)
    plan = fxprune.plan(analysed(), scope="global", budget=budget)
    assert (plan.budget, plan.sparsity) == ("macs=0.5, params=900", None)
    assert "Plan by magnitude (global, budget macs=0.5, params=900)" in plan.summary()
    assert PruningPlan.from_json(plan.to_json(), analysed()) == plan


def test_an_unreachable_budget_says_what_is_reachable() -> None:
    outer = {group.outer for group in analysed().groups}
    kept = {
        group.name: [[0]] * group.contexts if group.contexts > 1 else [0]
        for group in analysed().groups
        if group.name not in outer
    }
    least = fxprune.cost(analysed(), PruningPlan.build(analysed(), kept)).macs
    with pytest.raises(PlanError) as caught:
        fxprune.plan(analysed(), budget=Budget(macs=100, params=1.0))
    message = str(caught.value)
    dense = fxprune.cost(analysed())
    share = f"{least / dense.macs:.1%} of the dense {dense.macs:,}"
    start = f"The budget macs=100 allows 100, and the smallest reachable is {least:,} ({share})."
    assert message.startswith(start)
    assert "params" not in message
    assert "Raise the budget, relax limits=, round_to= or ignore=" in message
    both, little = Budget(macs=0.5, params=0.1), Limits(max_sparsity=0.1)
    with pytest.raises(PlanError, match=r"macs=0\.5 allows .*; The budget params=0\.1 allows"):
        fxprune.plan(analysed(), budget=both, limits=little)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"limits at least one of macs, params, activation_memory"),
        ({"macs": 0.0}, r"macs is a float and therefore a fraction .* in \(0, 1\]; got 0\.0"),
        ({"macs": 1.5}, r"got 1\.5\. An absolute number is an int"),
        ({"params": math.nan}, r"got nan"),
        ({"params": 0}, r"params must be at least 1; got 0"),
        ({"activation_memory": -5}, r"activation_memory must be at least 1; got -5"),
        ({"macs": True}, r"must be a float, .* or an int, .*; got True, a bool"),
        ({"macs": "half"}, r"got 'half', a str"),
    ],
)
def test_wrong_budgets_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Budget(**options)


def test_a_cut_has_one_goal() -> None:
    with pytest.raises(PlanError, match=r"Pass sparsity=, .*, or budget=, what the result may"):
        fxprune.plan(analysed())
    with pytest.raises(PlanError, match=r"one goal: got sparsity=0\.5 and budget=Budget\("):
        fxprune.plan(analysed(), sparsity=0.5, budget=Budget(macs=0.5))
    with pytest.raises(PlanError, match=r"budget= takes a fxprune\.Budget, .*; got 0\.5"):
        fxprune.plan(analysed(), budget=0.5)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"needs the analysis that fxprune\.analyze returns"):
        fxprune.plan(analysis_of(chain("a", 4)), budget=Budget(macs=0.5))


def test_prune_takes_a_budget() -> None:
    torch.manual_seed(0)
    result = fxprune.prune(
        Network(), (torch.randn(3, 3, 7),), budget=Budget(params=0.5), scope="global", round_to=2
    )
    dense = sum(p.numel() for p in result.analysis.traced.parameters())
    left = sum(p.numel() for p in result.module.parameters())
    assert 0.4 * dense < left <= 0.5 * dense
    assert all(len(row) % 2 == 0 for row in result.plan.kept_units.values())


class Blocks(nn.Module):
    """A residual MLP of many blocks."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Linear(4, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x.sum(-1)


def test_a_budget_takes_little_time_in_a_deep_network() -> None:
    """Time must grow as the number of blocks, not as its square."""
    analysis = fxprune.analyze(fxprune.trace(Blocks(300, 16), (torch.randn(1, 4),)))
    scores = {group.name: torch.rand(group.shape) for group in analysis.groups}
    start = time.process_time()
    for _ in range(3):
        fxprune.plan(analysis, lambda g, _: scores[g.name], scope="global", budget=Budget(macs=0.5))
    assert (time.process_time() - start) / 3 < 1.0  # 0.15 s on the machine that this was written on


def test_units_that_differ_in_cost_go_as_they_are_scored() -> None:
    """A product reads three of eight channels: units of one group, some of which cost nothing."""
    analysis = test_formulas.analysed(test_formulas.Halved(), torch.randn(2, 3, 5))
    (group,) = analysis.groups
    for scores in ([3.0, 2.0, 1.0], [1.0, 2.0, 3.0]):
        plan = fxprune.plan(
            analysis, lambda *_, s=scores: torch.tensor(s), budget=Budget(macs=0.7), scope="global"
        )
        dense, left = fxprune.cost(analysis), fxprune.cost(analysis, plan)
        assert left.total.macs <= 0.7 * dense.total.macs
        lost = group.size - plan.kept(group).numel()
        order = sorted(range(3), key=scores.__getitem__)
        fewer = PruningPlan.build(analysis, {group.name: sorted(order[lost - 1 :])})
        assert fxprune.cost(analysis, fewer).total.macs > 0.7 * dense.total.macs
