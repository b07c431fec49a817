"""Groups of a pruned network beside those of the original, and two plans as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fxprune
from fxprune import Analysis, Group, PlanError, PruningPlan
from tests.fuzz.case import Case


def signature_of(group: Group, contexts: int) -> tuple[Any, ...]:
    """What tells a group before a prune and after it: its places, without its units."""
    members = sorted({(m.parameter, m.dim) for m in group.members if "_index" not in m.parameter})
    return contexts, group.maskable, tuple(members)


def composed_plans(
    case: Case, analysis: Analysis, kept: Mapping[str, Any]
) -> tuple[PruningPlan, PruningPlan] | None:
    """A second plan and its composition with the first; None if they have none.

    The second is left without the groups that no plan of the original can say: once units are gone
    others may be alike that were not, or have contexts that they had not.
    """
    pair = _composed(case, analysis, kept)
    if pair is None:
        said = {n: rows for n, rows in kept.items() if _composed(case, analysis, {n: rows})}
        pair = _composed(case, analysis, said) if said else None
    return pair


def _composed(
    case: Case, analysis: Analysis, kept: Mapping[str, Any]
) -> tuple[PruningPlan, PruningPlan] | None:
    second = PruningPlan.build(analysis, kept)
    try:
        return second, fxprune.compose(case.plan, second)
    except PlanError:
        return None


def group_of_contexts(analysis: Analysis, group: Group) -> str:
    """The name of the group whose units are the contexts of another one."""
    context = analysis.grouped.contexts.get(group.name)
    return "" if context is None else analysis.grouped.units.get(context.key, ("",))[0]


def has_other_contexts(case: Case, group: Group) -> bool:
    """True if several dimensions could be the contexts of a group.

    The largest is taken, and pruning may make it another one.
    """
    units = case.analysis.grouped.units
    return any(
        units.get(atom.key, ("",))[0] == group.name and len(around) > 1
        for atom, around in case.allowed_contexts.items()
    )


def of_single_units(analysis: Analysis, group: Group) -> bool:
    """True if the group was put together from units that stand alone."""
    return sum(name == group.name for name, _ in analysis.grouped.units.values()) == group.size
