"""Index maps: against a loop over every entry, and refused when they make no sense."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given

from fxprune.errors import AnalysisError
from fxprune.groups import Group, Member
from tests.plans.fakes import Case, cases, chain, grouped, indices, owner, producer


@given(cases())
def test_slices_yield_each_units_entries(case: Case) -> None:
    yielded = list(case.group.slices(case.parameters))
    assert [member for member, _ in yielded] == list(case.group.members)
    for member, entries in yielded:
        parameter = case.parameters[member.parameter]
        expected: dict[tuple[int, int], list[float]] = {}
        for index in indices(tuple(parameter.shape), member.dims):
            place = owner(member, index)
            if place is not None:
                expected.setdefault(place, []).append(float(parameter[index]))
        assert tuple(entries.shape[:-1]) == case.group.shape
        laid = entries.reshape(case.group.contexts, case.group.size, -1)
        for (context, unit), values in expected.items():
            assert laid[context, unit].tolist() == values


@given(cases())
def test_reduce_sums_what_each_unit_owns(case: Case) -> None:
    for member in case.group.members:
        parameter = case.parameters[member.parameter]
        expected = torch.zeros(case.group.contexts, case.group.size, dtype=torch.float64)
        for index in indices(tuple(parameter.shape)):
            place = owner(member, index)
            if place is not None:
                expected[place] += parameter[index]
        reduced = member.reduce(parameter, case.group)
        torch.testing.assert_close(reduced, expected.reshape(case.group.shape))


@given(cases())
def test_spread_lays_values_along_the_parameter(case: Case) -> None:
    values = torch.arange(1.0, case.group.slots + 1)
    for member in case.group.members:
        shape = tuple(case.parameters[member.parameter].shape)
        laid = member.spread(values.reshape(case.group.shape), case.group, -7.0, len(shape))
        laid = laid.expand(shape)
        for index in indices(shape):
            place = owner(member, index)
            at = -7.0 if place is None else values[place[0] * case.group.size + place[1]]
            assert laid[index] == at


def test_a_grouped_convolution_has_a_context_along_its_outputs() -> None:
    group, parameters = grouped("g", contexts=2, size=3)
    (_, rows), (_, columns) = group.slices(parameters)
    assert group.shape == (2, 3)
    assert rows.shape == (2, 3, 3)
    assert columns.shape == (2, 3, 4)
    weight = parameters["g.conv"]
    assert torch.equal(columns[1, 2], weight[2:4, 2].reshape(-1))
    assert torch.equal(rows[1, 2], parameters["g.in"][5])


def test_flattened_pixels_belong_to_their_channel() -> None:
    unit = torch.arange(3).repeat_interleave(4)  # 3 channels of 2 x 2 pixels
    group = Group("g", 3, members=(Member("w", 1, "consumer", unit),))
    weight = torch.randn(5, 12)
    ((_, entries),) = group.slices({"w": weight})
    assert entries.shape == (3, 20)
    assert torch.equal(entries[1].sort().values, weight[:, 4:8].reshape(-1).sort().values)


def test_slices_let_gradients_through() -> None:
    group, parameters = chain("a", 3)
    weight = parameters["a.in"].requires_grad_()
    entries = next(iter(group.slices(parameters)))[1]
    entries[1].sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0] * 3, [1.0] * 3, [0.0] * 3]


def test_equality_hash_and_copies() -> None:
    group, _ = grouped("g", 2, 3)
    same, _ = grouped("g", 2, 3)
    assert group == same
    assert hash(group) == hash(same)
    assert copy.deepcopy(group) == group
    first, second = group.members
    moved = Member(first.parameter, 0, "producer", first.unit.roll(1), first.context, 0)
    assert first != moved
    assert first != second
    assert second != Member(second.parameter, 1, "consumer", second.unit)
    assert Group("g", 3, 2, (moved, second)) != group
    assert first != "g.in"


def test_members_differ_by_where_their_contexts_run() -> None:
    units = torch.arange(3)
    along = [Member("w", 0, "producer", units, units * 0, dim) for dim in (0, 1)]
    plain = [Member("w", 0, "producer", units, None, dim) for dim in (0, 1)]
    assert along[0] != along[1]
    assert plain[0] == plain[1]  # without contexts, they run nowhere
    assert plain[0] != along[0]
    assert along[0] != plain[0]


def test_what_they_print() -> None:
    group, _ = grouped("g", 2, 3)
    assert repr(group) == "Group('g:0', 2 x 3 units, 2 members, maskable)"
    assert repr(group.members[1]) == (
        "Member('g.conv', dim=1, consumer, 3 of 3 indices, contexts along 0)"
    )
    frozen = Group("h", 3, maskable=False, reason="an output of the model", outer="g:0")
    assert repr(frozen) == "Group('h', 3 units, 0 members, frozen, inside 'g:0')"
    assert repr(Group("h", 3, maskable=False)) == "Group('h', 3 units, 0 members, not maskable)"


UNITS = torch.arange(3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("w", 0, "gate", UNITS), r"member 'w', dimension 0: unknown role 'gate'"),
        (("w", -1, "bias", UNITS), r"counted from 0"),
        (("w", 0, "bias", UNITS.int()), r"unit map must be a 1-d int64 tensor, not torch.int32"),
        (("w", 0, "bias", UNITS[None]), r"of shape \(1, 3\)"),
        (("w", 0, "bias", UNITS, UNITS.float()), r"context map must be a 1-d int64"),
        (("w", 0, "bias", UNITS, UNITS[:2]), r"unit map has 3 indices and .* has 2"),
    ],
)
def test_a_wrong_member_is_refused(fields: tuple[object, ...], message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        Member(*fields)


@pytest.mark.parametrize(
    ("size", "contexts", "members", "message"),
    [
        (0, 1, (), r"size 0 and contexts 1 must be at least 1"),
        (2, 1, (producer("w", 0, UNITS),), r"unit map runs from 0 to 2, outside \[-1, 2\)"),
        (3, 2, (producer("w", 0, UNITS),), r"2 contexts needs a context map"),
        (3, 2, (producer("w", 0, UNITS, context=UNITS),), r"context map runs from 0 to 2"),
        (3, 1, (producer("w", 0, UNITS - 2),), r"runs from -2 to 0"),
    ],
)
def test_a_wrong_group_is_refused(
    size: int, contexts: int, members: tuple[Member, ...], message: str
) -> None:
    with pytest.raises(AnalysisError, match=message):
        Group("g", size, contexts, members)


def test_wrong_parameters_are_refused() -> None:
    group, parameters = chain("a", 4)
    with pytest.raises(AnalysisError, match=r"'a:0' reads parameter 'a.in', which .* \(0 of them"):
        list(group.slices({}))
    with pytest.raises(AnalysisError, match=r"shape \(3, 3\), but the group expects 4 indices"):
        list(group.slices({**parameters, "a.in": torch.ones(3, 3)}))
    with pytest.raises(AnalysisError, match=r"shape \(4,\), but .* along dimension 1"):
        list(group.slices({**parameters, "a.out": torch.ones(4)}))
    with pytest.raises(AnalysisError, match=r"expects 4 indices along dimension 0"):
        group.members[0].reduce(torch.ones(5, 3), group)


def test_units_of_unequal_count_are_refused() -> None:
    group = Group("g", 2, members=(producer("w", 0, torch.tensor([0, 0, 1])),))
    with pytest.raises(AnalysisError, match=r"own between 1 and 2 indices"):
        list(group.slices({"w": torch.ones(3, 2)}))
    assert group.members[0].reduce(torch.ones(3, 2), group).tolist() == [4.0, 2.0]
    group = Group("g", 2, members=(producer("w", 0, torch.tensor([0, 0, -1])),))
    with pytest.raises(AnalysisError, match=r"own between 0 and 2 indices"):
        list(group.slices({"w": torch.ones(3, 2)}))


def test_a_parameter_that_is_too_short_for_the_contexts_is_refused() -> None:
    group, parameters = grouped("g", contexts=2, size=3)
    with pytest.raises(AnalysisError, match=r"expects 4 indices along dimension 0"):
        list(group.slices({**parameters, "g.conv": parameters["g.conv"][:3]}))


def test_reducing_stays_on_the_device_of_the_entries() -> None:
    group, parameters = grouped("g", contexts=2, size=3)
    for member in group.members:
        reduced = member.reduce(parameters[member.parameter].to("meta"), group)
        assert (reduced.device.type, tuple(reduced.shape)) == ("meta", group.shape)
