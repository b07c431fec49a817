"""Passes in torch.fx's own convention: GraphModule in, PassResult out.

They go into torch's PassManager (`torch.fx.passes.infra.pass_manager`) with other people's passes.
`Capture` comes first: all others require a graph that fxprune captured. None modifies the module
that it is given. torch's PassBase checks `ensures` on the module that went in; these check what
comes out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune import compensation
from fxprune.analysis import Analysis, analysis_of
from fxprune.capture import trace
from fxprune.drivers import prune_analysed
from fxprune.equivalence import EquivalenceReport, verify
from fxprune.errors import AnalysisError, PlanError, RewriteError, VerifyError
from fxprune.factorization import factored, plan_factorization
from fxprune.plans import FactorizationPlan, PruningPlan
from fxprune.plans.values import assign
from fxprune.rewriter import rewrite
from fxprune.slicing import Slicer
from fxprune.walks import named_tensors

__all__ = ["Apply", "Capture", "Compensate", "Factorize", "Prune", "Recalibrate", "Verify"]


class _Pass(PassBase):
    """Checks `requires` on what goes in and `ensures` on what comes out."""

    def __call__(self, graph_module: GraphModule) -> PassResult:
        self.requires(graph_module)
        result = self.call(graph_module)
        self.ensures(result.graph_module)
        return result

    def call(self, graph_module: GraphModule) -> PassResult:
        raise NotImplementedError

    def requires(self, graph_module: GraphModule) -> None:
        """Raise AnalysisError unless fxprune captured the graph."""
        if not isinstance(graph_module, GraphModule) or "fxprune" not in graph_module.meta:
            raise AnalysisError(
                f"{type(self).__name__} needs a graph that fxprune captured, with what it recorded "
                "in .meta: put fxprune.passes.Capture(example_inputs) before it, and after passes "
                "that make a new GraphModule without .meta."
            )

    def ensures(self, graph_module: GraphModule) -> None:
        """Check the graph's invariants."""
        graph_module.graph.lint()


class Capture(_Pass):
    """Capture a GraphModule, or any module, anew: what all other passes require."""

    def __init__(self, example_inputs: Any, dynamic: Any = None) -> None:
        self._arguments = example_inputs, dynamic

    def requires(self, graph_module: GraphModule) -> None:
        """Nothing: `fxprune.trace` says what it cannot capture."""

    def call(self, graph_module: GraphModule) -> PassResult:
        """The captured graph."""
        return PassResult(trace(graph_module, *self._arguments), True)


class _Removal(_Pass):
    """A pass that removes units; remembers what it did for `Compensate` and `Verify`.

    analysis  of the graph that went in
    plan      the units that stay
    """

    analysis: Analysis | None = None
    plan: PruningPlan | None = None

    def ensures(self, graph_module: GraphModule) -> None:
        """Raise RewriteError unless every tensor has as many entries as the plan leaves."""
        super().ensures(graph_module)
        _, plan = self.done("ensures")
        tensors = dict(named_tensors(graph_module))
        for name, mask in plan.masks().items():
            if name in tensors and tensors[name].numel() != int(mask.sum()):
                raise RewriteError(
                    f"{name} has {tensors[name].numel()} entries, and the plan leaves "
                    f"{int(mask.sum())}."
                )

    def done(self, who: str) -> tuple[Analysis, PruningPlan]:
        """The analysis and the plan; raises PlanError before the pass has run."""
        if self.analysis is None or self.plan is None:
            raise PlanError(f"{who} comes after {type(self).__name__}, which has not run yet.")
        return self.analysis, self.plan


class Prune(_Removal):
    """Choose units and remove them.

    options  keywords of `fxprune.plan`, and `example_inputs` and `latency_file` for budgets of
             latency

    Afterwards `.report` says what changed.
    """

    def __init__(self, **options: Any) -> None:
        self._options = {"example_inputs": None, **options}
        self.report: Any = None

    def call(self, graph_module: GraphModule) -> PassResult:
        """The pruned graph."""
        result = prune_analysed(analysis_of(graph_module), **self._options)
        self.analysis, self.plan, self.report = result.analysis, result.plan, result.report
        return PassResult(result.module, not result.plan.is_empty)


