"""The closed forms against counts made while the models of the zoo run."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fxprune
from fxprune import PruningPlan
from tests.costs import measure
from tests.costs.strategies import kept_units, plans

by_name = pytest.mark.parametrize("name", measure.NAMES)
few = settings(max_examples=2)


@by_name
def test_costs_of_the_dense_network_are_exact(name: str) -> None:
    example, analysis = measure.analysed(name)
    cost, traced = fxprune.cost(analysis), analysis.traced
    nodes = {node.name for node in traced.graph.nodes}
    assert cost.total.macs == measure.macs(traced, example)
    assert cost.parameters == measure.parameters(traced)
    memory = measure.activation_memory(traced, nodes, example)
    assert cost.total.activation_memory == memory
    assert cost.batch == 2
    assert sum(node.parameters for node in cost.nodes) == cost.parameters
    assert 0 <= sum(node.macs for node in cost.nodes) - cost.macs <= len(cost.nodes)


@by_name
@given(st.data())
@few
def test_costs_of_any_plan_are_exact(name: str, data: st.DataObject) -> None:
    example, analysis = measure.analysed(name)
    plan = data.draw(plans(analysis))
    cost, pruned = fxprune.cost(analysis, plan), fxprune.rewrite(analysis.traced, plan)
    assert cost.total.macs == measure.macs(pruned, example)
    assert cost.parameters == measure.parameters(pruned)
    nodes = {node.name for node in analysis.traced.graph.nodes}
    memory = measure.activation_memory(pruned, nodes, example)
    assert cost.total.activation_memory == memory


@by_name
@given(st.data())
@few
def test_savings_are_what_one_more_unit_saves(name: str, data: st.DataObject) -> None:
    _, analysis = measure.analysed(name)
    plan = data.draw(plans(analysis))
    before, savings = fxprune.cost(analysis, plan), fxprune.savings(analysis, plan)
    widths = {group.name: plan.kept(group).shape[-1] for group in analysis.groups}
    assert list(savings) == [group for group, width in widths.items() if width > 1]
    group = plan.group(data.draw(st.sampled_from(sorted(savings))))
    kept = {**plan.kept_units, group.name: plan.kept(group)[..., :-1].tolist()}
    after = fxprune.cost(analysis, PruningPlan.build(analysis, kept))
    saved = savings[group.name]
    assert saved.macs == math.ceil((before.total.macs - after.total.macs) / before.batch)
    assert saved.parameters == before.parameters - after.parameters
    memory = before.total.activation_memory - after.total.activation_memory
    assert saved.activation_memory == math.ceil(memory / before.batch)
    assert saved.macs >= 0
    assert saved.parameters > 0
    assert saved.activation_memory >= 0


@given(st.data())
@settings(max_examples=10)
def test_a_plan_that_keeps_less_costs_less(data: st.DataObject) -> None:
    _, analysis = measure.analysed("shufflenet_v2_x1_0")
    chance = random.Random(data.draw(st.integers(0, 2**32)))
    costs = []
    widths = {group.name: group.size for group in analysis.groups}
    for _ in range(4):
        widths = {name: chance.randint((width + 1) // 2, width) for name, width in widths.items()}
        kept = {g.name: kept_units(g, widths[g.name], chance) for g in analysis.groups}
        costs.append(fxprune.cost(analysis, PruningPlan.build(analysis, kept)).total)
    for quantity in ("macs", "parameters", "activation_memory"):
        found = [getattr(cost, quantity) for cost in costs]
        assert found == sorted(found, reverse=True)
