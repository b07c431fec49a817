"""`compensate`: the methods by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from fxprune.analysis import Analysis
from fxprune.compensation.obs import obs
from fxprune.compensation.recalibration import batch_norm
from fxprune.compensation.refitting import bias, least_squares
from fxprune.errors import PlanError
from fxprune.plans import PruningPlan
from fxprune.statistics import Labels, Loss, Statistics

METHODS: Mapping[str, Callable[[PruningPlan, Statistics], PruningPlan]] = MappingProxyType(
    {"least_squares": least_squares, "bias": bias, "obs": obs, "batch_norm": batch_norm}
)
"""Name → the same plan with new values for parameters and buffers."""


def compensate(
    plan: PruningPlan,
    analysis: Analysis,
    methods: str | Iterable[str],
    data: Iterable[Any] | Statistics | None,
    loss: Loss | None = None,
    labels: Labels | None = None,
) -> PruningPlan:
    """The plan with new values for parameters, so that what stays makes up for what goes.

    methods        one or several, in this order: each sees what those before it have done
                     "least_squares"  layers that read removed units are refitted to their outputs
                     "bias"           their biases alone: FLAP's step
                     "obs"            layers that lose rows change the others as OBS says, by K-FAC
                     "batch_norm"     batch normalisations get the statistics of their inputs anew
    data           an iterable of batches, or a `Statistics`
    loss, labels   as for `Statistics`; "obs" alone reads them. None for labels from the model.

    Layers that it cannot change are in the plan's notes. Raises PlanError for another method,
    without data, for a plan that gives parameters new values already or is not for this analysis;
    AnalysisError without batches, or for "batch_norm" without batch normalisations.
    """
    names = check_methods(methods, data)
    if plan.values:
        raise PlanError("The plan gives parameters new values already: compensate it once.")
    plan.check_fingerprint(analysis.fingerprint)
    if not isinstance(data, Statistics):
        assert data is not None
        data = Statistics(analysis, data, loss, "model" if labels is None else labels)
    for name in () if plan.is_empty else names:
        plan = METHODS[name](plan, data)
    return plan


def check_methods(methods: str | Iterable[str], data: object) -> tuple[str, ...]:
    """The names of the methods. Raises PlanError unless there are such, and data for them."""
    names = (methods,) if isinstance(methods, str) else tuple(methods)
    for name in names:
        if name not in METHODS:
            known = ", ".join(map(repr, METHODS))
            raise PlanError(f"There is no compensation {name!r}; use None, or some of {known}.")
    if "obs" in names[1:]:
        raise PlanError('"obs" is about the original\'s weights: it comes before other methods.')
    if data is None:
        raise PlanError(f"compensate={methods!r} needs data=, an iterable of batches.")
    return names
