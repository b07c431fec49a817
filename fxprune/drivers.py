"""From a model to a pruned module in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.fx import GraphModule

from fxprune.allocation import Budget, Limits, plan
from fxprune.analysis import Analysis, analyze
from fxprune.capture import trace
from fxprune.criteria import Criterion
from fxprune.groups import Group
from fxprune.plans import PruningPlan
from fxprune.rewriter import rewrite
from fxprune.statistics import Labels, Loss, Statistics


@dataclass(frozen=True)
class GroupRow:
    """What happened to one group: its units, and the parameter entries that its units own.

    Entries that two groups share, as a convolution's input and output channels do, count in both.
    """

    name: str
    contexts: int
    units_before: int
    units_after: int
    parameters_before: int
    parameters_after: int
    maskable: bool


@dataclass(frozen=True, repr=False)
class PruneReport:
    """What pruning changed; print it to read it.

    groups             one row per prunable group, also for those that lost nothing
    frozen             number of groups that may not be pruned
    parameters_before  number of parameter entries of the original, tied ones counted once
    parameters_after   the same of the pruned module
    """

    groups: tuple[GroupRow, ...]
    frozen: int
    parameters_before: int
    parameters_after: int

    def __str__(self) -> str:
        cut = [row for row in self.groups if row.units_after < row.units_before]
        after, before = self.parameters_after, self.parameters_before
        share = f" ({after / before:.1%})" if before else ""
        total = (
            f"{len(cut)} of {len(self.groups)} prunable groups are smaller; {self.frozen} groups "
            f"are frozen.\nParameters: {before:,} -> {after:,}{share}."
        )
        if not cut:
            return f"NOTHING WAS PRUNED.\n{total}"
        rows = [
            (
                row.name,
                f"{row.contexts} x " * (row.contexts > 1) + f"{row.units_before}",
                f"{row.contexts} x " * (row.contexts > 1) + f"{row.units_after}",
                f"{row.parameters_before:,}",
                f"{row.parameters_after:,}",
                "yes" if row.maskable else "no",
            )
            for row in cut
        ]
        columns = ("group", "units", "kept", "parameters", "after", "maskable")
        align = ("left", "right", "right", "right", "right", "left")
        return f"{tabulate(rows, columns, colalign=align, disable_numparse=True)}\n{total}"

    def __repr__(self) -> str:
        return (
            f"PruneReport({len(self.groups)} groups, "
            f"{self.parameters_before} -> {self.parameters_after} parameters)"
        )


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
    model: nn.Module,
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
) -> PruneResult:
    """Trace, analyse, plan and rewrite: a smaller module that computes what the masked model does.

    example_inputs, dynamic             as for `trace`
    strict                              as for `analyze`
    data, loss, labels                  as for `score`
    all others                          as for `plan`

    The model is not modified. Raises TraceError, AnalysisError, PlanError or RewriteError, and
    warns with NothingPrunedWarning if the sparsity is too small to remove anything.
    """
    traced = trace(model, example_inputs, dynamic)
    analysis = analyze(traced, strict=strict)
    chosen = plan(
        analysis,
        criterion,
        sparsity,
        scope,
        groups,
        data,
        loss,
        labels,
        budget=budget,
        ignore=ignore,
        round_to=round_to,
        limits=limits,
        normalise=normalise,
    )
    module = rewrite(traced, chosen)
    return PruneResult(module, chosen, analysis, build_report(analysis, chosen, module))


def build_report(analysis: Analysis, chosen: PruningPlan, pruned: nn.Module) -> PruneReport:
    """Compare the analysed graph with the module that a plan made of it."""
    masks = chosen.masks()
    names = {name for name, _ in analysis.traced.named_parameters()}
    return PruneReport(
        groups=tuple(_row(group, chosen, masks, names) for group in analysis.groups),
        frozen=len(analysis.frozen),
        parameters_before=sum(p.numel() for p in analysis.traced.parameters()),
        parameters_after=sum(p.numel() for p in pruned.parameters()),
    )


def _row(
    group: Group, chosen: PruningPlan, masks: Mapping[str, Tensor], names: Set[str]
) -> GroupRow:
    owned: dict[str, Tensor] = {}
    every = torch.ones(group.shape, dtype=torch.bool)
    for member in group.members:
        if member.parameter in names:  # buffers are no parameters
            shape = chosen.shapes[member.parameter]
            mine = member.spread(every, group, fill=False, rank=len(shape)).expand(shape)
            known = owned.get(member.parameter)
            owned[member.parameter] = mine if known is None else known | mine
    left = [mask & masks[name] if name in masks else mask for name, mask in owned.items()]
    return GroupRow(
        name=group.name,
        contexts=group.contexts,
        units_before=group.size,
        units_after=int(chosen.kept(group).shape[-1]),
        parameters_before=sum(int(mask.sum()) for mask in owned.values()),
        parameters_after=sum(int(mask.sum()) for mask in left),
        maskable=group.maskable,
    )
