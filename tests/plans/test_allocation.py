"""From scores to a plan: how many units go, which, and what is refused."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxprune.allocation import NothingPrunedWarning, plan, score
from fxprune.errors import PlanError
from fxprune.groups import Group
from fxprune.plans import PruningPlan
from tests.plans.fakes import FakeAnalysis, analysis_of, chain, consumer, grouped, producer

Table = dict[str, Tensor]


def by_table(table: Table) -> Callable[[Group, object], Tensor]:
    return lambda group, parameters: table[group.name]


def bare(shapes: list[tuple[int, ...]]) -> FakeAnalysis:
    """Groups of these shapes, without members: only scores and counts matter."""
    groups = tuple(
        Group(f"g{i}", shape[-1], shape[0] if len(shape) == 2 else 1)
        for i, shape in enumerate(shapes)
    )
    return FakeAnalysis(groups, {})


def quiet(analysis: FakeAnalysis, table: Table, sparsity: float, scope: str) -> PruningPlan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingPrunedWarning)
        return plan(analysis, by_table(table), sparsity, scope)


def share(sparsity: float, size: int) -> int:
    """The most units that are no larger a share of `size` than the sparsity."""
    return max(count for count in range(size) if count / size <= sparsity)


def lowest_first(scores: list[float]) -> list[int]:
    """Units in the order in which they go: the lowest score, of equal ones the highest index."""
    return sorted(range(len(scores)), key=lambda unit: (scores[unit], -unit))


@st.composite
def scored(draw: st.DrawFn) -> tuple[FakeAnalysis, Table, float]:
    """Groups with and without contexts, scores with many ties, and a sparsity."""
    shape = st.tuples(st.integers(1, 7)) | st.tuples(st.integers(2, 3), st.integers(1, 5))
    analysis = bare(draw(st.lists(shape, min_size=1, max_size=4)))
    value = st.sampled_from([0.0, 1.0, 2.0, 3.0]) | st.floats(-1e6, 1e6)
    table = {
        group.name: torch.tensor(
            draw(st.lists(value, min_size=group.slots, max_size=group.slots)), dtype=torch.float64
        ).reshape(group.shape)
        for group in analysis.groups
    }
    fractions = st.sampled_from([0.0, 0.25, 0.5, 0.9999]) | st.floats(0, 1, exclude_max=True)
    return analysis, table, draw(fractions)


def expect(analysis: FakeAnalysis, table: Table, counts: list[int], made: PruningPlan) -> None:
    """Each group keeps what is left when its `count` lowest units have gone, in every context."""
    for group, count in zip(analysis.groups, counts, strict=True):
        rows = [
            sorted(lowest_first(row)[count:])
            for row in table[group.name].reshape(group.contexts, -1).tolist()
        ]
        assert made.kept(group).tolist() == (rows if group.contexts > 1 else rows[0])
        assert (group.name in made.kept_units) == (count > 0)


@given(scored())
def test_local_cuts_the_same_fraction_of_every_group(
    case: tuple[FakeAnalysis, Table, float],
) -> None:
    analysis, table, sparsity = case
    counts = [share(sparsity, group.size) for group in analysis.groups]
    expect(analysis, table, counts, quiet(analysis, table, sparsity, "local"))


@given(scored())
def test_global_cuts_the_lowest_slots_of_all_groups(
    case: tuple[FakeAnalysis, Table, float],
) -> None:
    analysis, table, sparsity = case
    left = share(sparsity, sum(group.size for group in analysis.groups))
    counts = [0] * len(analysis.groups)
    slots = [
        table[group.name].reshape(group.contexts, -1).sort(-1).values.mean(0).tolist()
        for group in analysis.groups
    ]
    # One slot at a time: the lowest next one of all groups that have more than one unit left.
    while left:
        open_groups = [i for i, group in enumerate(analysis.groups) if counts[i] < group.size - 1]
        if not open_groups:
            break
        lowest = min(open_groups, key=lambda i: (slots[i][counts[i]], i))
        counts[lowest] += 1
        left -= 1
    expect(analysis, table, counts, quiet(analysis, table, sparsity, "global"))


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000, 1023, 4097])
def test_one_unit_stays_at_the_largest_sparsity(size: int, scope: str) -> None:
    analysis = bare([(size,), (2, size)])
    table = {group.name: torch.rand(group.shape) for group in analysis.groups}
    made = quiet(analysis, table, math.nextafter(1, 0), scope)
    assert [made.kept(group).shape[-1] for group in analysis.groups] == [1, 1]


def test_half_of_every_group_goes() -> None:
    analysis = analysis_of(chain("a", 4), chain("b", 5))
    made = plan(analysis, sparsity=0.5)
    assert made.kept_units == {"a:0": (2, 3), "b:0": (2, 3, 4)}
    assert (made.criterion, made.sparsity, made.scope) == ("magnitude", 0.5, "local")
    assert made.fingerprint == analysis.fingerprint
    assert set(made.masks()) == {"a.in", "a.out", "b.in", "b.out"}


def test_global_takes_from_the_weak_group() -> None:
    analysis = analysis_of(chain("strong", 4, scale=100.0), chain("weak", 4))
    made = plan(analysis, sparsity=0.4, scope="global")
    assert made.kept_units == {"weak:0": (3,)}
    # 6 of 8 are asked for; each group keeps one unit.
    made = plan(analysis, sparsity=0.75, scope="global")
    assert made.kept_units == {"strong:0": (3,), "weak:0": (3,)}


def test_of_equal_scores_the_lower_index_stays() -> None:
    analysis = bare([(4,), (2, 3), (4,)])
    table = {group.name: torch.ones(group.shape) for group in analysis.groups}
    assert plan(analysis, by_table(table), 0.5).kept_units == {
        "g0": (0, 1),
        "g1": ((0, 1), (0, 1)),
        "g2": (0, 1),
    }
    # Between groups the first one goes first: 5 of 11 slots, of which g0 has three to lose.
    assert plan(analysis, by_table(table), 0.5, "global").kept_units == {
        "g0": (0,),
        "g1": ((0,), (0,)),
    }


def test_each_context_loses_its_own_lowest_units() -> None:
    analysis = bare([(2, 4)])
    table = {"g0": torch.tensor([[4.0, 1.0, 3.0, 2.0], [10.0, 20.0, 40.0, 30.0]])}
    assert plan(analysis, by_table(table), 0.5).kept_units == {"g0": ((0, 2), (2, 3))}


def test_a_rank_slot_scores_the_mean_over_contexts() -> None:
    """Slots of g0 score 1.5 and 3.5, those of g1 score 2, 3 and 9."""
    analysis = bare([(2, 2), (3,)])
    table = {"g0": torch.tensor([[3.0, 1.0], [2.0, 4.0]]), "g1": torch.tensor([9.0, 2.0, 3.0])}
    assert plan(analysis, by_table(table), 0.2, "global").kept_units == {"g0": ((0,), (1,))}
    assert plan(analysis, by_table(table), 0.4, "global").kept_units == {
        "g0": ((0,), (1,)),
        "g1": (0, 2),
    }


def nested() -> FakeAnalysis:
    """Three heads of four dimensions each, and a group on its own."""
    index = torch.arange(12)
    heads = Group("heads", 3, members=(producer("w", 0, index // 4),))
    inside = producer("w", 0, index % 4, context=index // 4, context_dim=0)
    dims = Group("dims", 4, 3, members=(inside,), outer="heads")
    lone, parameters = chain("a", 4)
    return FakeAnalysis((heads, dims, lone), {"w": torch.randn(12, 2), **parameters})


def test_of_nested_groups_only_the_innermost_are_cut() -> None:
    made = plan(nested(), sparsity=0.5)
    assert set(made.kept_units) == {"dims", "a:0"}
    assert made.kept("heads").tolist() == [0, 1, 2]


def test_a_predicate_says_which_groups_are_cut() -> None:
    analysis = nested()
    assert set(plan(analysis, sparsity=0.5, groups=lambda g: g.name == "heads").kept_units) == {
        "heads"
    }
    everything = plan(analysis, sparsity=0.5, groups=lambda g: True)
    assert set(everything.kept_units) == {"heads", "dims", "a:0"}


def test_only_chosen_groups_are_scored() -> None:
    scored: list[str] = []

    def rule(group: Group, parameters: object) -> Tensor:
        scored.append(group.name)
        return torch.rand(group.shape)

    plan(nested(), rule, 0.5)
    assert scored == ["dims", "a:0"]
    assert set(score(nested(), rule)) == {"heads", "dims", "a:0"}


@pytest.mark.parametrize("sparsity", [0, 0.0, 0.2])
def test_a_plan_that_prunes_nothing_warns(sparsity: float) -> None:
    analysis = analysis_of(chain("a", 4), chain("b", 3))
    message = rf"NOTHING IS PRUNED: sparsity {sparsity:g} with .* 2 groups of 3 to 4 units"
    with pytest.warns(NothingPrunedWarning, match=message) as caught:
        made = plan(analysis, sparsity=sparsity)
    assert made.is_empty
    assert caught[0].filename == __file__


def test_global_finds_something_where_local_does_not() -> None:
    analysis = analysis_of(chain("a", 4), chain("b", 3))
    assert plan(analysis, sparsity=0.2, scope="global").kept_units == {"a:0": (1, 2, 3)}


def test_nothing_prunable_names_the_reasons() -> None:
    frozen = (
        Group("x", 3, reason="a model input"),
        Group("y", 3, reason="indexed by data"),
        Group("z", 3, reason="indexed by data"),
    )
    message = r"Nothing .* may be pruned: all of its 3 groups are frozen, because of\n"
    with pytest.raises(PlanError, match=message + r"  2 x indexed by data\n  1 x a model input"):
        plan(FakeAnalysis((), {}, frozen), sparsity=0.5)
    with pytest.raises(PlanError, match=r"may be pruned: it has no groups of coupled"):
        plan(FakeAnalysis((), {}), sparsity=0.5)
    many = tuple(Group(f"f{i}", 2, reason=f"reason {i}") for i in range(7))
    with pytest.raises(PlanError, match=r"1 x reason 4\n  and 2 other reasons"):
        plan(FakeAnalysis((), {}, many), sparsity=0.5)


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        (None, r"Pass sparsity=, the fraction of units to remove"),
        (1, r"must lie in \[0, 1\); got 1\."),
        (-0.1, r"must lie in \[0, 1\); got -0\.1"),
        (50, r"must lie in \[0, 1\); got 50"),
        (math.nan, r"must lie in \[0, 1\); got nan"),
        (math.inf, r"must lie in \[0, 1\); got inf"),
        pytest.param(10**400, r"must lie in \[0, 1\); got 1000", id="huge"),
        (Fraction(3, 2), r"must lie in \[0, 1\); got Fraction\(3, 2\)"),
        (True, r"must be a number in \[0, 1\).* got True, a bool"),
        ("0.5", r"got '0\.5', a str"),
        (torch.tensor(0.5), r"a Tensor"),
    ],
)
def test_a_wrong_sparsity_is_refused(sparsity: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan(analysis_of(chain("a", 4)), sparsity=sparsity)


def test_wrong_names_and_predicates_are_refused() -> None:
    analysis = analysis_of(chain("a", 4))
    with pytest.raises(PlanError, match=r"no scope 'layer'; use one of global, isomorphic, local"):
        plan(analysis, sparsity=0.5, scope="layer")
    with pytest.raises(PlanError, match=r"no criterion 'magntude'.* magnitude"):
        plan(analysis, "magntude", 0.5)
    with pytest.raises(PlanError, match=r"no criterion 'magntude'"):
        score(analysis, "magntude")
    with pytest.raises(PlanError, match=r"groups= is a function .* got \['a:0'\]"):
        plan(analysis, sparsity=0.5, groups=["a:0"])
    with pytest.raises(PlanError, match=r"selects none of the 1 prunable groups, such as 'a:0'"):
        plan(analysis, sparsity=0.5, groups=lambda group: False)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, 2.0, 3.0, 4.0], r"group 'a:0': the scores must be a tensor .*, not a list"),
        (None, r"must be a tensor of shape \(4,\), not a NoneType"),
        (torch.ones(3), r"have shape \(3,\), expected \(4,\): one per unit"),
        (torch.ones(1, 4), r"have shape \(1, 4\), expected \(4,\)"),
        (torch.tensor([1.0, math.nan, math.inf, 0.0]), r"2 of 4 .* finite \(1 NaN, 1 infinite\)"),
        (torch.ones(4, dtype=torch.complex64), r"must be real numbers, not torch.complex64"),
        (torch.ones(4, device="meta"), r"on the meta device and have no values"),
    ],
)
@pytest.mark.parametrize("use", [score, lambda analysis, rule: plan(analysis, rule, 0.5)])
def test_wrong_scores_are_refused(
    scores: object, message: str, use: Callable[[FakeAnalysis, object], object]
) -> None:
    def mine(group: Group, parameters: object) -> object:
        return scores

    with pytest.raises(PlanError, match=r"Criterion '.*mine', .*" + message):
        use(analysis_of(chain("a", 4)), mine)
    with pytest.raises(PlanError, match=r"expected \(2, 3\): one per context and unit"):
        score(analysis_of(grouped("c", 2, 3)), lambda group, parameters: torch.ones(3))


def test_nan_weights_are_found_by_their_group() -> None:
    group, parameters = chain("a", 4)
    parameters["a.in"][2, 1] = math.nan
    with pytest.raises(PlanError, match=r"'magnitude', group 'a:0': 1 of 4 scores are not finite"):
        plan(analysis_of((group, parameters)), sparsity=0.5)


def test_integer_and_boolean_scores_rank() -> None:
    analysis = bare([(4,)])
    whole = plan(analysis, by_table({"g0": torch.tensor([3, 1, 2, 0])}), 0.5)
    assert whole.kept_units == {"g0": (0, 2)}
    flags = plan(analysis, by_table({"g0": torch.tensor([False, True, False, True])}), 0.5)
    assert flags.kept_units == {"g0": (1, 3)}


def test_planning_leaves_the_parameters_alone() -> None:
    units = torch.arange(4)
    group = Group("g", 4, members=(producer("w", 0, units), consumer("w", 1, units)))
    weight = torch.nn.Parameter(torch.randn(4, 4))
    before = weight.detach().clone()
    plan(analysis_of((group, {"w": weight})), sparsity=0.5)
    assert weight.equal(before)
    assert weight.grad is None


@pytest.mark.parametrize("scope", ["local", "global"])
def test_decimal_sparsities_are_exact(scope: str) -> None:
    """0.29 of 100 units are 29, although the float product is 28.999…; a third of 3 is 1."""
    for size in (3, 7, 100, 300):
        analysis = bare([(size,)])
        table = {"g0": torch.arange(size, dtype=torch.float64)}
        for count in range(1, size):
            for sparsity in (count / size, Fraction(count, size)):
                (row,) = quiet(analysis, table, sparsity, scope).kept_units.values()
                assert len(row) == size - count
    analysis, table = bare([(10_000,)]), {"g0": torch.zeros(10_000)}
    assert 0.0029 * 10_000 < 29 < 0.00291 * 10_000  # what a float product would make of it
    (row,) = plan(analysis, by_table(table), 0.0029, scope).kept_units.values()
    assert len(row) == 10_000 - 29
    (row,) = plan(analysis, by_table(table), math.nextafter(0.5, 0), scope).kept_units.values()
    assert len(row) == 10_000 - 4_999
