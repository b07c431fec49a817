"""Two rounds of pruning as one plan against the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import PlanError
from fxprune.groups import Group, Member
from fxprune.plans import PruningPlan
from fxprune.plans.values import Values
from fxprune.slicing import Slicer


def compose(first: PruningPlan, second: PruningPlan) -> PruningPlan:
    """The plan against the original of `first` that does what `second` does after it.

    `second` is a plan for the graph that `rewrite` made by `first`, analysed as it is or traced
    anew. The criterion and the other records are those of `second`; new values of both stay, those
    of `second` where both give some. Raises PlanError if it is a
    plan for something else, or if no plan of the original says the same: where `first` left single
    units that only `second` sees as alike, a group may lose its last one.
    """
    composer = _Composer(first, second)
    kept = {group.name: first.kept_mask(group) for group in first.groups}
    for name in second.kept_units:
        composer.remove(second.group(name), kept)
    rows = {name: composer.rows(first.group(name), mask) for name, mask in kept.items()}
    return PruningPlan(
        first.groups,
        rows,
        first.shapes,
        first.fingerprint,
        second.criterion,
        second.sparsity,
        second.scope,
        aliases=first.aliases,
        values=composer.values(),
    )


@dataclass(frozen=True)
class _Match:
    """Slots of a group of the second graph, and the same units' slots in the original."""

    group: Group
    after: Tensor
    before: Tensor


class _Composer:
    def __init__(self, first: PruningPlan, second: PruningPlan) -> None:
        self.first, self.second = first, second
        self.slicer = Slicer(first)
        self.by_place: dict[tuple[str, int], list[tuple[Group, list[Member]]]] = {}
        for group in first.groups:
            for place, members in _by_place(group).items():
                self.by_place.setdefault(place, []).append((group, members))
        self._origins: dict[str, Tensor] = {}

    def origin(self, parameter: str) -> Tensor:
        """The flat original position of every entry that `first` leaves of a parameter."""
        if parameter not in self._origins:
            left = self.slicer.kept_entries(parameter)
            expected = self.second.shape_of(parameter)
            if tuple(left.shape) != expected:
                raise PlanError(
                    f"The first plan leaves {parameter!r} with shape {tuple(left.shape)}, and the "
                    f"second one is for {expected}: it is not a plan for the first one's result."
                )
            self._origins[parameter] = left
        return self._origins[parameter]

    def values(self) -> Values:
        """The new values of both plans, in the original's shapes."""
        found = dict(self.first.values)
        for name, value in self.second.values.items():
            shape = self.first.shape_of(name)
            full = found.get(name, torch.zeros(shape, dtype=value.dtype)).clone()
            full.view(-1)[self.origin(name).reshape(-1)] = value.reshape(-1)
            found[name] = full
        return Values(found)

    def rows(self, group: Group, mask: Tensor) -> Any:
        """The kept indices of an original group. Those of contexts that are gone mean nothing."""
        rows = [row.nonzero()[:, 0].tolist() for row in mask.reshape(group.contexts, group.size)]
        if len({len(row) for row in rows}) > 1:
            width = min(len(row) for row in rows)
            left = set((self._slots_left(group) // group.size).tolist())
            rows = [row if c in left else row[:width] for c, row in enumerate(rows)]
        return rows[0] if group.contexts == 1 else rows

    def _slots_left(self, group: Group) -> Tensor:
        """The slots of an original group that own entries in what `first` leaves."""
        found = [
            self._laid(member, group)[self.origin(member.parameter)] for member in group.members
        ]
        slots: Tensor = torch.cat([slots.reshape(-1) for slots in found]).unique()
        return slots[slots >= 0]

    def _laid(self, member: Member, group: Group) -> Tensor:
        """The slot of every entry of an original parameter, by its flat position."""
        shape = self.first.shapes[member.parameter]
        slots = torch.arange(group.slots).reshape(group.shape)
        laid: Tensor = member.spread(slots, group, -1, len(shape)).expand(shape).reshape(-1)
        return laid

    def remove(self, group: Group, kept: Mapping[str, Tensor]) -> None:
        """Take what the second plan removes of a group out of `kept`."""
        gone = ~self.second.kept_mask(group).reshape(-1)
        found = torch.zeros(group.slots, dtype=torch.bool)
        matches = list(self._matches(group))
        same = [match for match in matches if match.group.contexts == group.contexts]
        for match in same or matches:
            found[match.after] = True
            kept[match.group.name].view(-1)[match.before[gone[match.after]]] = False
        if not bool(found[gone].all()):
            raise PlanError(
                f"No group of the original has the units of group {group.name!r}, which the second "
                "plan prunes: prune the original by one plan, or save the first result as a model."
            )

    def _matches(self, group: Group) -> Iterator[_Match]:
        """The original groups that have the group's units, wherever they share a dimension."""
        candidates: dict[str, Group] = {}
        pairs: dict[str, list[Tensor]] = {}
        for place, members in _by_place(group).items():
            for original, theirs in self.by_place.get(place, ()):
                candidates[original.name] = original
                for member, other in zip(members, theirs, strict=False):
                    found = self._pairs(group, member, original, other)
                    pairs.setdefault(original.name, []).append(found)
        for name, parts in pairs.items():
            after, before = torch.unique(torch.cat(parts), dim=0).unbind(1)
            if len(after) and len(after.unique()) == len(before.unique()) == len(after):
                yield _Match(candidates[name], after, before)

    def _pairs(self, group: Group, member: Member, original: Group, other: Member) -> Tensor:
        """[n, 2]: slots in `group` and in `original` of the entries that are in both."""
        entries = self.origin(member.parameter)
        before = self._laid(other, original)[entries]
        slots = torch.arange(group.slots).reshape(group.shape)
        after = member.spread(slots, group, -1, entries.dim()).expand(entries.shape)
        both = torch.stack([after.reshape(-1), before.reshape(-1)], dim=1)
        unique: Tensor = torch.unique(both[(both >= 0).all(1)], dim=0)
        return unique


def _by_place(group: Group) -> dict[tuple[str, int], list[Member]]:
    places: dict[tuple[str, int], list[Member]] = {}
    for member in group.members:
        places.setdefault((member.parameter, member.dim), []).append(member)
    return places
