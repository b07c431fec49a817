"""`plan`: which units go."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from fxprune.allocation.budgets import Budget
from fxprune.allocation.choice import choose_groups
from fxprune.allocation.cut import Cut, Goal
from fxprune.allocation.limits import Limits, limits_of
from fxprune.allocation.normalise import find_normaliser
from fxprune.allocation.scopes import find_scope
from fxprune.allocation.scores import score_groups
from fxprune.costs.latency import Latencies
from fxprune.criteria import Criterion, Joint, Scorer, bound, criterion_name, find_criterion
from fxprune.groups import Group
from fxprune.plans import AnalysisLike, PruningPlan
from fxprune.ranking import first_to_go
from fxprune.statistics import Labels, Loss, Statistics


class NothingPrunedWarning(UserWarning):
    """A plan was asked for and it removes nothing."""


def plan(
    analysis: AnalysisLike,
    criterion: str | Criterion = "magnitude",
    sparsity: float | None = None,
    scope: str = "local",
    groups: Callable[[Group], bool] | None = None,
    data: Iterable[Any] | Statistics | None = None,
    loss: Loss | None = None,
    labels: Labels | None = None,
    *,
    budget: Budget | None = None,
    ignore: str | Iterable[str] = (),
    round_to: int | None = None,
    limits: Limits | Mapping[str, Limits] | None = None,
    normalise: str = "none",
    latencies: Latencies | None = None,
) -> PruningPlan:
    """Decide which units go, lowest scores first, until a sparsity or a budget is reached.

    criterion  as for `score`
    sparsity   the fraction of units to remove, in [0, 1), rounded down; or
    budget     what the result may cost, met to within one unit
    latencies  what `measure_latencies` returned, for budgets of latency
    scope      "local": every group loses the same fraction of its units. "global": the lowest
               scores of all groups go first. "isomorphic": the same among groups of the same
               structure, and each kind loses the same fraction.
    groups     which groups may lose units. Without it, of nested groups only the innermost do, so
               that a sparsity of 0.5 does not leave a quarter.
    data, loss, labels    as for `score`
    ignore     name patterns of groups, modules or parameters whose units all stay
    round_to   the units that stay are a multiple of this, in each context: 8 for tensor cores
    limits     `Limits` for all groups, or by name pattern: later patterns count more
    normalise  how scores of different groups are made comparable: "none", "mean", "max" or
               "standardise"

    At least one unit stays in every group. Of equal scores the lower index stays; between groups,
    equal scores go from the group that comes first in `analysis.groups`. A group with several
    contexts loses equally many units in each, as tensors must stay rectangular; it counts as one
    slot per unit of a context, and slot j scores the mean of each context's j-th lowest score.

    Groups that the criterion does not apply to are left whole, as `score` says. Limits that bind
    are in the plan's `notes`. Warns with NothingPrunedWarning if nothing goes. Raises PlanError if
    nothing may be pruned, if a budget cannot be met, and for arguments or scores without sense.
    """
    goal = Goal(sparsity, budget, latencies)
    order, normaliser = find_scope(scope), find_normaliser(normalise)
    found = find_criterion(criterion)  # refuse a wrong name before looking at the groups
    chosen = choose_groups(analysis, groups, ignore)
    rule = bound(found, analysis, data, loss, labels)
    scores = score_groups(chosen, analysis, rule, criterion_name(criterion))
    chosen = tuple(group for group in chosen if group.name in scores)
    bounds = limits_of(chosen, analysis, limits, round_to)
    cut = Cut(analysis, chosen, scores, bounds, normaliser, order, goal)
    if not any(cut.counts):
        warnings.warn(_nothing(chosen, goal, scope), NothingPrunedWarning, stacklevel=2)
    record = criterion_name(criterion), goal.sparsity, scope, goal.text, cut.notes
    return PruningPlan.build(analysis, _kept(rule, cut), *record)


def _kept(rule: Scorer, cut: Cut) -> dict[str, Any]:
    """The units that stay of each group that loses any: its rows of indices."""
    removed = {
        group.name: first_to_go(cut.scores[group.name], count)
        for group, count in zip(cut.groups, cut.counts, strict=True)
        if count
    }
    if isinstance(rule, Joint):
        removed = dict(rule.select(removed))
    return {name: _rows(~gone) for name, gone in removed.items()}


def _rows(kept: Tensor) -> Any:
    """The indices of what is kept, a list for each context."""
    units = kept.nonzero()[:, -1]
    return units.reshape(*kept.shape[:-1], -1).tolist()


def _nothing(groups: tuple[Group, ...], goal: Goal, scope: str) -> str:
    sizes = [group.size for group in groups]
    advice = "Ask for a larger sparsity" if goal.budget is None else "Ask for a smaller budget"
    return (
        f"NOTHING IS PRUNED: {goal} with scope {scope!r} removes no unit from "
        f"{len(groups)} groups of {min(sizes)} to {max(sizes)} units. {advice}, or look at the "
        "limits."
    )
