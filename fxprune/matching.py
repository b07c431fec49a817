"""Which units of an original the units of its pruned graph are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.errors import PlanError
from fxprune.groups import Group, Member
from fxprune.plans import PruningPlan
from fxprune.slicing import members_by_parameter, slice_parameter


@dataclass(frozen=True)
class Match:
    """Slots of a group of the pruned graph, and the same units' slots in one of the original."""

    group: Group
    after: Tensor
    before: Tensor


class Matching:
    """Finds units by the entries of parameters that they own before and after a plan.

    plan    of the original
    shapes  of the parameters and buffers that it leaves

    Groups may be others in the pruned graph: where units are coupled one by one, those with the
    same memberships make up a group, and once some are gone that may be fewer or more.
    """

    def __init__(self, plan: PruningPlan, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._plan, self._shapes = plan, shapes
        self._sliced = members_by_parameter(plan)
        self._by_place: dict[tuple[str, int], list[tuple[Group, list[Member]]]] = {}
        for group in plan.groups:
            for place, members in _by_place(group).items():
                self._by_place.setdefault(place, []).append((group, members))
        self._origins: dict[tuple[str, frozenset[int]], Tensor] = {}

    def of(self, group: Group) -> list[Match]:
        """The original groups that have units of this group; those with as many contexts first."""
        matches = list(self._matches(group))
        same = [match for match in matches if match.group.contexts == group.contexts]
        return same or matches

    def slots_left(self, group: Group) -> Tensor:
        """The slots of an original group that own entries in what the plan leaves."""
        found = []
        for member in group.members:
            dims = self._along(member.parameter, member.dims)
            origin = self._origin(member.parameter, dims)
            found.append(self._laid(member, group, dims)[origin].reshape(-1))
        slots: Tensor = torch.cat(found).unique()
        return slots[slots >= 0]

    def _matches(self, group: Group) -> Iterator[Match]:
        """All of them, wherever they share a dimension."""
        candidates: dict[str, Group] = {}
        pairs: dict[str, list[Tensor]] = {}
        for place, members in _by_place(group).items():
            for original, theirs in self._by_place.get(place, ()):
                candidates[original.name] = original
                for member, other in zip(members, theirs, strict=False):
                    found = self._pairs(group, member, original, other)
                    pairs.setdefault(original.name, []).append(found)
        for name, parts in pairs.items():
            after, before = _one_to_one(torch.unique(torch.cat(parts), dim=0)).unbind(1)
            if len(after):
                yield Match(candidates[name], after, before)

    def _pairs(self, group: Group, member: Member, original: Group, other: Member) -> Tensor:
        """[n, 2]: the slots in `group` and in `original` of the entries in either, -1 for none."""
        dims = self._along(member.parameter, (*member.dims, *other.dims))
        entries = self._origin(member.parameter, dims)
        before = self._laid(other, original, dims)[entries]
        slots = torch.arange(group.slots).reshape(group.shape)
        after = member.spread(slots, group, -1, entries.dim()).expand(entries.shape)
        both = torch.stack([after.reshape(-1), before.reshape(-1)], dim=1)
        unique: Tensor = torch.unique(both[(both >= 0).any(1)], dim=0)
        return unique

    def _along(self, parameter: str, dims: Iterable[int]) -> frozenset[int]:
        """These dimensions, and all that say which of their indices stay."""
        members = [frozenset(member.dims) for _, member in self._sliced.get(parameter, ())]
        found, before = frozenset(dims), None
        while found != before:
            before, found = found, found.union(*(m for m in members if m & found))
        return found

    def _laid(self, member: Member, group: Group, dims: frozenset[int]) -> Tensor:
        """The slot of every entry of an original parameter, by its flat position along `dims`."""
        shape = self._shape(member.parameter, dims)
        slots = torch.arange(group.slots).reshape(group.shape)
        laid: Tensor = member.spread(slots, group, -1, len(shape)).expand(shape).reshape(-1)
        return laid

    def _origin(self, parameter: str, dims: frozenset[int]) -> Tensor:
        """The original position along `dims` of every entry there that the plan leaves."""
        key = parameter, dims
        if key not in self._origins:
            shape = self._shape(parameter, dims)
            flat = torch.arange(math.prod(shape)).reshape(shape)
            own = [(g, m) for g, m in self._sliced.get(parameter, ()) if dims >= set(m.dims)]
            self._origins[key] = slice_parameter(flat, own, self._plan)
            self._check(parameter, {dim: self._origins[key].shape[dim] for dim in dims})
        return self._origins[key]

    def _check(self, parameter: str, left: Mapping[int, int]) -> None:
        shape = self._shapes.get(parameter, ())
        if any(dim >= len(shape) or shape[dim] != size for dim, size in left.items()):
            raise PlanError(
                f"The first plan leaves {parameter!r} with {left} indices along its dimensions, "
                f"and the second one is for shape {shape}: it is not a plan for the first one's "
                "result."
            )

    def _shape(self, parameter: str, dims: frozenset[int]) -> list[int]:
        """The original shape with a single index along all other dimensions."""
        shape = self._plan.shapes.get(parameter)
        if shape is None:
            raise PlanError(f"The first plan's graph has no parameter {parameter!r}.")
        return [size if dim in dims else 1 for dim, size in enumerate(shape)]


def _one_to_one(pairs: Tensor) -> Tensor:
    """Of pairs of slots those that are no part of another one; none if slots have several others.

    A slot that owns entries which its counterpart does not is another unit: it only crosses there.
    """
    whole = (pairs >= 0).all(1)
    parts = pairs[~whole]
    for side in (0, 1):
        whole &= ~torch.isin(pairs[:, side], parts[:, side][parts[:, side] >= 0])
    found = pairs[whole]
    distinct = {len(found), *(len(found[:, side].unique()) for side in (0, 1))}
    return found if len(distinct) == 1 else found[:0]


def _by_place(group: Group) -> dict[tuple[str, int], list[Member]]:
    places: dict[tuple[str, int], list[Member]] = {}
    for member in group.members:
        places.setdefault((member.parameter, member.dim), []).append(member)
    return places
