"""`verify`: does the pruned graph compute what the original computes without the removed units?

For a plan that removes units the stronger one of two laws that applies is checked on the user's
inputs:

* *masked equivalence*, where all pruned groups are maskable: the pruned module equals the original
  with the plan's new values, if it has any, and then the removed entries of its parameters set
  to zero. It needs nothing but the two modules and
  the masks.
* *masked interpretation*, for all groups: the original is interpreted op by op at full size;
  removed positions are set to zero after every op, and ops that normalise over a pruned axis see
  the kept positions only.

For a plan that makes layers factors the law is *dense reconstruction*: the module equals the
original with each such weight replaced by the product of its factors, and that product is what the
plan leaves of the weight.

On failure both graphs are compared node by node, and the first node whose kept entries differ is
named.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from fxprune.analysis import Analysis, analysis_of
from fxprune.casts import widen_casts
from fxprune.discrepancy import max_error, tensors_in, where_defined
from fxprune.draws import draws, same_draws
from fxprune.errors import AnalysisError, FxpruneError, VerifyError
from fxprune.factorization.emission import product_of_factors
from fxprune.inputs import bind_inputs
from fxprune.interpretation import Interpretation, NodeValues
from fxprune.plans import FactorizationPlan, PruningPlan
from fxprune.plans.values import assign
from fxprune.propagate import TensorAxes, propagate
from fxprune.resizing import carried_over
from fxprune.rules.base import Layout
from fxprune.selection import Selection
from fxprune.walks import named_tensors

_Drawing: TypeAlias = Callable[[], AbstractContextManager[None]]

MASKED_EQUIVALENCE = "masked equivalence"
MASKED_INTERPRETATION = "masked interpretation"
DENSE_RECONSTRUCTION = "dense reconstruction"

_TOLERANCES: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
)

_SILENT = (
    "; but all outputs are 0 on these inputs, which shows nothing: take trained weights, larger "
    "ones, or other inputs"
)

_UNDEFINED = (
    "the original itself computes NaN there, and nothing equals NaN; take other inputs, or another "
    "dtype"
)


@dataclass(frozen=True)
class EquivalenceReport:
    """The outcome of `verify`.

    ok              max_error is within the tolerance
    max_error       max|a-b| / max|b| per output tensor, the largest over the outputs; inf for NaN
    first_mismatch  the first node whose result differs, and how; None if ok
    law             "masked equivalence", "masked interpretation" or "dense reconstruction"
    tolerance       the largest error that counts as equal
    silent          the original returns nothing but zeros on these inputs, as a network may whose
                    weights were drawn too small: the law holds, and shows nothing
    """

    ok: bool
    max_error: float
    first_mismatch: str | None
    law: str
    tolerance: float
    silent: bool = False

    def __str__(self) -> str:
        verdict = "holds" if self.ok else f"FAILS, first at {self.first_mismatch}"
        text = (
            f"{self.law} {verdict}: max relative error {self.max_error:.1e} "
            f"(tolerance {self.tolerance:.0e})"
        )
        return text + _SILENT if self.silent else text


def verify(
    traced: fx.GraphModule,
    plan: PruningPlan | FactorizationPlan,
    pruned: fx.GraphModule,
    inputs: Any,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
) -> EquivalenceReport:
    """Compare the pruned graph with the original on real inputs, both in eval mode.

    `inputs` as for `trace`, of any size that the graph takes. With `dtype` (say torch.float64)
    copies of both modules and of floating inputs are converted first. What the graphs cast to
    narrower types than their parameters have (softmax in float32) is computed in the latter. The
    tolerance defaults to 1e-9 for float64, 1e-4 for float32. Neither module is modified. Raises
    PlanError if the plan is not for `traced`, VerifyError if the modules cannot be compared,
    AnalysisError if what the plan removes is coupled differently at the inputs' sizes and the law
    depends on it, TraceError if the graph does not take inputs of such sizes.

    Both draw the same random numbers, and the generators stay as they were. Where random numbers
    are drawn for removed units the two draw different ones: a difference is then a VerifyError.
    """
    analysis = analysis_of(traced)
    plan.check_fingerprint(analysis.fingerprint)
    original, slim = _prepared(traced, dtype), _prepared(pruned, dtype)
    values = tuple(_converted(value, dtype) for value in bind_inputs(traced, inputs, VerifyError))
    reference: _Reference
    if isinstance(plan, FactorizationPlan):
        reference = _Dense(original, plan, pruned, values)
    else:
        reference = _Masked(original, analysis, plan, values)
    devices = {tensor.device for _, tensor in named_tensors(original)}
    drawing = partial(same_draws, analysis.propagation, devices)
    with _running("original", values), drawing():
        expected = reference.output()
    with _running("pruned", values), drawing():
        actual = _run(slim, values)
    error = max_error(actual, expected)
    limit = _tolerance(expected) if tolerance is None else tolerance
    ok = error <= limit and reference.fault is None
    if not ok:
        reference.check_draws()
    first = None if ok else reference.fault or _located(reference, slim, expected, limit, drawing)
    silent = not any(bool(t.any()) for t in tensors_in(expected))
    return EquivalenceReport(ok, error, first, reference.law, limit, silent)


def _tolerance(expected: Any) -> float:
    found = [_TOLERANCES[t.dtype] for t in tensors_in(expected) if t.dtype in _TOLERANCES]
    return max(found, default=0.0)


def _prepared(module: fx.GraphModule, dtype: torch.dtype | None) -> fx.GraphModule:
    clone = copy.deepcopy(module).eval()
    clone = clone if dtype is None else clone.to(dtype)
    widen_casts(clone)
    return clone


def _converted(value: Any, dtype: torch.dtype | None) -> Any:
    def convert(leaf: Any) -> Any:
        if dtype is not None and isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf.to(dtype)
        return leaf

    return tree_map(convert, value)


@contextmanager
def _running(which: str, values: tuple[Any, ...]) -> Iterator[None]:
    """Turn what stops a graph from running into an error that shows the inputs."""
    try:
        yield
    except FxpruneError:
        raise
    except Exception as error:
        shown = ", ".join(
            f"{leaf.dtype} of shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
            for leaf in tree_leaves(values)
        )
        raise VerifyError(
            f"the {which} graph does not run on the given inputs ({shown}): {error}. Pass inputs "
            "like those it was traced with; with dtype=, floating ones are converted."
        ) from error


def _run(module: fx.GraphModule, values: tuple[Any, ...]) -> Any:
    with torch.no_grad():
        return module(*tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, values))


class _Reference:
    """What the pruned graph must compute: the output, and nodes' values one by one."""

    law: str
    fault: str | None = None
    """What is wrong before anything runs."""

    def __init__(self, original: fx.GraphModule, values: tuple[Any, ...]) -> None:
        self.original, self.values = original, values

    def output(self) -> Any:
        """The tensors of the reference output."""
        return tensors_in(_run(self.original, self.values))

    def node_values(self) -> NodeValues:
        """Each node of the original with its value."""
        return _executed(self.original, self.values)

    def check_draws(self) -> None:
        """Raise VerifyError if both graphs draw different numbers of random numbers."""

    def compact(self, node: fx.Node, value: Any) -> list[Tensor]:
        """What the pruned graph has of a node's tensors."""
        return tensors_in(value)

    def comparable(self, node: fx.Node) -> bool:
        """False where only data says what the pruned graph has of a node's tensors."""
        return True


