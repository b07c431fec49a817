"""Budgets on the models of the zoo: measured by running what the plan leaves."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor

import fxprune
from fxprune import Budget, Group, PlanError, PruningPlan
from fxprune.costs import cost_model
from tests.costs import measure

BUDGETS = {0.75: "local", 0.5: "global", 0.25: "isomorphic", 0.1: "local"}


def random_scores(analysis: fxprune.Analysis, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.shape, generator=generator) for g in analysis.groups}


def smallest(analysis: fxprune.Analysis) -> int:
    """MACs of the example batch when each innermost group keeps a single unit."""
    outer = {group.outer for group in analysis.groups}
    kept = {
        group.name: [[0]] * group.contexts if group.contexts > 1 else [0]
        for group in analysis.groups
        if group.name not in outer
    }
    return fxprune.cost(analysis, PruningPlan.build(analysis, kept)).total.macs


def with_one_more(plan: PruningPlan, group: Group) -> PruningPlan:
    """The plan with one removed unit of a group put back, in each context."""
    rows = [
        sorted({*row, min(set(range(group.size)) - set(row))})
        for row in plan.kept(group).reshape(group.contexts, -1).tolist()
    ]
    kept = {**plan.kept_units, group.name: rows if group.contexts > 1 else rows[0]}
    return PruningPlan(plan.groups, kept, plan.shapes, plan.fingerprint)


def assert_within_one_unit(analysis: fxprune.Analysis, plan: PruningPlan, limit: float) -> None:
    """Some group has lost a unit that the budget needed: with it the network costs too much."""
    model = cost_model(analysis)
    more = [with_one_more(plan, plan.group(name)) for name in plan.kept_units]
    assert max(model.at(model.widths(one)).macs for one in more) > limit


@pytest.mark.parametrize("name", measure.NAMES)
def test_budgets_are_met_to_within_one_unit(name: str) -> None:
    example, analysis = measure.analysed(name)
    dense = measure.macs(analysis.traced, example)
    scores, least = random_scores(analysis, 0), smallest(analysis)
    met = 0
    for macs, scope in BUDGETS.items():
        budget, limit = Budget(macs=macs), macs * dense
        ask = (analysis, lambda group, _: scores[group.name], None, scope)
        if least > math.floor(limit):
            with pytest.raises(PlanError, match=rf"budget macs={macs} allows .* reachable is"):
                fxprune.plan(*ask, budget=budget)
            continue
        plan = fxprune.plan(*ask, budget=budget)
        assert measure.macs(fxprune.rewrite(analysis.traced, plan), example) <= limit
        assert_within_one_unit(analysis, plan, limit)
        met += 1
    assert met, "no budget could be met"


def test_a_global_plan_takes_a_fraction_of_a_second() -> None:
    _, analysis = measure.analysed("resnet50")
    scores = random_scores(analysis, 0)
    start = time.process_time()
    for macs in (0.75, 0.5, 0.25):
        fxprune.plan(
            analysis, lambda g, _: scores[g.name], scope="global", budget=Budget(macs=macs)
        )
    assert time.process_time() - start < 3