class Apply(_Removal):
    """Remove what a plan says; the plan, or its JSON text, must be for the graph that goes in."""

    def __init__(self, plan: PruningPlan | str) -> None:
        self._given = plan

    def call(self, graph_module: GraphModule) -> PassResult:
        """The pruned graph."""
        analysis, plan = analysis_of(graph_module), self._given
        if isinstance(plan, str):
            plan = PruningPlan.from_json(plan, analysis)
        self.analysis, self.plan = analysis, plan
        return PassResult(rewrite(graph_module, plan), not plan.is_empty)


class Factorize(_Pass):
    """Put layers into factors. `options` are keywords of `plan_factorization`, `method` first."""

    def __init__(self, method: str = "eigendamage", **options: Any) -> None:
        self._method, self._options = method, options
        self.plan: FactorizationPlan | None = None

    def call(self, graph_module: GraphModule) -> PassResult:
        """The graph with layers in factors."""
        analysis = analysis_of(graph_module)
        self.plan = plan_factorization(analysis, self._method, **self._options)
        return PassResult(factored(graph_module, self.plan), True)


class Compensate(_Removal):
    """Let what stays take over what the units that another pass removed contributed.

    removal  the pass that removed units, `Prune` or `Apply`
    data, methods   as for `fxprune.compensate`

    Afterwards `.plan` has the new values, and `Verify` takes this pass for the removal. Raises
    PlanError if a pass in between has taken away a parameter that gets new values.
    """

    def __init__(
        self, removal: _Removal, data: Iterable[Any], methods: str | Iterable[str] = "bias"
    ) -> None:
        self._removal, self._data, self._methods = removal, data, methods

    def call(self, graph_module: GraphModule) -> PassResult:
        """A copy with new values."""
        self.analysis, plan = self._removal.done("Compensate")
        self.plan = compensation.compensate(plan, self.analysis, self._methods, self._data)
        module = _copied(graph_module)
        named = dict(named_tensors(module))
        for name, value in Slicer(self.plan).values().items():
            if name not in self.plan.added and name not in named:
                raise PlanError(f"The graph has no {name!r} any more: put Compensate before.")
            assign(module, name, value)
        return PassResult(module, bool(self.plan.values))


class Recalibrate(_Pass):
    """Measure the running statistics of batch normalisations anew."""

    def __init__(self, data: Iterable[Any]) -> None:
        self._data = data

    def call(self, graph_module: GraphModule) -> PassResult:
        """A copy with new running statistics."""
        module = _copied(graph_module)
        compensation.recalibrate(module, self._data)
        return PassResult(module, True)


class Verify(_Pass):
    """Check that the graph computes what the masked original does; it is not changed.

    removal  the pass that removed units, `Prune` or `Apply`
    inputs, dtype, tolerance   as for `fxprune.verify`

    Other people's passes may run in between, if they keep the inputs and what is computed. Raises
    VerifyError if it does not hold; afterwards `.report` is the proof.
    """

    def __init__(
        self,
        removal: _Removal,
        inputs: Any,
        dtype: torch.dtype | None = None,
        tolerance: float | None = None,
    ) -> None:
        self._removal, self._inputs = removal, inputs
        self._options = {"dtype": dtype, "tolerance": tolerance}
        self.report: EquivalenceReport | None = None

    def requires(self, graph_module: GraphModule) -> None:
        """Raise PlanError unless the other pass has run."""
        self._removal.done("Verify")

    def call(self, graph_module: GraphModule) -> PassResult:
        """The graph as it is."""
        analysis, plan = self._removal.done("Verify")
        self.report = verify(
            analysis.traced,
            plan,
            graph_module,
            self._inputs,
            **self._options,  # type: ignore
        )
        if not self.report.ok:
            raise VerifyError(str(self.report))
        return PassResult(graph_module, False)


def _copied(module: GraphModule) -> GraphModule:
    """A copy with parameters of its own."""
    clone = copy.deepcopy(module)
    assert isinstance(clone, GraphModule)
    return clone
