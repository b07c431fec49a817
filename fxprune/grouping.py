"""From solved axes to groups: members, the units of their indices, contexts and nesting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from fxprune.axes import Atom, Axis, Concat, Product, factors_of, find, leaves, segments_of
from fxprune.contexts import contexts
from fxprune.errors import AnalysisError
from fxprune.groups import Group, Member, Role
from fxprune.last_units import last_units
from fxprune.lookups import followed
from fxprune.maskable import flagged_atoms
from fxprune.propagate import Propagation
from fxprune.roles import Roles, roles_of
from fxprune.unit_maps import UnitMaps

_Place = tuple[str, int, tuple[int, ...]]
"""A tensor, a dimension of it, and which factor of which factor of that."""


_ALONE = "every unit is a group by itself, and a group keeps at least one unit"


@dataclass
class _Draft:
    """A group in the making: its atoms (units are numbered through them in order)."""

    atoms: list[Atom]
    name: str = ""
    members: list[tuple[str, int]] = field(default_factory=list)
    context: Atom | None = None

    @property
    def size(self) -> int:
        return sum(atom.size for atom in self.atoms)


@dataclass(frozen=True)
class Grouped:
    """The groups, in the order of the parameters, and where each atom's units are among them.

    units     the key of an atom → its group's name and the number of its first unit there
    contexts  a group's name → the atom whose indices are its contexts
    looked_up  atoms that rows of other tensors stand for, by data
    """

    free: tuple[Group, ...]
    frozen: tuple[Group, ...]
    units: Mapping[int, tuple[str, int]]
    contexts: Mapping[str, Atom]
    looked_up: frozenset[Atom] = frozenset()


def build_groups(propagation: Propagation) -> Grouped:
    """The groups of a propagated graph."""
    return _Grouping(propagation).groups()


class _Grouping:
    def __init__(self, propagation: Propagation) -> None:
        self.propagation = propagation
        self.maps = UnitMaps()
        self.trainable = propagation.trainable
        self.flags = flagged_atoms(propagation)
        self.looked_up = frozenset(followed(propagation.records).values())
        self.layouts = {name: layout for name, layout in propagation.layouts.items() if layout}
        self.usage: dict[Atom, Counter[_Place]] = {}
        self._collect()
        self.drafts = self._draft()
        self.draft_of = {atom: draft for draft in self.drafts for atom in draft.atoms}

    def _collect(self) -> None:
        for name, layout in self.layouts.items():
            for dim, axis in enumerate(layout):
                for atom, level in _levels(axis, ()):
                    self.usage.setdefault(atom, Counter())[(name, dim, level)] += 1

    def _draft(self) -> list[_Draft]:
        """One group per atom; single units with the same memberships form one group.

        Rows and columns of a product stay apart: of each, a unit must be left. Units without which
        a slice could lose all of its own are in no group.
        """
        drafts: list[_Draft] = []
        families: dict[frozenset[tuple[_Place, int]], _Draft] = {}
        for atom, places in self.usage.items():
            if atom.size == 1 and atom.reason is None:
                signature = frozenset(places.items())
                family = families.get(signature)
                if family is None:
                    family = families[signature] = _Draft([])
                    drafts.append(family)
                family.atoms.append(atom)
            else:
                drafts.append(_Draft([atom]))
        several = [family for family in families.values() if family.size > 1]
        stay = last_units(self.propagation, [family.atoms for family in several])
        for family in several:
            drafts += [_Draft([atom]) for atom in family.atoms if atom in stay]
            family.atoms = [atom for atom in family.atoms if atom not in stay]
        drafts = [draft for draft in drafts if draft.atoms]
        taken: Counter[str] = Counter()
        for draft in drafts:
            draft.members = list(dict.fromkeys(p[:2] for p in self.usage[draft.atoms[0]]))
            name, dim = draft.members[0]
            base = f"{name}:{dim}"
            draft.name = base if not taken[base] else f"{base}#{taken[base]}"
            taken[base] += 1
        return drafts

    # -- nesting and contexts ----------------------------------------------------------------------

    def _majors(self) -> dict[Atom, tuple[Atom, ...]]:
        """Per atom, the free atoms before it in every product it occurs in, outermost first."""
        majors: dict[Atom, tuple[Atom, ...]] = {}
        for layout in self.layouts.values():
            for axis in layout:
                for atom, before in _majors_in(axis, ()):
                    known = majors.get(atom)
                    majors[atom] = (
                        before if known is None else tuple(a for a in known if a in before)
                    )
        return majors

    def _choose_contexts(self) -> None:
        """Give each atom the largest context that it may have.

        A context must itself have none. Where only data says which context an entry has, nothing
        could mask it: the atom must be maskable.
        """
        allowed = contexts(self.propagation)
        for draft in self.drafts:
            atom = draft.atoms[0]  # of several, which are single units, none has a context
            for candidate in sorted(allowed.get(atom, ()), key=lambda a: (-a.size, a.key)):
                by_data = candidate in self.looked_up
                if not self.draft_of[candidate].context and not (by_data and atom in self.flags):
                    draft.context = candidate
                    break

    # -- the groups --------------------------------------------------------------------------------

    def groups(self) -> Grouped:
        """Put the drafts, their contexts, roles and flags together."""
        majors = self._majors()
        self._choose_contexts()
        flags = self.flags
        roles = roles_of(self.propagation)
        free: list[Group] = []
        frozen: list[Group] = []
        for draft in self.drafts:
            reason = draft.atoms[0].reason
            if draft.size <= 1:
                continue  # removing a single unit would leave nothing
            if reason is None and not any(name in self.trainable for name, _ in draft.members):
                reason = "only buffers or empty tensors: there is no parameter to prune"
            flag = next((flags[a] for a in draft.atoms if a in flags), None)
            outer = self._outer(draft, majors)
            group = Group(
                name=draft.name,
                size=draft.size,
                contexts=1 if draft.context is None else draft.context.size,
                members=tuple(self._members(draft, roles)),
                maskable=reason is None and flag is None,
                reason=reason,
                outer=outer if reason is None else None,
            )
            (free if reason is None else frozen).append(group)
        frozen += self._ungrouped((*free, *frozen), roles)
        units = {
            key: (draft.name, offset)
            for draft in self.drafts
            for key, offset in _offsets(draft.atoms).items()
        }
        chosen = {draft.name: draft.context for draft in self.drafts if draft.context is not None}
        return Grouped(
            tuple(free),
            tuple(frozen),
            MappingProxyType(units),
            MappingProxyType(chosen),
            self.looked_up,
        )

    def _ungrouped(self, groups: Iterable[Group], roles: Roles) -> Iterator[Group]:
        """The dimensions without a unit in any group."""
        grouped = {(member.parameter, member.dim) for group in groups for member in group.members}
        for name, layout in self.layouts.items():
            for dim, axis in enumerate(layout):
                if axis.size > 1 and (name, dim) not in grouped:
                    role = roles.of(name, dim, next(leaves(axis)))
                    member = Member(name, dim, role, torch.arange(axis.size))
                    yield Group(
                        f"{name}:{dim}", axis.size, members=(member,), reason=_ALONE, maskable=False
                    )

    def _outer(self, draft: _Draft, majors: Mapping[Atom, tuple[Atom, ...]]) -> str | None:
        """The innermost group around this one: a factor before it everywhere, or its context.

        Channels that enter a grouped convolution have a dimension of its weight to themselves:
        only the context tells what they are nested in.
        """
        around = [a for a in majors.get(draft.atoms[0], ()) if self.draft_of[a].size > 1]
        inner = around[-1] if around else draft.context
        free = inner is not None and inner.reason is None
        return self.draft_of[inner].name if inner is not None and free else None

    def _members(self, draft: _Draft, roles: Roles) -> Iterable[Member]:
        offsets = _offsets(draft.atoms)
        for name, dim in draft.members:
            role = roles.of(name, dim, draft.atoms[0])
            layout = self.layouts[name]
            yield from make_members(self.maps, name, layout, dim, role, offsets, draft.context)


def make_members(
    maps: UnitMaps,
    name: str,
    layout: Sequence[Axis],
    dim: int,
    role: Role,
    offsets: Mapping[int, int],
    context: Atom | None,
) -> list[Member]:
    """The memberships of one dimension of a tensor in the group of the atoms `offsets` numbers.

    There are several where an index depends on several of its units: index ``(i, j)`` of an outer
    product ``D*D`` stays iff ``i`` and ``j`` do. Raises AnalysisError if the context is nowhere in
    the tensor.
    """
    units = maps.of(layout[dim], offsets)
    if context is None:
        return [Member(name, dim, role, unit) for unit in units]
    others = (d for d in range(len(layout)) if d != dim)
    for candidate in (dim, *others):
        if context in leaves(layout[candidate]):
            (index,) = maps.of(layout[candidate], {context.key: 0})
            if candidate == dim and any(bool((index[unit >= 0] < 0).any()) for unit in units):
                continue  # it stands beside other entries of the dimension only
            return [Member(name, dim, role, unit, index, candidate) for unit in units]
    raise AnalysisError(
        f"{name!r}: dimension {dim} has units per context, but no context {context!r}."
    )


def _levels(axis: Axis, level: tuple[int, ...]) -> Iterator[tuple[Atom, tuple[int, ...]]]:
    """Each atom occurrence of a dimension, and which factor it is in the products around it."""
    axis = find(axis)
    if isinstance(axis, Concat):
        for segment in segments_of(axis):
            yield from _levels(segment, level)
    elif isinstance(axis, Product):
        for position, factor in enumerate(factors_of(axis)):
            yield from _levels(factor, (*level, position))
    else:
        for atom in leaves(axis):
            yield atom, level


def _offsets(atoms: Sequence[Atom]) -> dict[int, int]:
    offsets, start = {}, 0
    for atom in atoms:
        offsets[atom.key] = start
        start += atom.size
    return offsets


def _majors_in(axis: Axis, before: tuple[Atom, ...]) -> Iterable[tuple[Atom, tuple[Atom, ...]]]:
    """Each atom occurrence of a dimension, and the free ones before it in its products."""
    axis = find(axis)
    if isinstance(axis, Concat):
        for segment in segments_of(axis):
            yield from _majors_in(segment, before)
    elif isinstance(axis, Product):
        for factor in factors_of(axis):
            yield from _majors_in(factor, before)
            before = before + tuple(a for a in leaves(factor) if a.reason is None)
    else:
        for atom in leaves(axis):
            yield atom, before