class _Dense(_Reference):
    """The original with the product of its factors for the weight of each layer in factors."""

    law = DENSE_RECONSTRUCTION

    def __init__(
        self,
        original: fx.GraphModule,
        plan: FactorizationPlan,
        pruned: fx.GraphModule,
        values: tuple[Any, ...],
    ) -> None:
        super().__init__(original, values)
        for name, bases in plan.layers.items():
            weight = original.get_parameter(f"{name}.weight").detach()
            product, stored = product_of_factors(pruned, name)
            error = max_error([product], [bases.project(weight)])
            if error > _TOLERANCES.get(stored, 0.0) and self.fault is None:
                self.fault = f"layer {name!r}: the product of its factors is off by {error:.1e}"
            if product.shape == weight.shape:
                weight.copy_(product)


class _Masked(_Reference):
    """The original with the plan's units masked."""

    def __init__(
        self,
        original: fx.GraphModule,
        analysis: Analysis,
        plan: PruningPlan,
        values: tuple[Any, ...],
    ) -> None:
        super().__init__(original, values)
        self.plan = plan
        self.maskable = all(plan.group(name).maskable for name in plan.kept_units)
        self.law = MASKED_EQUIVALENCE if self.maskable else MASKED_INTERPRETATION
        self._apply_masks()
        self.planned = Selection(analysis, plan)

    @cached_property
    def selection(self) -> Selection:
        """What the plan leaves of each axis at the sizes of the given inputs."""
        propagation = propagate(self.original, self.values)
        grouped = carried_over(self.planned.analysis, propagation, self.plan.kept_units.keys())
        sized = Analysis(self.original, self.plan.fingerprint, propagation, grouped)
        return Selection(sized, self.plan)

    def _apply_masks(self) -> None:
        for name, value in self.plan.values.items():
            assign(self.original, name, value)
        named = dict(named_tensors(self.original))
        with torch.no_grad():
            for name, mask in self.plan.masks().items():
                named[name].mul_(mask.to(named[name].device))

    def output(self) -> Any:
        """The tensors of the reference output, without what the plan removes of them."""
        if self.maskable:
            value = _run(self.original, self.values)
            if not self._output_shrinks():
                return tensors_in(value)
        else:
            *_, (_, value) = self.node_values()
        (node,) = (n for n in self.original.graph.nodes if n.op == "output")
        return self.compact(node, value)

    def _output_shrinks(self) -> bool:
        """True if the plan removes entries of the output."""
        nodes = self.planned.analysis.propagation.nodes
        stated = {node.op: value for node, value in nodes.items()}["output"]
        layouts = [v.axes for v in tree_leaves(stated) if isinstance(v, TensorAxes)]
        return any(self.planned.changed(axis) for layout in layouts for axis in layout)

    def node_values(self) -> NodeValues:
        """Each node of the original with its value at full size, removed positions masked."""
        if self.maskable:
            return _executed(self.original, self.values)
        return Interpretation(self.original, self.selection, self.values).run()

    def check_draws(self) -> None:
        for record in draws(self.planned.analysis.propagation):
            axes = [axis for layout in record.effect.outputs for axis in layout]
            if any(map(self.planned.changed, axes)):
                raise VerifyError(
                    f"node {record.site.name!r} draws random numbers for units that the plan "
                    "removes, so the two graphs draw different ones and cannot be compared. Leave "
                    "the groups around it out of the plan (groups=), or make the noise an input."
                )

    def compact(self, node: fx.Node, value: Any) -> list[Tensor]:
        """What the plan leaves of a node's tensors."""
        pairs = zip(tensors_in(value), self._layouts(node), strict=True)
        return [self._compact(tensor, layout) for tensor, layout in pairs]

    def _layouts(self, node: fx.Node) -> list[Layout]:
        stated = self.selection.analysis.propagation.nodes[node]
        return [v.axes for v in tree_leaves(stated) if isinstance(v, TensorAxes)]

    def _compact(self, tensor: Tensor, layout: Layout) -> Tensor:
        positions = self.selection.positions(layout)
        return tensor if positions is None else tensor.reshape(-1)[positions.to(tensor.device)]

    def comparable(self, node: fx.Node) -> bool:
        found = (
            (self.selection.positions(a), self.selection.shape(a)) for a in self._layouts(node)
        )
        return all(positions is None or positions.shape == shape for positions, shape in found)


