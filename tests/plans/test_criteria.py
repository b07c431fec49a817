"""Scores: against a loop over every entry, and what each criterion leaves out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxprune.allocation import score
from fxprune.criteria import CRITERIA, Norm, Random, criterion_name, find_criterion
from fxprune.errors import AnalysisError, PlanError
from fxprune.groups import Group, Member
from tests.plans.fakes import (
    Case,
    FakeAnalysis,
    analysis_of,
    cases,
    chain,
    consumer,
    grouped,
    producer,
    slow_norm,
)


@given(cases(max_members=4), st.sampled_from([1.0, 2.0, 3.0, math.inf]))
def test_norms(case: Case, order: float) -> None:
    scores = Norm(order)(case.group, case.parameters)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, slow_norm(case.group, case.parameters, order))


@st.composite
def shared_weights(draw: st.DrawFn) -> Case:
    """One square weight that is a member several times, by rows and by columns."""
    size, often = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    maps = [
        torch.tensor(draw(st.permutations([*range(size)] * often + [-1])))
        for _ in range(draw(st.integers(2, 4)))
    ]
    members = tuple(
        (producer, consumer)[number % 2]("w", number % 2, unit) for number, unit in enumerate(maps)
    )
    weight = torch.randn(size * often + 1, size * often + 1, 2, dtype=torch.float64)
    return Case(Group("g", size, members=members), {"w": weight})


@given(shared_weights(), st.sampled_from([1.0, 2.0, math.inf]))
def test_an_entry_that_a_unit_owns_twice_counts_once(case: Case, order: float) -> None:
    scores = Norm(order)(case.group, case.parameters)
    torch.testing.assert_close(scores, slow_norm(case.group, case.parameters, order))


def test_a_residual_weight_counts_its_diagonal_once() -> None:
    units = torch.arange(2)
    group = Group("r", 2, members=(producer("w", 0, units), consumer("w", 1, units)))
    weight = torch.tensor([[3.0, 4.0], [12.0, 84.0]])
    scores = Norm(2)(group, {"w": weight})
    expected = [math.sqrt(3**2 + 4**2 + 12**2), math.sqrt(84**2 + 12**2 + 4**2)]
    assert scores.tolist() == pytest.approx(expected, rel=1e-12)


def with_everything() -> FakeAnalysis:
    """Rows of norm 3, columns of norm 4, and a bias and a norm that must not count."""
    units = torch.arange(1)
    members = (
        producer("w", 0, units),
        Member("b", 0, "bias", units),
        Member("bn", 0, "norm", units),
        consumer("v", 1, units),
    )
    parameters = {
        "w": torch.tensor([[1.0, -2.0, 2.0]]),
        "b": torch.tensor([100.0]),
        "bn": torch.tensor([1000.0]),
        "v": torch.tensor([[-4.0], [0.0]]),
    }
    return analysis_of((Group("g", 1, members=members), parameters))


@pytest.mark.parametrize(
    ("name", "expected"), [("magnitude", 5.0), ("l2", 5.0), ("l1", 9.0), ("linf", 4.0)]
)
def test_names_read_producers_and_consumers_only(name: str, expected: float) -> None:
    assert score(with_everything(), name)["g"].tolist() == pytest.approx([expected])


def test_magnitude_is_the_default() -> None:
    analysis = with_everything()
    assert score(analysis)["g"].equal(score(analysis, "magnitude")["g"])


def test_a_group_of_norms_and_biases_is_scored_by_all_its_members() -> None:
    units = torch.arange(2)
    members = (Member("gamma", 0, "norm", units), Member("beta", 0, "bias", units))
    group = Group("g", 2, members=members)
    parameters = {"gamma": torch.tensor([3.0, 1.0]), "beta": torch.tensor([4.0, 0.0])}
    assert Norm(2)(group, parameters).tolist() == [5.0, 1.0]


def test_complex_weights_count_by_their_absolute_values() -> None:
    group, parameters = chain("a", 4)
    turned = {name: value * (0.6 + 0.8j) for name, value in parameters.items()}
    for order in (1.0, 2.0):
        expected = Norm(order)(group, parameters)
        torch.testing.assert_close(Norm(order)(group, turned), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_norms_accumulate_in_float64(dtype: torch.dtype) -> None:
    group = Group("g", 1, members=(producer("w", 0, torch.arange(1)),))
    weight = torch.full((1, 100_000), 300.0, dtype=dtype)  # squares overflow float16
    scores = Norm(2)(group, {"w": weight})
    assert scores.dtype == torch.float64
    assert scores.item() == pytest.approx(300 * math.sqrt(100_000), rel=1e-2 / 3)


def test_scores_have_one_row_per_context() -> None:
    analysis = analysis_of(chain("a", 4), grouped("c", 2, 3))
    shapes = {name: tuple(values.shape) for name, values in score(analysis).items()}
    assert shapes == {"a:0": (4,), "c:0": (2, 3)}
    assert score(analysis, "random")["c:0"].shape == (2, 3)


def test_random_scores_depend_on_seed_and_group_name_only() -> None:
    few, many = analysis_of(chain("a", 50)), analysis_of(chain("b", 50), chain("a", 50))
    state = torch.get_rng_state()
    first = score(few, "random")["a:0"]
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(1)
    again = score(many, "random")
    assert first.equal(again["a:0"])
    assert not first.equal(again["b:0"])
    assert not first.equal(score(few, Random(1))["a:0"])
    assert bool(((first >= 0) & (first < 1)).all())
    assert len(set(first.tolist())) == 50


def test_a_callable_sees_detached_parameters_that_it_cannot_replace() -> None:
    group, parameters = chain("a", 3)
    analysis = analysis_of((group, {n: p.requires_grad_() for n, p in parameters.items()}))
    seen: list[set[str]] = []

    def rule(group: Group, parameters: object) -> Tensor:
        assert isinstance(parameters, dict) is False
        seen.append(set(parameters))
        weight: Tensor = parameters["a.in"]
        assert not weight.requires_grad
        with pytest.raises(TypeError):
            parameters["a.in"] = weight * 0
        return weight.sum(1)

    assert score(analysis, rule)["a:0"].tolist() == [3.0, 6.0, 9.0]
    assert seen == [{"a.in", "a.out"}]


def test_the_table_of_names_cannot_be_changed() -> None:
    assert {"magnitude", "l1", "l2", "linf", "random", "lamp", "fpgm"} <= set(CRITERIA)
    with pytest.raises(TypeError):
        CRITERIA["mine"] = Norm(2)


def test_an_unknown_criterion_is_refused_with_the_names() -> None:
    with pytest.raises(PlanError, match=r"no criterion .l3.\..* fpgm, .*l1, l2, .*, random"):
        find_criterion("l3")
    with pytest.raises(PlanError, match=r"a name .* or a callable .* got 2"):
        find_criterion(2)


def test_how_criteria_are_called() -> None:
    assert criterion_name("l1") == "l1"
    assert criterion_name(Norm(3)) == "Norm"
    assert criterion_name(find_criterion).endswith("find_criterion")


def test_parameters_of_another_graph_and_empty_groups_are_refused() -> None:
    group, _ = chain("a", 3)
    with pytest.raises(AnalysisError, match=r"'a:0' reads parameter 'a.in', which .* \(0 of them"):
        Norm(2)(group, {})
    with pytest.raises(AnalysisError, match=r"'g' has no members: there is nothing to score"):
        Norm(2)(Group("g", 3), {})
    with pytest.raises(ValueError, match="must be positive, not 0"):
        Norm(0)


def test_a_bound_norm_reads_a_weight_once_until_it_changes() -> None:
    units = torch.arange(3)
    rows = Group("rows", 3, members=(producer("w", 0, units),))
    columns = Group("columns", 3, members=(consumer("w", 1, units),))
    weight = torch.randn(3, 3, dtype=torch.float64)
    parameters = {"w": weight}
    analysis = analysis_of((rows, parameters), (columns, {}))
    scorer = Norm(2).bind(analysis)
    for change in (lambda: None, lambda: weight.mul_(2), lambda: parameters.update(w=weight + 1)):
        change()
        for group, dim in ((rows, 1), (columns, 0)):
            torch.testing.assert_close(scorer(group, parameters), parameters["w"].norm(dim=dim))


def test_a_bound_norm_scores_groups_of_another_analysis() -> None:
    group, parameters = chain("a", 4)
    scorer = Norm(2).bind(analysis_of(chain("b", 3)))
    assert scorer(group, parameters).equal(Norm(2)(group, parameters))


@given(cases(max_members=4), shared_weights(), st.sampled_from([1.0, 2.0, math.inf]))
def test_a_bound_norm_gives_the_scores_of_each_group_alone(
    one: Case, two: Case, order: float
) -> None:
    analysis = analysis_of((one.group, one.parameters), (two.group, {}))
    scorer = Norm(order).bind(analysis)
    for case in (one, two, one):
        expected = Norm(order)(case.group, case.parameters)
        assert scorer(case.group, case.parameters).equal(expected)
