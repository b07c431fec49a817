"""Which groups may lose units at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from fxprune.allocation.limits import ignored
from fxprune.errors import PlanError
from fxprune.groups import Group, innermost
from fxprune.plans import AnalysisLike


def choose_groups(
    analysis: AnalysisLike, predicate: Callable[[Group], bool] | None, ignore: str | Iterable[str]
) -> tuple[Group, ...]:
    """The groups that may lose units.

    Raises PlanError if there are none, and for arguments that make no sense.
    """
    if not analysis.groups:
        raise PlanError(f"Nothing in this graph may be pruned{_frozen_reasons(analysis)}")
    chosen = _selected(analysis, predicate)
    spared = ignored(ignore, analysis)
    left = tuple(group for group in chosen if group.name not in spared)
    if not left:
        raise PlanError(f"ignore= names all of the {len(chosen)} groups that could be pruned.")
    return left


def _selected(
    analysis: AnalysisLike, predicate: Callable[[Group], bool] | None
) -> tuple[Group, ...]:
    """The groups that `groups=` says; without it, of nested groups the innermost."""
    if predicate is None:
        return innermost(analysis.groups)
    if not callable(predicate):
        raise PlanError(
            "groups= is a function that takes a group and says whether it may be pruned, such as "
            f"lambda group: group.maskable; got {predicate!r}."
        )
    chosen = tuple(group for group in analysis.groups if predicate(group))
    if not chosen:
        names = ", ".join(repr(group.name) for group in analysis.groups[:3])
        raise PlanError(
            f"groups= selects none of the {len(analysis.groups)} prunable groups, such as {names}."
        )
    return chosen


def _frozen_reasons(analysis: AnalysisLike) -> str:
    """The reasons why groups are frozen, the most frequent ones first."""
    reasons = Counter(group.reason for group in analysis.frozen).most_common()
    if not reasons:
        return ": it has no groups of coupled parameter dimensions."
    shown = "".join(f"\n  {count} x {reason}" for reason, count in reasons[:5])
    more = f"\n  and {len(reasons) - 5} other reasons" if len(reasons) > 5 else ""
    return f": all of its {len(analysis.frozen)} groups are frozen, because of{shown}{more}"
