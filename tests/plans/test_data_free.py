"""LAMP and FPGM: against a literal reading, and the properties that they are chosen for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from fxprune.allocation import plan
from fxprune.criteria import Fpgm, Lamp, Norm
from fxprune.errors import NotApplicableError
from fxprune.groups import Group, Member
from tests.plans.fakes import Case, analysis_of, cases, chain, consumer, producer
from tests.plans.literal import slow_fpgm, slow_lamp

EXACT = {"rtol": 1e-10, "atol": 1e-10}


@given(cases(max_members=4))
def test_lamp(case: Case) -> None:
    scores = Lamp()(case.group, case.parameters)
    torch.testing.assert_close(scores, slow_lamp(case.group, case.parameters), **EXACT)


@given(cases(max_members=4))
def test_fpgm(case: Case) -> None:
    assume(any(member.role == "producer" for member in case.group.members))
    scores = Fpgm()(case.group, case.parameters)
    torch.testing.assert_close(scores, slow_fpgm(case.group, case.parameters), **EXACT)


@given(cases(max_members=4))
def test_fpgm_with_readers(case: Case) -> None:
    roles = ("producer", "consumer")
    assume(any(member.role in roles for member in case.group.members))
    expected = slow_fpgm(case.group, case.parameters, *roles)
    torch.testing.assert_close(Fpgm(roles)(case.group, case.parameters), expected, **EXACT)


@given(cases(), st.floats(1e-3, 1e3))
def test_lamp_ignores_the_scale_of_a_layer(case: Case, scale: float) -> None:
    scaled = {name: scale * tensor for name, tensor in case.parameters.items()}
    expected = Lamp()(case.group, case.parameters)
    torch.testing.assert_close(Lamp()(case.group, scaled), expected, **EXACT)


@given(cases())
def test_lamp_keeps_the_order_of_the_norms_and_ends_at_one(case: Case) -> None:
    scores, norms = Lamp()(case.group, case.parameters), Norm(2)(case.group, case.parameters)
    assert norms.argsort(-1).equal(scores.argsort(-1))
    torch.testing.assert_close(scores.amax(-1), torch.ones_like(scores.amax(-1)), **EXACT)


def test_lamp_of_equal_units_falls_with_the_index() -> None:
    group = Group("g", 4, members=(producer("w", 0, torch.arange(4)),))
    scores = Lamp()(group, {"w": torch.ones(4, 2)})
    assert scores.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4], rel=1e-12)


def test_lamp_of_units_without_weights_is_zero() -> None:
    group = Group("g", 3, members=(producer("w", 0, torch.arange(3)),))
    weight = torch.tensor([[0.0], [2.0], [0.0]])
    assert Lamp()(group, {"w": weight}).tolist() == [0, 1, 0]
    assert Lamp()(group, {"w": 0 * weight}).tolist() == [0, 0, 0]


def test_lamp_never_takes_a_small_layer_first() -> None:
    """A global cut by magnitude empties the layer of small weights, LAMP cuts both alike."""
    analysis = analysis_of(chain("small", 10, scale=1e-3), chain("large", 10))
    by_norm = plan(analysis, "magnitude", 0.45, "global")
    assert set(by_norm.kept_units) == {"small:0"}
    by_lamp = plan(analysis, Lamp(), 0.4, "global")
    assert [len(row) for row in by_lamp.kept_units.values()] == [6, 6]


@st.composite
def rows(draw: st.DrawFn) -> tuple[Group, Tensor]:
    size, width = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    group = Group("g", size, members=(producer("w", 0, torch.arange(size)),))
    return group, torch.randn(size, width, dtype=torch.float64)


@given(rows(), st.floats(-100, 100))
def test_fpgm_ignores_what_all_units_have_in_common(case: tuple[Group, Tensor], by: float) -> None:
    group, weight = case
    moved = weight + by * torch.randn(1, weight.shape[1], dtype=torch.float64)
    expected = Fpgm()(group, {"w": weight})
    torch.testing.assert_close(Fpgm()(group, {"w": moved}), expected, rtol=1e-10, atol=1e-10)


def test_fpgm_takes_the_unit_in_the_middle_although_it_is_large() -> None:
    weight = torch.tensor([[100.0, 0.0], [101.0, 1.0], [99.0, -1.0], [101.0, -1.0]])
    group = Group("g", 4, members=(producer("w", 0, torch.arange(4)),))
    assert int(Fpgm()(group, {"w": weight}).argmin()) == 0


def test_fpgm_of_equal_units_is_zero() -> None:
    group = Group("g", 3, members=(producer("w", 0, torch.arange(3)),))
    assert Fpgm()(group, {"w": torch.full((3, 7), 0.3)}).tolist() == [0, 0, 0]


def test_fpgm_reads_producers_unless_told_of_readers() -> None:
    units = torch.arange(2)
    members = (producer("w", 0, units), consumer("v", 1, units), Member("b", 0, "bias", units))
    group = Group("g", 2, members=members)
    columns = torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, -2.0], [-4.0, 0.0]])  # √24 apart
    parameters = {"w": torch.tensor([[0.0], [3.0]]), "v": columns, "b": torch.rand(2)}
    assert Fpgm()(group, parameters).tolist() == [3, 3]
    both = math.hypot(3, math.sqrt(24))
    assert Fpgm(("producer", "consumer"))(group, parameters).tolist() == pytest.approx([both] * 2)


def test_fpgm_does_not_apply_to_a_group_that_nothing_produces() -> None:
    group = Group("g", 2, members=(Member("scale", 0, "norm", torch.arange(2)),))
    with pytest.raises(NotApplicableError, match="it has no producer"):
        Fpgm()(group, {"scale": torch.ones(2)})
