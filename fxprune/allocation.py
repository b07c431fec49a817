"""How a cut spreads over groups: from scores and a sparsity to a plan."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from numbers import Real
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fxprune.criteria import Criterion, bound, criterion_name, find_criterion
from fxprune.criteria.binding import Scorer
from fxprune.errors import NotApplicableError, PlanError
from fxprune.groups import Group
from fxprune.plans import AnalysisLike, PruningPlan
from fxprune.plans.base import short
from fxprune.ranking import mean_slots, removal_order
from fxprune.statistics import Labels, Loss, Statistics

Scores = Mapping[str, Tensor]


class NothingPrunedWarning(UserWarning):
    """A plan was asked for and it removes nothing."""


class LeftWholeWarning(UserWarning):
    """A criterion does not apply to some groups: they have no scores and lose no units."""


def score(
    analysis: AnalysisLike,
    criterion: str | Criterion = "magnitude",
    data: Iterable[Any] | Statistics | None = None,
    loss: Loss | None = None,
    labels: Labels | None = None,
) -> dict[str, Tensor]:
    """The score of every unit of every prunable group, higher = keep.

    criterion  a name; or a callable `(group, parameters) -> Tensor`, where `parameters` maps the
               names of parameters and buffers to detached tensors; or an object with `requires` and
               `score(group, statistics)`, which needs data
    data       an iterable of batches: `(inputs, target)`, a mapping of inputs by name, or a tensor;
               or a `Statistics`, which several criteria can share
    loss       `loss(output, target)`, or `loss(output, batch)` for batches that are no pairs: the
               mean over samples. None for cross-entropy with class indices.
    labels     "empirical" or "model": the data's, or drawn from the model's output. None for the
               criterion's own default

    Returns {group name: Tensor} of shape [size], or [contexts, size] with several contexts. Groups
    that the criterion does not apply to (it raises NotApplicableError) are left out, and a
    LeftWholeWarning names them. Raises PlanError if it applies to none, for an unknown criterion,
    and for scores that are no tensor, have another shape, are complex, or are NaN or infinite.
    """
    rule = bound(find_criterion(criterion), analysis, data, loss, labels)
    return _score(analysis.groups, analysis, rule, criterion_name(criterion))


def plan(
    analysis: AnalysisLike,
    criterion: str | Criterion = "magnitude",
    sparsity: float | None = None,
    scope: str = "local",
    groups: Callable[[Group], bool] | None = None,
    data: Iterable[Any] | Statistics | None = None,
    loss: Loss | None = None,
    labels: Labels | None = None,
) -> PruningPlan:
    """Decide which units go: those of the lowest score.

    criterion  as for `score`
    sparsity   the fraction of units to remove, in [0, 1)
    scope      "local": every group loses floor(sparsity * size) units.
               "global": all groups together lose floor(sparsity * sum of sizes), the lowest scores
               first, whichever group they are in.
    groups     which groups may lose units. Without it, of nested groups only the innermost do, so
               that a sparsity of 0.5 does not leave a quarter.
    data, loss, labels    as for `score`

    At least one unit stays in every group. Of equal scores the lower index stays; between groups,
    equal scores go from the group that comes first in `analysis.groups`.

    A group with several contexts loses equally many units in each, as tensors must stay
    rectangular. Its size counts once: the global ranking sees one slot per unit of a context, and
    slot j scores the mean over the contexts of each context's j-th lowest score. Removing j slots
    removes the j lowest units of every context.

    Groups that the criterion does not apply to are left whole, as `score` says.

    Warns with NothingPrunedWarning if the sparsity is too small to remove anything. Raises
    PlanError if nothing may be pruned and for arguments or scores that make no sense.
    """
    fraction = _sparsity(sparsity)
    if scope not in SCOPES:
        raise PlanError(f"There is no scope {scope!r}; use one of {', '.join(sorted(SCOPES))}.")
    find_criterion(criterion)  # refuse a wrong name before looking at the groups
    chosen = _select(analysis, groups)
    rule = bound(find_criterion(criterion), analysis, data, loss, labels)
    scores = _score(chosen, analysis, rule, criterion_name(criterion))
    chosen = tuple(group for group in chosen if group.name in scores)
    order = {group.name: removal_order(scores[group.name]) for group in chosen}
    counts = SCOPES[scope](chosen, scores, fraction)
    if not any(counts.values()):
        warnings.warn(_nothing(chosen, fraction, scope), NothingPrunedWarning, stacklevel=2)
    kept = {
        name: order[name][..., count:].sort(dim=-1).values.tolist()
        for name, count in counts.items()
        if count
    }
    return PruningPlan.build(analysis, kept, criterion_name(criterion), fraction, scope)


def _sparsity(sparsity: Any) -> float:
    if sparsity is None:
        raise PlanError(
            "How much should go? Pass sparsity=, the fraction of units to remove: for example 0.5."
        )
    is_number = isinstance(sparsity, Real) and not isinstance(sparsity, bool)
    if not is_number:
        raise PlanError(
            f"sparsity must be a number in [0, 1), the fraction of units to remove; got "
            f"{sparsity!r}, a {type(sparsity).__name__}."
        )
    if not 0 <= sparsity < 1:  # NaN compares false
        raise PlanError(
            "sparsity is the fraction of units to remove and must lie in [0, 1); got "
            f"{short(sparsity)}."
        )
    return float(sparsity)


def _select(analysis: AnalysisLike, predicate: Callable[[Group], bool] | None) -> tuple[Group, ...]:
    """The groups that may lose units."""
    if not analysis.groups:
        raise PlanError(f"Nothing in this graph may be pruned{_frozen_reasons(analysis)}")
    if predicate is None:
        outer = {group.outer for group in analysis.groups}
        return tuple(group for group in analysis.groups if group.name not in outer)
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


def _score(
    groups: Sequence[Group], analysis: AnalysisLike, rule: Scorer, name: str
) -> dict[str, Tensor]:
    readonly = MappingProxyType({key: value.detach() for key, value in analysis.parameters.items()})
    scores: dict[str, Tensor] = {}
    whole: dict[str, str] = {}
    for group in groups:
        try:
            scores[group.name] = _checked(group, rule(group, readonly), name)
        except NotApplicableError as reason:
            whole[group.name] = str(reason)
    if whole:
        _report_whole(name, whole, len(groups))
    return scores


def _report_whole(criterion: str, whole: Mapping[str, str], groups: int) -> None:
    """Say which groups have no scores and why; PlanError if that is all of them."""
    reasons = Counter(whole.values()).most_common()
    shown = "".join(f"\n  {count} x {reason}" for reason, count in reasons[:5])
    if len(whole) == groups:
        raise PlanError(
            f"Criterion {criterion!r} applies to none of the {groups} groups:{shown}\n"
            "Use another criterion, such as 'magnitude'."
        )
    names = ", ".join(repr(name) for name in list(whole)[:5])
    more = f" and {len(whole) - 5} more" if len(whole) > 5 else ""
    warnings.warn(
        f"{len(whole)} of {groups} groups are left whole, because criterion {criterion!r} does not "
        f"apply to them:{shown}\nThey are {names}{more}.",
        LeftWholeWarning,
        stacklevel=4,
    )


def _checked(group: Group, scores: object, criterion: str) -> Tensor:
    where = f"Criterion {criterion!r}, group {group.name!r}"
    if not isinstance(scores, Tensor):
        raise PlanError(
            f"{where}: the scores must be a tensor of shape {group.shape}, not a "
            f"{type(scores).__name__}."
        )
    if tuple(scores.shape) != group.shape:
        raise PlanError(
            f"{where}: the scores have shape {tuple(scores.shape)}, expected {group.shape}: "
            f"{'one per unit' if group.contexts == 1 else 'one per context and unit'}."
        )
    if scores.is_meta:
        raise PlanError(
            f"{where}: the scores are on the meta device and have no values. Load the weights "
            "before planning, or use a criterion that does not read them, such as 'random'."
        )
    if scores.is_complex():
        raise PlanError(f"{where}: the scores must be real numbers, not {scores.dtype}.")
    wrong = int((~torch.isfinite(scores)).sum())
    if wrong:
        nans = int(torch.isnan(scores).sum())
        raise PlanError(
            f"{where}: {wrong} of {scores.numel()} scores are not finite ({nans} NaN, "
            f"{wrong - nans} infinite). Look for such values in the group's parameters."
        )
    return scores.detach()


def _share(sparsity: float, size: int) -> int:
    """floor(sparsity * size) for the number that the float stands for: 0.29 of 100 is 29, not 28.

    A float stands for every number that rounds to it; the largest of them counts. Below 1 they all
    are less than 1, so at least one of `size` always stays.
    """
    return math.floor((Fraction(sparsity) + Fraction(math.ulp(sparsity)) / 2) * size)


def _local(groups: Sequence[Group], scores: Scores, sparsity: float) -> dict[str, int]:
    return {group.name: _share(sparsity, group.size) for group in groups}


def _global(groups: Sequence[Group], scores: Scores, sparsity: float) -> dict[str, int]:
    target = _share(sparsity, sum(group.size for group in groups))
    # A group's best slot is no candidate: it must stay. The others of a group are in ascending
    # order and the sort is stable, so a group's slots fall from its lowest one upwards.
    slots = torch.cat([mean_slots(scores[group.name])[:-1] for group in groups])
    owner = torch.cat([torch.full((group.size - 1,), i) for i, group in enumerate(groups)])
    fallen = owner[slots.argsort(stable=True)[:target]]
    counts = torch.bincount(fallen, minlength=len(groups)).tolist()
    return {group.name: count for group, count in zip(groups, counts, strict=True)}


SCOPES: Mapping[str, Callable[[Sequence[Group], Scores, float], dict[str, int]]] = MappingProxyType(
    {"local": _local, "global": _global}
)


def _nothing(groups: Sequence[Group], sparsity: float, scope: str) -> str:
    sizes = [group.size for group in groups]
    return (
        f"NOTHING IS PRUNED: sparsity {sparsity:g} with scope {scope!r} removes no unit from "
        f"{len(groups)} groups of {min(sizes)} to {max(sizes)} units. Ask for a larger sparsity."
    )
