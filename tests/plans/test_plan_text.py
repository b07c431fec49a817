"""Plans as text: what comes back is what went in, and nothing else is accepted."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.errors import PlanError
from fxprune.plans import PruningPlan
from fxprune.plans.base import short
from fxprune.plans.text import longest
from tests.plans.fakes import analysis_of, chain, grouped

ANALYSIS = analysis_of(chain("a", 4), grouped("c", 2, 3))
PLAN = PruningPlan.build(
    ANALYSIS, {"a:0": [1, 3], "c:0": [[0, 1], [1, 2]]}, "magnitude", 0.5, "local"
)


def changed(**fields: object) -> str:
    return json.dumps({**json.loads(PLAN.to_json()), **fields})


def test_a_round_trip() -> None:
    back = PruningPlan.from_json(PLAN.to_json(), ANALYSIS)
    assert back == PLAN
    assert back.sparsity == 0.5
    masks, expected = back.masks(), PLAN.masks()
    assert masks.keys() == expected.keys()
    assert all(masks[name].equal(expected[name]) for name in masks)


def test_indented_text_and_plans_by_hand() -> None:
    indented = json.dumps(json.loads(PLAN.to_json()), indent=8)
    assert PruningPlan.from_json(indented, ANALYSIS) == PLAN
    by_hand = PruningPlan.build(ANALYSIS, {"a:0": [0]})
    assert PruningPlan.from_json(by_hand.to_json(), ANALYSIS) == by_hand


def test_a_plan_for_another_graph_is_refused() -> None:
    other = dataclasses.replace(ANALYSIS, fingerprint="other")
    with pytest.raises(PlanError, match=r"This plan was made for another graph.* 'other'"):
        PruningPlan.from_json(PLAN.to_json(), other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"not valid JSON"),
        (PLAN.to_json()[:-1], r"not valid JSON"),
        ("[" * 100_000, r"not valid JSON"),
        ("9" * 5000, r"not valid JSON"),
        ('{"format": "fxprune-plan", "format": "fxprune-plan"}', r"a name occurs twice"),
        (PLAN.to_json().replace("0.5", "NaN"), r"NaN is not a number"),
        (PLAN.to_json().replace("0.5", "Infinity"), r"Infinity is not a number"),
        (" " * 2_000_000, r"has 2000000 characters; a plan for this graph has at most"),
        ("[]", r"no plan"),
        ("null", r"no plan"),
        (changed(format="pickle"), r'no plan: it lacks "format": "fxprune-plan"'),
        (changed(version=2), r"version 2, and this fxprune reads version 1"),
        (changed(version="1"), r"version '1'"),
        (changed(version=True), r"'version' may not be True"),
        (changed(extra=1), r"fields do not fit its version: \['extra'\]"),
        (changed(criterion=None), r"'criterion' may not be None"),
        (changed(sparsity="0.5"), r"'sparsity' may not be '0.5'"),
        (changed(sparsity=10**400), r"sparsity must lie in \[0, 1\) or be None; it is 1000"),
        (changed(sparsity=True), r"'sparsity' may not be True"),
        (changed(fingerprint=7), r"'fingerprint' may not be 7"),
        (changed(kept=[]), r"'kept' may not be \[\]"),
        (changed(kept={"b:0": [0]}), r"no prunable group 'b:0'"),
        (changed(kept={"a:0": [1, 7]}), r"run from 1 to 7, outside \[0, 4\)"),
        (changed(kept={"a:0": {"0": 1}}), r"must be a sequence"),
        (changed(kept={"a:0": "__import__('os')"}), r"must be a sequence"),
        (changed(kept={"a:0": [10**4000]}), r"outside \[0, 4\)"),
    ],
)
def test_malformed_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        PruningPlan.from_json(text, ANALYSIS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(json.loads(PLAN.to_json()))), JSON)
def test_any_field_may_hold_anything_and_only_ours_gets_out(name: str, value: object) -> None:
    """Whatever stands in a field, the answer is a valid plan or a PlanError."""
    try:
        plan = PruningPlan.from_json(changed(**{name: value}), ANALYSIS)
    except PlanError:
        return
    assert PruningPlan.from_json(plan.to_json(), ANALYSIS) == plan


@given(st.integers(0, len(PLAN.to_json()) - 1), st.characters(codec="ascii"))
def test_one_wrong_character_never_gets_another_error_out(place: int, character: str) -> None:
    text = PLAN.to_json()
    text = text[:place] + character + text[place + 1 :]
    try:
        PruningPlan.from_json(text, ANALYSIS)
    except PlanError:
        return


@pytest.mark.parametrize(("name", "size"), [("w", 5000), ("w" * 20_000, 1)])
def test_the_longest_text_leaves_room_for_every_unit_and_every_name(name: str, size: int) -> None:
    """What a group adds to the limit covers its indented entry, however large the model is."""
    group, parameters = chain(name, size)
    entry = json.dumps({group.name: list(range(size))}, indent=8)
    room = longest(analysis_of((group, parameters))) - longest(analysis_of())
    assert len(entry) <= room


def test_the_longest_text_leaves_room_for_each_of_many_groups_in_one_parameter() -> None:
    group, parameters = chain("w", 1)
    other = dataclasses.replace(group, name="w:0#1")
    entry = json.dumps({other.name: [0]}, indent=8)
    both = analysis_of((group, parameters), (other, parameters))
    assert len(entry) <= longest(both) - longest(analysis_of((group, parameters)))


def test_removing_everything_is_no_sparsity() -> None:
    with pytest.raises(PlanError, match=r"must lie in \[0, 1\) or be None; it is 1.0"):
        PruningPlan.build(ANALYSIS, {"a:0": [1]}, sparsity=1.0)


def test_values_are_cut_where_they_are_longer_than_80_characters() -> None:
    assert len(short("x" * 78)) == 80
    assert short("x" * 78).endswith("x'")
    assert short("x" * 79) == "'" + "x" * 76 + "..."
