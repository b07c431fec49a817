"""Groups made by hand, and a slow, literal reading of what their index maps mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

import torch
from hypothesis import strategies as st
from torch import Tensor

from fxprune.groups import Group, Member


@dataclass(frozen=True)
class FakeAnalysis:
    """Just what a plan needs of an analysis."""

    groups: tuple[Group, ...]
    parameters: Mapping[str, Tensor]
    frozen: tuple[Group, ...] = ()
    fingerprint: str = "fingerprint of this graph"
    aliases: Mapping[str, str] = field(default_factory=dict)


def consumer(name: str, dim: int, unit: Tensor, **context: object) -> Member:
    return Member(name, dim, "consumer", unit, **context)


def producer(name: str, dim: int, unit: Tensor, **context: object) -> Member:
    return Member(name, dim, "producer", unit, **context)


def chain(name: str, size: int, scale: float = 1.0) -> tuple[Group, dict[str, Tensor]]:
    """Linear(3, size) and Linear(size, 2): unit i has the weight scale * (i + 1) in all entries."""
    units = torch.arange(size)
    rows = scale * (units + 1.0)[:, None]
    parameters = {f"{name}.in": rows.repeat(1, 3), f"{name}.out": rows.t().repeat(2, 1)}
    members = (producer(f"{name}.in", 0, units), consumer(f"{name}.out", 1, units))
    return Group(f"{name}:0", size, members=members), parameters


def grouped(name: str, contexts: int, size: int) -> tuple[Group, dict[str, Tensor]]:
    """A linear layer into a grouped convolution: per conv group, which inputs it keeps."""
    outputs = 2
    channels = torch.arange(contexts * size)
    members = (
        producer(f"{name}.in", 0, channels % size, context=channels // size, context_dim=0),
        consumer(
            f"{name}.conv",
            1,
            torch.arange(size),
            context=torch.arange(contexts).repeat_interleave(outputs),
            context_dim=0,
        ),
    )
    parameters = {
        f"{name}.in": torch.randn(contexts * size, 3),
        f"{name}.conv": torch.randn(contexts * outputs, size, 1, 2),
    }
    return Group(f"{name}:0", size, contexts, members), parameters


def analysis_of(*parts: tuple[Group, dict[str, Tensor]], **options: object) -> FakeAnalysis:
    parameters = {name: tensor for _, tensors in parts for name, tensor in tensors.items()}
    groups = tuple(group for group, _ in parts)
    return FakeAnalysis(groups, parameters, **options)


@dataclass(frozen=True)
class Case:
    """A group and its parameters."""

    group: Group
    parameters: dict[str, Tensor] = field(repr=False)


def owner(member: Member, index: tuple[int, ...]) -> tuple[int, int] | None:
    """The (context, unit) that an entry of the member's parameter belongs to, or None."""
    unit = int(member.unit[index[member.dim]])
    context = 0 if member.context is None else int(member.context[index[member.context_dim]])
    return None if unit < 0 or context < 0 else (context, unit)


def indices(shape: tuple[int, ...], first: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """All indices of a tensor, the dimensions of `first` being the slowest to change."""
    order = [*first, *(dim for dim in range(len(shape)) if dim not in first)]
    for index in product(*(range(shape[dim]) for dim in order)):
        yield tuple(index[order.index(dim)] for dim in range(len(shape)))


def slow_norm(group: Group, parameters: Mapping[str, Tensor], order: float) -> Tensor:
    """A set of entries per unit, then their norm, straight from the definition."""
    read = [m for m in group.members if m.role in ("producer", "consumer")] or group.members
    owned: dict[tuple[int, int], set[tuple[str, tuple[int, ...]]]] = {}
    for member in read:
        for index in indices(tuple(parameters[member.parameter].shape)):
            place = owner(member, index)
            if place is not None:
                owned.setdefault(place, set()).add((member.parameter, index))
    scores = torch.zeros(group.contexts, group.size, dtype=torch.float64)
    for place, entries in owned.items():
        values = torch.stack([parameters[name][index] for name, index in sorted(entries)])
        scores[place] = torch.linalg.vector_norm(values.double(), order)
    return scores.reshape(group.shape)


def _map(draw: st.DrawFn, values: int) -> Tensor:
    """An index map that uses each of the values equally often, and -1 any number of times."""
    often, absent = draw(st.integers(1, 2)), draw(st.integers(0, 2))
    return torch.tensor(draw(st.permutations([*range(values)] * often + [-1] * absent)))


@st.composite
def cases(draw: st.DrawFn, max_members: int = 3) -> Case:
    """Groups of random members, several of which may lie in the same parameter."""
    size, contexts = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    members: list[Member] = []
    parameters: dict[str, Tensor] = {}
    for number in range(draw(st.integers(1, max_members))):
        rank = draw(st.integers(1, 4))
        shape = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
        dim = draw(st.integers(0, rank - 1))
        unit, context, context_dim = _map(draw, size), None, 0
        if contexts > 1:
            context_dim = draw(st.integers(0, rank - 1))
            context = _map(draw, contexts)
            if context_dim == dim:  # heads side by side: any order, equally many of each pair
                slots = _map(draw, size * contexts)
                unit = torch.where(slots < 0, -1, slots % size)
                context = torch.where(slots < 0, -1, slots // size)
            shape[context_dim] = len(context)
        shape[dim] = len(unit)
        role = draw(st.sampled_from(("producer", "bias", "norm", "consumer")))
        name = f"p{number}"
        members.append(Member(name, dim, role, unit, context, context_dim))
        parameters[name] = torch.randn(shape, dtype=torch.float64)
    return Case(Group("g", size, contexts, tuple(members)), parameters)
