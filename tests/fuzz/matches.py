"""Groups of a pruned network beside those of the original, and two plans as one."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np

import fxprune
from fxprune import Analysis, Group, Member, PlanError, PruningPlan
from tests.fuzz import reference
from tests.fuzz.case import Case


def signature_of(group: Group, contexts: int) -> tuple[Any, ...]:
    """What tells a group before a prune and after it: its places, without its units."""
    members = sorted({(m.parameter, m.dim) for m in group.members if "_index" not in m.parameter})
    return contexts, group.maskable, tuple(members)


def composed_plans(
    case: Case, analysis: Analysis, kept: dict[str, Any]
) -> tuple[PruningPlan, PruningPlan]:
    """A second plan and its composition with the first, without what only the second could say."""
    second = PruningPlan.build(analysis, kept)
    try:
        return second, fxprune.compose(case.plan, second)
    except PlanError:
        merged = [g for g in analysis.groups if g.name in kept and _merges(case, g)]
        if not merged:
            raise
    rest = {name: rows for name, rows in kept.items() if name != merged[0].name}
    return composed_plans(case, analysis, rest)


def _merges(case: Case, group: Group) -> bool:
    """True if units alike those of a later group are in several groups, in none, or in one that
    has or may have other contexts, or other units.
    """
    analysis = case.analysis
    alike = [g for g in analysis.groups if signature_of(g, 1) == signature_of(group, 1)]
    single = any(
        of_single_units(analysis, g)
        or has_other_contexts(case, g)
        or g.contexts < group.contexts  # a slice has become a gather
        for g in alike
    )
    places = {f"{member.parameter}:{member.dim}" for member in group.members}
    lone = not places.isdisjoint(_places_of_lone_units(analysis))
    return len(alike) > 1 or single or lone or not _are_units_of_the_original(case, group)


def _are_units_of_the_original(case: Case, group: Group) -> bool:
    """Whether some group of the original has the units of a later one, in what was left of them."""
    left, tensors = case.keep(case.kept), reference.tensors_of(case.traced)
    for member in group.members:
        if member.parameter not in tensors:
            continue  # an index that the rewrite made
        kept = np.arange(tensors[member.parameter].shape[member.dim])
        if member.parameter in left:
            others = tuple(d for d in range(left[member.parameter].ndim) if d != member.dim)
            kept = kept[left[member.parameter].any(others)]
        units = _indices(member, kept)
        same = (
            _indices(m, np.arange(len(m.unit)), set(kept.tolist()))
            for g in case.analysis.groups
            for m in g.members
            if (m.parameter, m.dim) == (member.parameter, member.dim)
        )
        if not any(units <= known for known in same):
            return False
    return True


def _indices(member: Member, numbers: Any, left: Set[int] | None = None) -> set[frozenset[int]]:
    """Which indices belong to each unit, by their `numbers`; of those `left`, if given."""
    owned: dict[int, set[int]] = {}
    for number, unit in zip(numbers.tolist(), member.unit.tolist(), strict=True):
        if unit >= 0 and (left is None or number in left):
            owned.setdefault(unit, set()).add(number)
    return set(map(frozenset, owned.values()))


def has_other_contexts(case: Case, group: Group) -> bool:
    """True if several dimensions could be the contexts of a group.

    The largest is taken, and pruning may make it another one.
    """
    units = case.analysis.grouped.units
    return any(
        units.get(atom.key, ("",))[0] == group.name and len(around) > 1
        for atom, around in case.allowed_contexts.items()
    )


def _places_of_lone_units(analysis: Analysis) -> set[str]:
    """The first places of the units that are the only ones of their kind, and so in no group."""
    named = {group.name for group in (*analysis.groups, *analysis.grouped.frozen)}
    return {
        name.partition("#")[0] for name, _ in analysis.grouped.units.values() if name not in named
    }


def of_single_units(analysis: Analysis, group: Group) -> bool:
    """True if the group was put together from units that stand alone."""
    return sum(name == group.name for name, _ in analysis.grouped.units.values()) == group.size