def _executed(module: fx.GraphModule, values: tuple[Any, ...]) -> NodeValues:
    """Each node with its value, yielded before a later node can change it in place."""
    interpreter = fx.Interpreter(module)
    interpreter.args_iter = iter(values)
    with torch.no_grad():
        for node in module.graph.nodes:
            interpreter.env[node] = interpreter.run_node(node)
            yield node, interpreter.env[node]


def _located(
    reference: _Reference,
    slim: fx.GraphModule,
    output: list[Tensor],
    limit: float,
    drawing: _Drawing,
) -> str:
    """Where the two graphs part, as far as the nodes can be compared."""
    try:
        return _first_mismatch(reference, slim, output, limit, drawing)
    except AnalysisError as error:
        return f"the output, whose nodes cannot be compared: {error}"


def _first_mismatch(
    reference: _Reference,
    slim: fx.GraphModule,
    output: list[Tensor],
    limit: float,
    drawing: _Drawing,
) -> str:
    with drawing():
        pruned = {
            node.name: tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, value)
            for node, value in _executed(slim, reference.values)
        }
    undefined = any(bool(t.isnan().any()) for t in output)
    with drawing():
        return _first_difference(reference, pruned, undefined, limit)


def _first_difference(
    reference: _Reference, pruned: Mapping[str, Any], undefined: bool, limit: float
) -> str:
    """The first node that differs, or, where the output is undefined, that is the cause of it."""
    for node, value in reference.node_values():
        if node.name not in pruned or node.op in ("placeholder", "get_attr"):
            continue
        if not reference.comparable(node):
            continue
        expected, actual = reference.compact(node, value), tensors_in(pruned[node.name])
        shapes = [tuple(t.shape) for t in actual], [tuple(t.shape) for t in expected]
        if shapes[0] != shapes[1]:
            return f"node {node.name!r}: shapes {shapes[0]}, expected {shapes[1]}"
        if undefined and any(bool(t.isnan().any()) for t in expected):
            return f"node {node.name!r}: {_UNDEFINED}"
        error = max_error(*where_defined(actual, expected))
        if error > limit:
            return f"node {node.name!r}: relative error {error:.1e}"
    return "the output only: every node agrees"
