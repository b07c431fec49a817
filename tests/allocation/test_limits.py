"""Limits: which groups they reach, how they shape a cut, and what is reported of them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune import Group, Limits, NothingPrunedWarning, PlanError, PruningPlan
from tests.plans.fakes import FakeAnalysis, analysis_of, chain, consumer, producer

Table = dict[str, Tensor]


def wide(sizes: list[int], contexts: int = 1) -> tuple[FakeAnalysis, Table]:
    """Groups g0, g1, … and scores that rise with the unit."""
    shapes = [(contexts, size) if contexts > 1 else (size,) for size in sizes]
    groups = tuple(Group(f"g{i}", s[-1], contexts) for i, s in enumerate(shapes))
    scores = {
        group.name: torch.arange(group.size, dtype=torch.float64).expand(group.shape)
        for group in groups
    }
    return FakeAnalysis(groups, {}), scores


def widths(plan: PruningPlan) -> dict[str, int]:
    return {group.name: plan.kept(group).shape[-1] for group in plan.groups}


def cut(analysis: FakeAnalysis, table: Table, sparsity: float, **options: Any) -> PruningPlan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingPrunedWarning)
        return fxprune.plan(analysis, lambda g, _: table[g.name], sparsity, **options)


LIMITS = st.builds(
    Limits,
    min_keep=st.none() | st.integers(1, 20),
    max_sparsity=st.none() | st.floats(0, 1, exclude_max=True),
    round_to=st.none() | st.integers(1, 9),
    sparsity=st.none() | st.floats(0, 1, exclude_max=True),
)


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=4),
    st.sampled_from([1, 3]),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["local", "global"]),
    LIMITS,
)
def test_limits_hold(
    sizes: list[int], contexts: int, sparsity: float, scope: str, limits: Limits
) -> None:
    analysis, table = wide(sizes, contexts)
    made = cut(analysis, table, sparsity, scope=scope, limits=limits)
    for size, kept in zip(sizes, widths(made).values(), strict=True):
        if kept == size:
            continue
        assert kept >= max(limits.min_keep or 1, 1)
        assert kept % (limits.round_to or 1) == 0
        lost = (size - kept) / size
        assert limits.max_sparsity is None or lost <= limits.max_sparsity
        assert limits.sparsity is None or lost <= limits.sparsity
        if scope == "local" and limits.sparsity is None:
            assert lost <= sparsity


@given(st.integers(2, 60), st.integers(1, 12), st.floats(0, 1, exclude_max=True))
def test_rounding_keeps_the_next_multiple(size: int, multiple: int, sparsity: float) -> None:
    """As many units go as the sparsity and the multiple allow."""
    analysis, table = wide([size])
    (kept,) = widths(cut(analysis, table, sparsity, round_to=multiple)).values()
    exact = size - math.floor(sparsity * size * (1 + 1e-15))
    best = next((k for k in range(exact, size) if k % multiple == 0 and k > 0), size)
    assert kept == best


def test_a_global_cut_ranks_blocks_of_rounded_widths_by_their_mean() -> None:
    analysis, _ = wide([8, 8])
    table = {
        "g0": torch.tensor([0.0, 10, 1, 9, 5, 5, 20, 20]),  # blocks of two: 0.5, 5, 9.5
        "g1": torch.tensor([3.0, 4, 6, 7, 8, 8, 20, 20]),  # blocks of two: 3.5, 6.5, 8
    }
    made = cut(analysis, table, 0.5, scope="global", round_to=2)
    assert widths(made) == {"g0": 4, "g1": 4}
    assert made.kept_units == {"g0": (1, 3, 6, 7), "g1": (4, 5, 6, 7)}
    made = cut(analysis, table, 0.32, scope="global", round_to=2)  # two blocks of the first four
    assert widths(made) == {"g0": 6, "g1": 6}


class Net(nn.Module):
    """Two stages and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(12, 30), nn.ReLU())
        self.head = nn.Linear(30, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


def net() -> fxprune.Analysis:
    torch.manual_seed(0)
    return fxprune.analyze(fxprune.trace(Net(), (torch.randn(2, 4),)))


FIRST, MIDDLE, LAST = "first.0.weight:0", "first.2.weight:0", "second.0.weight:0"


@pytest.mark.parametrize(
    ("pattern", "spared"),
    [
        ("first.0", {FIRST}),
        ("first.0.weight", {FIRST}),
        (FIRST, {FIRST}),
        ("first", {FIRST, MIDDLE}),
        ("first.*", {FIRST, MIDDLE}),
        ("*.[02]", {FIRST, MIDDLE, LAST}),
        ("second.0", {LAST}),  # it reads the middle, too, but does not make it
        ("head", set()),  # the output is frozen: there is nothing to spare
        (["first.2", "second*"], {MIDDLE, LAST}),
    ],
)
def test_patterns_name_what_makes_the_units(pattern: Any, spared: set[str]) -> None:
    analysis = net()
    if len(spared) == 3:
        with pytest.raises(PlanError, match="ignore= names all of the 3 groups that could be"):
            fxprune.plan(analysis, sparsity=0.5, ignore=pattern)
        return
    made = fxprune.plan(analysis, sparsity=0.5, ignore=pattern)
    assert set(made.kept_units) == {FIRST, MIDDLE, LAST} - spared


def test_units_that_nothing_makes_are_named_by_what_reads_them() -> None:
    group = Group("g", 4, members=(consumer("reader.weight", 1, torch.arange(4)),))
    lone, parameters = chain("a", 4)
    analysis = FakeAnalysis((group, lone), {"reader.weight": torch.randn(2, 4), **parameters})
    made = fxprune.plan(analysis, sparsity=0.5, ignore="reader")
    assert set(made.kept_units) == {"a:0"}


def test_later_patterns_count_more_and_fields_are_inherited() -> None:
    made = fxprune.plan(
        net(),
        sparsity=0.5,
        round_to=5,
        limits={
            "*": Limits(min_keep=11),
            "first": Limits(round_to=3),
            "first.2": Limits(min_keep=1),
        },
    )
    # 10 of 20 in threes and at least 11: 12. 6 of 12 in threes: 6. 15 of 30 in fives: 15.
    assert widths(made) == {FIRST: 12, MIDDLE: 6, LAST: 15}


def test_groups_may_have_a_sparsity_of_their_own() -> None:
    limits = {"first.0": Limits(sparsity=0.25), "first.2": Limits(sparsity=0.0)}
    for scope in ("local", "global", "isomorphic"):
        made = fxprune.plan(net(), sparsity=0.5, scope=scope, limits=limits)
        assert widths(made) == {FIRST: 15, MIDDLE: 12, LAST: 15}
    every = fxprune.plan(net(), sparsity=0.5, limits=Limits(sparsity=0.1))
    assert widths(every) == {FIRST: 18, MIDDLE: 11, LAST: 27}
    budget = fxprune.Budget(params=0.5)
    made = fxprune.plan(net(), budget=budget, limits=limits)
    assert (widths(made)[FIRST], widths(made)[MIDDLE]) == (15, 12)
    assert fxprune.cost(net(), made).parameters <= 0.5 * fxprune.cost(net()).parameters


def test_limits_that_bind_are_noted() -> None:
    made = fxprune.plan(
        net(),
        sparsity=0.5,
        limits={
            "first.0": Limits(min_keep=13),
            "first.2": Limits(max_sparsity=0.25, round_to=4),
            "second": Limits(round_to=8, min_keep=2),
        },
    )
    assert made.notes == (
        "first.0.weight:0 keeps 13 of 20 units instead of 10: min_keep=13",
        "first.2.weight:0 keeps 12 of 12 units instead of 6: max_sparsity=0.25, round_to=4",
        "second.0.weight:0 keeps 16 of 30 units instead of 15: round_to=8",
    )
    assert made.summary().endswith("instead of 15: round_to=8.")
    assert PruningPlan.from_json(made.to_json(), net()).notes == made.notes


def test_limits_that_do_not_bind_are_not_noted() -> None:
    loose = Limits(min_keep=2, max_sparsity=0.9, round_to=1)
    assert fxprune.plan(net(), sparsity=0.5, limits=loose).notes == ()
    assert fxprune.plan(net(), sparsity=0.5).notes == ()
    own = fxprune.plan(net(), sparsity=0.5, limits={"second": Limits(sparsity=0.2)})
    assert own.notes == (f"{LAST} keeps 24 of 30 units instead of 15: sparsity=0.2",)


def test_limits_that_bind_a_budget_are_noted() -> None:
    budget = fxprune.Budget(macs=0.5)
    made = fxprune.plan(net(), budget=budget, limits={"second": Limits(min_keep=29)})
    (note,) = made.notes
    assert note.startswith("second.0.weight:0 keeps 29 of 30 units instead of ")
    assert note.endswith(": min_keep=29")


def test_units_are_rounded_in_each_head() -> None:
    index = torch.arange(30)
    inside = producer("w", 0, index % 10, context=index // 10, context_dim=0)
    dims = Group("dims", 10, 3, members=(inside,))
    analysis = FakeAnalysis((dims,), {"w": torch.randn(30, 2)})
    made = fxprune.plan(analysis, sparsity=0.5, round_to=4)
    assert made.kept("dims").shape == (3, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_keep": 0}, r"min_keep must be an integer of at least 1; got 0\."),
        ({"min_keep": 2.0}, r"min_keep must be an integer of at least 1; got 2\.0"),
        ({"round_to": True}, r"round_to must be an integer of at least 1; got True"),
        ({"max_sparsity": 1}, r"max_sparsity is the fraction .* in \[0, 1\); got 1\."),
        ({"sparsity": "half"}, r"sparsity must be a number in \[0, 1\).* got 'half', a str"),
    ],
)
def test_wrong_limits_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Limits(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore": "frist"}, r"pattern 'frist' names no group, .* called 'first\.0\.weight:0', "),
        ({"ignore": [3]}, r"A name pattern is a text such as 'layer4\.\*'; got 3\."),
        ({"limits": {"*": 8}}, r"limits= takes fxprune\.Limits, or a mapping .*; got 8\."),
        ({"limits": {"secund": Limits()}}, r"pattern 'secund' names no group"),
        ({"limits": 8}, r"limits= takes fxprune\.Limits, .*; got 8\."),
        ({"round_to": 0}, r"round_to must be an integer of at least 1; got 0"),
        ({"normalise": "median"}, r"no normaliser 'median'; use one of max, mean, none, stand"),
        ({"normalise": None}, r"no normaliser None"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        fxprune.plan(net(), sparsity=0.5, **options)


def test_nothing_left_by_limits_warns() -> None:
    analysis = analysis_of(chain("a", 6))
    with pytest.warns(NothingPrunedWarning, match=r"or look at the limits\."):
        made = fxprune.plan(analysis, sparsity=0.5, round_to=8)
    assert made.notes == ("a:0 keeps 6 of 6 units instead of 3: round_to=8",)
