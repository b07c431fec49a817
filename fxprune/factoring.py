"""From a model to one with layers in factors, in one call."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from torch.fx import GraphModule

from fxprune.allocation import Budget
from fxprune.analysis import Analysis, analyze
from fxprune.capture import trace
from fxprune.costs import cost
from fxprune.costs.factors import FACTOR_COSTS
from fxprune.factorization import DAMPING, candidates, factored, plan_factorization
from fxprune.plans import FactorizationPlan
from fxprune.statistics import Labels, Loss, Statistics


@dataclass(frozen=True)
class LayerRow:
    """What happened to one layer: its weight's shape, and its MACs per sample.

    inputs_kept, outputs_kept  directions that stay; None where all do
    """

    name: str
    shape: tuple[int, ...]
    inputs_kept: int | None
    outputs_kept: int | None
    macs_before: int
    macs_after: int


@dataclass(frozen=True, repr=False)
class FactorizeReport:
    """What factorising changed; print it to read it.

    layers  one row per layer that could become factors, also for those that stayed dense
    left    why other linear layers and convolutions stayed as they are, by name
    macs_before, macs_after              per sample, the factors' own 1×1s counted
    parameters_before, parameters_after  tied ones counted once
    """

    layers: tuple[LayerRow, ...]
    left: Mapping[str, str]
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int

    def __str__(self) -> str:
        if not self._changed:
            return f"NOTHING WAS FACTORISED.\n{self._summary('')}"
        return f"{self._table('simple')}\n{self._summary('')}"

    def to_markdown(self) -> str:
        """The report as Markdown: totals, and the layers that became factors."""
        table = f"\n{self._table('github')}\n" if self._changed else ""
        return f"{self._summary('- ')}\n{table}"

    def to_json(self) -> str:
        """The report as JSON text, every number exact; `from_data` reads it back."""
        return json.dumps(self.as_data(), indent=2)

    def as_data(self) -> dict[str, Any]:
        """The report as plain data: dicts, lists, numbers, texts."""
        layers = [{**vars(row), "shape": list(row.shape)} for row in self.layers]
        return {**vars(self), "layers": layers, "left": dict(self.left)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> FactorizeReport:
        """The report that `as_data` described. Raises TypeError or KeyError if it is none."""
        rows = (LayerRow(**{**row, "shape": tuple(row["shape"])}) for row in data["layers"])
        return cls(**{**data, "layers": tuple(rows), "left": dict(data["left"])})

    @property
    def _changed(self) -> list[LayerRow]:
        return [r for r in self.layers if r.inputs_kept is not None or r.outputs_kept is not None]

    def _summary(self, bullet: str) -> str:
        lines = (
            f"{len(self._changed)} of {len(self.layers)} layers are in factors; {len(self.left)} "
            "others stay as they are.",
            f"MACs: {_change(self.macs_before, self.macs_after)}.",
            f"Parameters: {_change(self.parameters_before, self.parameters_after)}.",
        )
        return "\n".join(bullet + line for line in lines)

    def _table(self, form: str) -> str:
        rows = [
            (
                row.name,
                " x ".join(map(str, row.shape)),
                _kept(row.inputs_kept, row.shape[1]),
                _kept(row.outputs_kept, row.shape[0]),
                f"{row.macs_before:,}",
                f"{row.macs_after:,}",
            )
            for row in self._changed
        ]
        columns = ("layer", "weight", "inputs kept", "outputs kept", "MACs", "after")
        align = ("left", "left", "right", "right", "right", "right")
        return tabulate(rows, columns, form, colalign=align, disable_numparse=True)

    def __repr__(self) -> str:
        return (
            f"FactorizeReport({len(self.layers)} layers, "
            f"{self.macs_before} -> {self.macs_after} MACs)"
        )


def _kept(rank: int | None, size: int) -> str:
    return str(size) if rank is None else f"{rank} of {size}"


def _change(before: int, after: int) -> str:
    return f"{before:,} -> {after:,}" + (f" ({after / before:.1%})" if before else "")


@dataclass(frozen=True, eq=False, repr=False)
class FactorizeResult:
    """What `factorize` returns.

    module    the graph module with layers in factors
    plan      the directions that stay
    analysis  of the original; `analysis.traced` is the captured original
    report    what changed, as a table
    """

    module: GraphModule
    plan: FactorizationPlan
    analysis: Analysis
    report: FactorizeReport

    def __repr__(self) -> str:
        return f"FactorizeResult({self.plan!r}, {self.report!r})"


def factorize(
    model: nn.Module,
    example_inputs: Any,
    method: str = "eigendamage",
    data: Iterable[Any] | Statistics | None = None,
    loss: Loss | None = None,
    labels: Labels = "model",
    *,
    budget: Budget | None = None,
    energy: float | None = None,
    spread: str = "price",
    steps: int = 1,
    damping: float = DAMPING,
    ignore: str | Iterable[str] = (),
    dynamic: Any = None,
) -> FactorizeResult:
    """Replace linear layers and convolutions by cheaper factors of lower rank.

    A convolution becomes 1×1 → core → 1×1, a linear layer or 1×1 convolution two factors; a side
    that keeps all its directions has no 1×1, and a layer that would not become cheaper stays as it
    is. Sizes between layers never change, so pruning composes with it, before or after. Grouped,
    depthwise and transposed convolutions stay as they are, and so do shared weights; the last layer
    is treated like all others, and `ignore` leaves it out.

    method       "eigendamage": directions of the Kronecker-factored Fisher information, by the
                 loss that they cost; needs `data`. "svd": the truncated SVD of the weight as a
                 matrix. "tucker": Tucker-2 of convolutions by HOOI, where it differs.
    data, loss   batches and the loss, as for `score`
    labels       "model" for labels drawn from the model, which the Fisher information is defined
                 by; "empirical" for those of the data
    budget       what the network may cost, MACs or parameters, 1×1s counted: met to within one rank
    energy       instead: each layer keeps this share of its ‖W‖² ("svd", "tucker") or of its
                 predicted loss ("eigendamage"), at the fewest MACs
    spread       how a budget spreads over layers: "price", the least predicted loss for the cost
                 ("svd" and "tucker": squared error relative to each layer's ‖W‖²); "threshold", one
                 threshold on the row and column sums of all layers
    steps        measure again and rotate further that often, on the way to the budget
    damping      of the Kronecker factors, as a share of the product of their mean eigenvalues
    ignore       name patterns of layers, or of modules around them, that stay as they are
    example_inputs, dynamic   as for `trace`

    The model is not modified. Raises TraceError, AnalysisError or PlanError.
    """
    return factorize_analysed(
        analyze(trace(model, example_inputs, dynamic)),
        method,
        data,
        loss,
        labels,
        budget=budget,
        energy=energy,
        spread=spread,
        steps=steps,
        damping=damping,
        ignore=ignore,
    )


def factorize_analysed(
    analysis: Analysis,
    method: str = "eigendamage",
    data: Iterable[Any] | Statistics | None = None,
    loss: Loss | None = None,
    labels: Labels = "model",
    **planning: Any,
) -> FactorizeResult:
    """`factorize` for a graph that is captured and analysed already; keywords as there."""
    plan = plan_factorization(analysis, method, data, loss, labels, **planning)
    module = factored(analysis.traced, plan)
    report = _report(analysis, plan, module, planning.get("ignore", ()))
    return FactorizeResult(module, plan, analysis, report)


def _report(
    analysis: Analysis, plan: FactorizationPlan, module: GraphModule, ignore: str | Iterable[str]
) -> FactorizeReport:
    layers, left = candidates(analysis, ignore)
    before = cost(analysis)
    samples = before.batch
    macs = FACTOR_COSTS["macs"]
    rows, saved = [], 0
    for name, layer in layers.items():
        bases = plan.layers.get(name)
        kept = (None, None) if bases is None else bases.ranks
        dense = int(macs(layer.sizes, torch.tensor(0), torch.tensor(0)))
        left_over = int(macs(layer.sizes, *(torch.tensor(rank or 0) for rank in reversed(kept))))
        saved += dense - left_over
        shape = tuple(layer.module.weight.shape)
        rows.append(LayerRow(name, shape, *kept, dense // samples, left_over // samples))
    return FactorizeReport(
        layers=tuple(rows),
        left=left,
        macs_before=before.macs,
        macs_after=-(-(before.total.macs - saved) // samples),
        parameters_before=sum(p.numel() for p in analysis.traced.parameters()),
        parameters_after=sum(p.numel() for p in module.parameters()),
    )
