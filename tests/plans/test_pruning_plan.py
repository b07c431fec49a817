"""PruningPlan: what it keeps, which entries that leaves, and which plans it refuses."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxprune.errors import AnalysisError, PlanError
from fxprune.groups import Group
from fxprune.plans import PruningPlan
from tests.plans.fakes import (
    Case,
    FakeAnalysis,
    analysis_of,
    cases,
    chain,
    consumer,
    grouped,
    indices,
    owner,
    producer,
)


def rows_of(draw: st.DrawFn, group: Group) -> list[list[int]]:
    """Random kept indices, equally many per context."""
    count = draw(st.integers(1, group.size))
    orders = [draw(st.permutations(range(group.size))) for _ in range(group.contexts)]
    return [sorted(order[:count]) for order in orders]


@given(cases(), st.data())
def test_masks_say_which_entries_every_member_keeps(case: Case, data: st.DataObject) -> None:
    # A second group over the same parameters: what is left is what both keep.
    others = tuple(consumer(m.parameter, m.dim, m.unit * 0) for m in case.group.members)
    extra = torch.tensor([0, 1])
    second = Group("h", 2, members=(*others, producer("extra", 0, extra)))
    analysis = analysis_of((case.group, case.parameters), (second, {"extra": torch.ones(2)}))
    rows = data.draw(st.composite(lambda draw: rows_of(draw, case.group))())
    last = data.draw(st.integers(0, 1))
    kept = {"g": rows if case.group.contexts > 1 else rows[0], "h": [last]}
    plan = PruningPlan.build(analysis, kept)
    masks = plan.masks()
    touched = {"extra"} | {m.parameter for m in case.group.members}
    assert set(masks) == touched
    for name, mask in masks.items():
        shape = tuple(analysis.parameters[name].shape)
        assert (mask.dtype, tuple(mask.shape)) == (torch.bool, shape)
        for index in indices(shape):
            stays = True
            for group, table in ((case.group, rows), (second, [[last]])):
                for member in group.members:
                    if member.parameter == name and (place := owner(member, index)):
                        stays &= place[1] in table[place[0]]
            assert bool(mask[index]) == stays


def test_kept_of_cut_and_of_whole_groups() -> None:
    analysis = analysis_of(chain("a", 4), chain("b", 3), grouped("c", 2, 3), grouped("d", 2, 2))
    plan = PruningPlan.build(analysis, {"a:0": [0, 3], "c:0": [[0, 2], [1, 2]]})
    assert plan.kept("a:0").tolist() == [0, 3]
    assert plan.kept(analysis.groups[1]).tolist() == [0, 1, 2]
    assert plan.kept("c:0").tolist() == [[0, 2], [1, 2]]
    assert plan.kept("d:0").tolist() == [[0, 1], [0, 1]]
    assert plan.kept("d:0").dtype == torch.int64
    assert plan.kept_mask("c:0").tolist() == [[True, False, True], [False, True, True]]
    frozen = Group("out", 2, reason="an output of the model")
    assert plan.kept(frozen).tolist() == [0, 1]
    assert not plan.is_empty


def test_masks_cover_only_what_loses_entries() -> None:
    analysis = analysis_of(chain("a", 4), chain("b", 3))
    plan = PruningPlan.build(analysis, {"a:0": [1, 2], "b:0": [0, 1, 2]})
    masks = plan.masks()
    assert set(masks) == {"a.in", "a.out"}
    assert masks["a.in"].any(1).tolist() == [False, True, True, False]
    assert masks["a.out"].all(0).tolist() == [False, True, True, False]
    assert plan == PruningPlan.build(analysis, {"a:0": [1, 2]})


def test_a_residual_weight_loses_rows_and_columns() -> None:
    units = torch.arange(3)
    group = Group("r", 3, members=(producer("w", 0, units), consumer("w", 1, units)))
    analysis = analysis_of((group, {"w": torch.ones(3, 3)}))
    mask = PruningPlan.build(analysis, {"r": [0, 2]}).masks()["w"]
    assert mask.tolist() == [[True, False, True], [False] * 3, [True, False, True]]


def test_rows_of_removed_outer_units_are_ignored() -> None:
    """Heads 0, 1, 2 of two dimensions each; head 1 goes, and with it whatever its row says."""
    index = torch.arange(6)
    heads = Group("heads", 3, members=(producer("w", 0, index // 2),))
    inner = Group(
        "dims",
        2,
        3,
        members=(producer("w", 0, index % 2, context=index // 2, context_dim=0),),
        outer="heads",
    )
    analysis = FakeAnalysis((heads, inner), {"w": torch.ones(6, 1)})
    left: list[Tensor] = []
    for ignored in (0, 1):
        kept = {"heads": [0, 2], "dims": [[0], [ignored], [1]]}
        left.append(PruningPlan.build(analysis, kept).masks()["w"])
    assert left[0].flatten().tolist() == [True, False, False, False, False, True]
    assert torch.equal(left[0], left[1])


GROUPS = (chain("a", 4), grouped("c", 2, 3))
FROZEN = (Group("out:0", 5, reason="it is an output of the model"),)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"x:0": [0]}, r"no prunable group 'x:0'; it has 'a:0', 'c:0'"),
        ({"out:0": [0]}, r"'out:0' is frozen and may not be pruned: it is an output of the model"),
        ({"a:0": []}, r"'a:0': no units are kept; at least one must stay"),
        ({"a:0": [0, 4]}, r"run from 0 to 4, outside \[0, 4\)"),
        ({"a:0": [-1, 2]}, r"run from -1 to 2, outside \[0, 4\)"),
        ({"a:0": [2, 1]}, r"must ascend without repeats"),
        ({"a:0": [1, 1]}, r"must ascend without repeats"),
        ({"a:0": [0.0, 1]}, r"must be integers, not 0\.0"),
        ({"a:0": [False, True]}, r"must be integers, not False"),
        ({"a:0": "01"}, r"must be a sequence, not '01'"),
        ({"a:0": 3}, r"must be a sequence, not 3"),
        ({"a:0": [[0], [1]]}, r"must be integers, not \[0\]"),
        ({"c:0": [0, 1]}, r"kept indices of context 0 must be a sequence, not 0"),
        ({"c:0": [[0, 1]]}, r"has 2 contexts and needs a row of kept indices for each; got 1"),
        ({"c:0": [[0, 1], [2]]}, r"equally many units in each of its 2 contexts; .* 1 and 2"),
        ({"c:0": [[0], []]}, r"no units of context 1 are kept"),
        ({"c:0": [[0], [3]]}, r"indices of context 1 run from 3 to 3, outside \[0, 3\)"),
    ],
)
def test_a_wrong_plan_is_refused(kept: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        PruningPlan.build(analysis_of(*GROUPS, frozen=FROZEN), kept)


@pytest.mark.parametrize(("count", "more"), [(5, ""), (6, " and 1 more")])
def test_five_groups_at_most_are_named(count: int, more: str) -> None:
    groups = [chain(letter, 2) for letter in "abcdef"[:count]]
    with pytest.raises(PlanError, match=rf"it has 'a:0', 'b:0', 'c:0', 'd:0', 'e:0'{more}\."):
        PruningPlan.build(analysis_of(*groups), {"x:0": [0]})


def test_wrong_fields_are_refused() -> None:
    analysis = analysis_of(*GROUPS)
    plan = PruningPlan.build(analysis, {"a:0": [0]})
    for wrong in (None, 7):
        with pytest.raises(PlanError, match=rf"fingerprint of its graph, a text; got {wrong}"):
            dataclasses.replace(plan, fingerprint=wrong)
    with pytest.raises(PlanError, match=r"needs the fingerprint .* got ''"):
        dataclasses.replace(plan, fingerprint="")
    with pytest.raises(PlanError, match=r"version 9, and this fxprune reads version 1"):
        dataclasses.replace(plan, version=9)
    with pytest.raises(PlanError, match=r"Two groups are called 'a:0'"):
        dataclasses.replace(plan, groups=(*analysis.groups, analysis.groups[0]))
    with pytest.raises(PlanError, match=r"covers 'a.in', whose shape the plan does not know"):
        dataclasses.replace(plan, shapes={}).masks()
    with pytest.raises(AnalysisError, match=r"'a.in' has shape \(5, 3\)"):
        dataclasses.replace(plan, shapes={**plan.shapes, "a.in": (5, 3)}).masks()


def test_groups_of_another_graph_are_refused() -> None:
    plan = PruningPlan.build(analysis_of(*GROUPS), {"a:0": [0]})
    for name in ("b:0", Group("b:0", 4)):
        with pytest.raises(PlanError, match=r"no prunable group 'b:0'"):
            plan.kept(name)
    with pytest.raises(PlanError, match=r"'a:0' has shape \(9,\), and in the plan \(4,\)"):
        plan.kept(Group("a:0", 9))
    plan.check_fingerprint("fingerprint of this graph")
    with pytest.raises(PlanError, match=r"made for another graph: .* this graph's is 'other'"):
        plan.check_fingerprint("other")


def test_a_plan_cannot_be_changed() -> None:
    plan = PruningPlan.build(analysis_of(*GROUPS), {"a:0": [0]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.scope = "global"
    with pytest.raises(TypeError, match="item assignment"):
        plan.kept_units["a:0"] = (1,)
    with pytest.raises(TypeError, match="item assignment"):
        plan.shapes["a.in"] = (1, 3)
    kept = plan.kept("a:0")
    kept[0] = 3
    assert plan.kept("a:0").tolist() == [0]


def test_equality_hash_and_copies() -> None:
    analysis = analysis_of(*GROUPS)
    plan = PruningPlan.build(analysis, {"a:0": [0, 2]}, "l2", 0.5, "local")
    same = PruningPlan.build(analysis, {"a:0": torch.tensor([0, 2])}, "l2", 0.5, "local")
    assert plan == same
    assert hash(plan) == hash(same)
    assert plan != PruningPlan.build(analysis, {"a:0": [0, 1]}, "l2", 0.5, "local")
    assert plan != dataclasses.replace(plan, fingerprint="other")
    assert copy.deepcopy(plan) == plan
    tied = dataclasses.replace(plan, aliases={"a.tied": "a.in"})  # as the graph has it
    assert (tied, hash(tied)) == (plan, hash(plan))
    bare = dataclasses.replace(plan, shapes={})  # the graph's, too
    assert (bare, hash(bare)) == (plan, hash(plan))
    turned = dataclasses.replace(plan, groups=plan.groups[::-1])
    assert (turned, hash(turned)) == (plan, hash(plan))
    assert pickle.loads(pickle.dumps(plan)).masks().keys() == plan.masks().keys()


def test_what_it_prints() -> None:
    analysis = analysis_of(*GROUPS)
    plan = PruningPlan.build(analysis, {"c:0": [[0], [2]]}, "l2", 0.5, "local")
    assert str(plan) == (
        "Plan by l2 (local, sparsity 0.5): 1 of 2 prunable groups lose 2 of 7 units.\n"
        "group      contexts    units    kept  maskable\n"
        "-------  ----------  -------  ------  ----------\n"
        "c:0               2        3       1  yes"
    )
    assert repr(plan) == (
        "PruningPlan('l2', sparsity=0.5, scope='local', 1 of 2 groups cut, "
        "fingerprint='fingerprint of this graph')"
    )
    nothing = PruningPlan.build(analysis, {})
    assert nothing.is_empty
    assert nothing.masks() == {}
    assert str(nothing) == (
        "Plan by custom (custom): 0 of 2 prunable groups lose 0 of 7 units.\nNothing is pruned."
    )


def test_a_plan_knows_tied_parameters_by_either_name() -> None:
    analysis = analysis_of(chain("a", 4), aliases={"tied": "a.in"})
    assert PruningPlan.build(analysis, {"a:0": [1]}).shape_of("tied") == (4, 3)
