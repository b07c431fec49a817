"""New values of parameters in a module."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor, nn

from fxprune.errors import PlanError
from fxprune.plans import PruningPlan
from fxprune.plans.values import Values, assign
from tests.plans.fakes import analysis_of, chain

ANALYSIS = analysis_of(chain("a", 4), chain("b", 3))
PLAN = PruningPlan.build(ANALYSIS, {"a:0": [1, 3]}).with_values(
    {"a.in": torch.ones(4, 3), "b.out": torch.zeros(2, 3)}, "made by hand"
)


def test_a_module_does_not_share_the_values_that_it_is_given() -> None:
    layer, value = nn.Sequential(nn.Linear(3, 2, bias=False)), torch.ones(2)
    assign(layer, "0.bias", value)
    assign(layer, "0.weight", torch.zeros(2, 3))
    with torch.no_grad():
        layer[0].bias.mul_(5)
    assert value.tolist() == [1, 1]
    assert layer(torch.ones(1, 3)).tolist() == [[5, 5]]


def test_a_plan_does_not_share_the_values_that_it_is_given() -> None:
    given = torch.ones(4, 3)
    plan = PruningPlan.build(ANALYSIS, {}).with_values({"a.in": given}, "made by hand")
    given.zero_()
    assert plan.values["a.in"].eq(1).all()


def test_values_are_equal_to_the_same_values_alone() -> None:
    assert Values(PLAN.values) == PLAN.values
    assert Values({**PLAN.values, "a.in": torch.zeros(4, 3)}) != PLAN.values
    assert dict(PLAN.values) != PLAN.values


def test_a_plan_reads_its_values_back() -> None:
    tensors = {**PLAN.values, "other": torch.ones(1)}
    back = PruningPlan.from_json(PLAN.to_json(), ANALYSIS, tensors)
    assert back == PLAN
    assert back.values.keys() == {"a.in", "b.out"}
    assert all(torch.equal(back.values[name], PLAN.values[name]) for name in back.values)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (None, "gives new values to 2 parameters .*'a.in'.* pass values="),
        ({"a.in": PLAN.values["a.in"]}, "gives 'b.out' new values, and values= has none"),
        ({**PLAN.values, "b.out": torch.ones(2, 3)}, "'b.out' are not those that the plan was"),
        ({**PLAN.values, "b.out": torch.zeros(3, 2)}, "'b.out' are not those that the plan was"),
    ],
    ids=["none", "one", "another", "shape"],
)
def test_a_plan_without_its_values_is_refused(
    tensors: dict[str, Tensor] | None, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        PruningPlan.from_json(PLAN.to_json(), ANALYSIS, tensors)


@pytest.mark.parametrize("shape", [(0,), (2, 0), ()])
def test_digests_are_those_of_the_bytes(shape: tuple[int, ...]) -> None:
    value = torch.full(shape, 3.0)
    expected = hashlib.sha256(value.numpy().tobytes()).hexdigest()
    assert Values({"value": value}).digests == {"value": expected}
