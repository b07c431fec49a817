"""Scores: what a criterion says of every unit, checked before anything relies on it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fxprune.criteria import Criterion, bound, criterion_name, find_criterion
from fxprune.criteria.binding import Scorer
from fxprune.errors import NotApplicableError, PlanError
from fxprune.groups import Group
from fxprune.plans import AnalysisLike
from fxprune.statistics import Labels, Loss, Statistics


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
    return score_groups(analysis.groups, analysis, rule, criterion_name(criterion))


def score_groups(
    groups: Sequence[Group], analysis: AnalysisLike, rule: Scorer, name: str
) -> dict[str, Tensor]:
    """What `score` returns, for some of the groups; `name` is the criterion's."""
    given = analysis.parameters.items()
    readonly = MappingProxyType({k: v.detach() if v.requires_grad else v for k, v in given})
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
