"""From a model to a pruned module in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from fxprune import compensation
from fxprune.allocation import Budget, Limits, plan
from fxprune.analysis import Analysis, analyze
from fxprune.capture import trace
from fxprune.criteria import Criterion
from fxprune.groups import Group
from fxprune.plans import PruningPlan
from fxprune.reports import PruneReport, build_report
from fxprune.rewriter import rewrite
from fxprune.rules.base import Rule
from fxprune.statistics import Labels, Loss, Statistics
from fxprune.timing import compare_latency, measure_latencies


@dataclass(frozen=True, eq=False, repr=False)
class PruneResult:
    """What `prune` returns.

    module    the pruned graph module
    plan      the units that stay
    analysis  the groups of the original; `analysis.traced` is the captured original
    report    what changed, as a table
    """

    module: GraphModule
    plan: PruningPlan
    analysis: Analysis
    report: PruneReport

    def __repr__(self) -> str:
        return f"PruneResult({self.plan!r}, {self.report!r})"


def prune(
    model: nn.Module | ExportedProgram,
    example_inputs: Any,
    sparsity: float | None = None,
    criterion: str | Criterion = "magnitude",
    scope: str = "local",
    groups: Callable[[Group], bool] | None = None,
    dynamic: Any = None,
    strict: bool = False,
    data: Iterable[Any] | Statistics | None = None,
    loss: Loss | None = None,
    labels: Labels | None = None,
    *,
    budget: Budget | None = None,
    ignore: str | Iterable[str] = (),
    round_to: int | None = None,
    limits: Limits | Mapping[str, Limits] | None = None,
    normalise: str = "none",
    latency_file: str | os.PathLike[str] | None = None,
    compensate: str | Sequence[str] | None = None,
    rules: Mapping[str, Rule] | None = None,
) -> PruneResult:
    """Trace, analyse, plan and rewrite: a smaller module that computes what the masked model does.

    model, example_inputs, dynamic      as for `trace`
    strict, rules                       as for `analyze`
    data, loss, labels                  as for `score`
    latency_file                        where `measure_latencies` keeps times; they are measured if
                                        the budget limits latency, and the report compares
    compensate                          None, or how what stays makes up for what goes, by the same
                                        data: "least_squares", "bias", "obs", "batch_norm", or
                                        several; see `compensate`
    all others                          as for `plan`

    The model is not modified. Raises TraceError, AnalysisError, PlanError or RewriteError, and
    warns with NothingPrunedWarning if the sparsity is too small to remove anything.
    """
    if compensate is not None:
        compensation.check_methods(compensate, data)
    analysis = analyze(trace(model, example_inputs, dynamic), strict, rules)
    return prune_analysed(
        analysis,
        example_inputs,
        latency_file,
        compensate,
        criterion=criterion,
        sparsity=sparsity,
        scope=scope,
        groups=groups,
        data=data,
        loss=loss,
        labels=labels,
        budget=budget,
        ignore=ignore,
        round_to=round_to,
        limits=limits,
        normalise=normalise,
    )


def prune_analysed(
    analysis: Analysis,
    example_inputs: Any,
    latency_file: str | os.PathLike[str] | None = None,
    compensate: str | Sequence[str] | None = None,
    data: Iterable[Any] | Statistics | None = None,
    **planning: Any,
) -> PruneResult:
    """What `prune` does with a graph that is captured and analysed already.

    example_inputs, latency_file  are needed for budgets of latency only
    compensate                    as for `prune`
    data, planning                keywords of `plan`
    """
    data = tuple(data) if isinstance(data, Iterator) else data  # it may be read twice
    budget, latencies = planning.get("budget"), None
    if isinstance(budget, Budget) and budget.needs_latencies:
        rounding = planning.get("round_to") or 1
        latencies = measure_latencies(analysis, example_inputs, latency_file, rounding)
    chosen = plan(analysis, **planning, data=data, latencies=latencies)
    if compensate is not None:
        loss, labels = planning.get("loss"), planning.get("labels")
        chosen = compensation.compensate(chosen, analysis, compensate, data, loss, labels)
    module = rewrite(analysis.traced, chosen)
    report = build_report(analysis, chosen, module)
    if latencies is not None:
        latency = compare_latency(analysis, chosen, module, latencies, example_inputs)
        report = replace(report, latency=latency)
    return PruneResult(module, chosen, analysis, report)
