"""Run a graph once on meta tensors and let the rules say what the axes of every tensor are.

`propagate` interprets the graph on the meta device, under a `TorchDispatchMode`: each ATen op that
a node executes passes the mode, which applies the op's rule. So do the ops that `module_ops` and
`function_ops` know layers and functions to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from fxprune.algebra import Algebra
from fxprune.axes import Axis, find, is_frozen, leaves
from fxprune.copies import written_to
from fxprune.dynamic_sizes import name_of, shifted, unexplained, unexplained_bounds
from fxprune.errors import AnalysisError, FxpruneError
from fxprune.function_ops import call_function
from fxprune.growing import growing
from fxprune.lookups import join_tables
from fxprune.meta import GraphRunner, Shadow, call_on_meta, example_values, unpacked, without
from fxprune.meta_kernels import PlainDispatchMode
from fxprune.module_ops import single_op
from fxprune.modules import SizedCustomGradient
from fxprune.rules import MODULE_RULES, RULES
from fxprune.rules.base import Call, Effect, Kind, Layout, Rule, tensors_in
from fxprune.rules.elementwise import pointwise
from fxprune.schemas import schema_of
from fxprune.walks import buffers_in, module_at, named_modules, parameters_in

_CONSTANT_LIMIT = 1 << 22
"""Constant tensors with more elements than this are not evaluated to follow an index."""

OWN_RULES = "fxprune_rules"
"""Where a graph's `meta` keeps the rules for operators of the user's: full name → rule."""


@dataclass(frozen=True)
class TensorAxes:
    """Stands for a tensor in a node's value; `key` identifies the tensor among the records."""

    axes: Layout
    key: int


@dataclass(frozen=True)
class Record:
    """One executed op: where, what went in and came out (tensor keys), and the rule's effect."""

    site: fx.Node
    call: Call
    effect: Effect
    inputs: tuple[tuple[int, Layout], ...]
    outputs: tuple[int, ...]
    mutated: int | None = None  # the storage that the op writes to

    @property
    def moved(self) -> list[Axis]:
        """The axes of the first tensor that do not pass to the output unchanged."""
        passed = {id(find(axis)) for layout in self.effect.outputs for axis in layout}
        return [axis for axis in self.inputs[0][1] if id(find(axis)) not in passed]


@dataclass(frozen=True)
class Propagation:
    """The axes of every parameter and of every node's result, and all executed ops.

    layouts     parameter or buffer name → axes
    nodes       node → its value, with a `TensorAxes` in place of each tensor
    records     the executed ops in order
    sources     tensor key → parameter or buffer name
    storages    tensor key → storage key, to follow in-place writes through views
    barriers    (node, op) pairs that had no rule
    trainable   the names that are parameters, not buffers, and have entries
    """

    algebra: Algebra
    layouts: Mapping[str, Layout]
    nodes: Mapping[fx.Node, Any]
    records: tuple[Record, ...]
    sources: Mapping[int, str]
    storages: Mapping[int, int]
    barriers: tuple[tuple[str, str], ...]
    trainable: frozenset[str]


def propagate(traced: fx.GraphModule, inputs: tuple[Any, ...] | None = None) -> Propagation:
    """Interpret `traced` on meta tensors and apply the rules.

    `inputs` gives the placeholders' values (only shapes and dtypes matter for tensors); without it
    the examples that `trace` recorded are used. Raises AnalysisError if there are none, if a node
    cannot run, or if a rule contradicts what the op computed, and TraceError for inputs of sizes
    that the graph does not take.
    """
    modules = named_modules(traced)
    parameters, buffers = parameters_in(modules), buffers_in(modules)
    shadow = Shadow()
    twins = {name: shadow.tensor(tensor) for name, tensor in (*parameters, *buffers)}
    constants = {id(twins[name]): buffer for name, buffer in buffers}
    mode = _RuleMode(constants, traced.meta.get(OWN_RULES, {}))
    layouts = {name: mode.declare_parameter(twin) for name, twin in twins.items()}
    state: frozenset[str] = getattr(traced.meta.get("fxprune"), "omitted", frozenset())
    runner = _Runner(traced, shadow, mode, state)
    values = example_values(traced, inputs)
    with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]), mode:
        runner.run(values)
    for axis, reason in growing(traced, values, runner.layouts, mode.records):
        mode.algebra.freeze(axis, reason)
    for axis in written_to(mode.records, mode.storages):
        mode.algebra.freeze(axis, "every so many of its positions are written to through a view")
    join_tables(mode.records, mode.algebra)
    return Propagation(
        mode.algebra,
        MappingProxyType(layouts),
        MappingProxyType(runner.layouts),
        tuple(mode.records),
        MappingProxyType({id(twin): name for name, twin in twins.items()}),
        MappingProxyType(mode.storages),
        tuple(mode.barriers),
        frozenset(name for name, tensor in parameters if tensor.numel()),
    )


def find_rule(func: Any, own: Mapping[str, Rule] = MappingProxyType({})) -> Rule | None:
    """The rule for an ATen overload: by name, by its in-place name, or by torch's pointwise tag.

    Ops of other libraries have one by their full name, mostly among the user's own.
    """
    full = schema_of(func).name
    namespace, name = full.split("::")
    if namespace not in ("aten", "prims"):
        return own.get(full) or RULES.get(full)
    rule = RULES.get(name.removesuffix("_"))
    if rule is None and torch.Tag.pointwise in func.tags:
        rule = pointwise
    return rule


@dataclass
class _RuleMode(PlainDispatchMode):
    """Applies every dispatched op's rule. Keeps all tensors alive, so that ids identify them."""

    constants: dict[int, Tensor]
    rules: Mapping[str, Rule]
    algebra: Algebra = field(default_factory=Algebra)
    records: list[Record] = field(default_factory=list)
    barriers: list[tuple[str, str]] = field(default_factory=list)
    storages: dict[int, int] = field(default_factory=dict)
    site: Any = None
    dynamic: bool = False  # a size that follows the inputs is among the running node's arguments

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layouts: dict[int, Layout] = {}
        self._alive: list[Any] = []
        self._recipes: dict[int, tuple[Any, Any, Any, int]] = {}

    # -- what is known of a tensor -----------------------------------------------------------------

    def declare(self, tensor: Tensor, layout: Layout) -> None:
        """State the axes of a tensor."""
        self._layouts[id(tensor)] = layout
        self._alive.append(tensor)
        self.storages[id(tensor)] = tensor.untyped_storage()._cdata

    def declare_parameter(self, tensor: Tensor) -> Layout:
        """Every dimension of a parameter starts as an atom of its own."""
        atom, one, empty = self.algebra.atom, self.algebra.one, {0: "empty tensor"}
        layout = tuple(one if n == 1 else atom(n, empty.get(n)) for n in tensor.shape)
        self.declare(tensor, layout)
        return layout

    def declare_fixed(self, tensor: Tensor, reason: str) -> Layout:
        """A tensor whose dimensions may not change."""
        layout = tuple(
            self.algebra.one if size == 1 else self.algebra.constant(size, reason)
            for size in tensor.shape
        )
        self.declare(tensor, layout)
        return layout

    def layout_of(self, tensor: Tensor) -> Layout:
        """The axes of a tensor; one that no op made is a constant."""
        layout = self._layouts.get(id(tensor))
        return self.declare_fixed(tensor, "constant tensor") if layout is None else layout

    def constant_of(self, tensor: Tensor) -> Tensor | None:
        """The value of a tensor that depends on no input and no parameter, if it is small."""
        key = id(tensor)
        if key in self.constants:
            return self.constants[key]
        if not tensor.is_meta:
            return tensor
        if key not in self._recipes or tensor.numel() > _CONSTANT_LIMIT:
            return None
        func, args, kwargs, position = self._recipes[key]
        values = tree_map(
            lambda a: self.constant_of(a) if isinstance(a, Tensor) else a, (args, kwargs)
        )
        sources = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if any(self.constant_of(t) is None for t in sources):
            return None
        real_kwargs = {**values[1], "device": "cpu"} if "device" in values[1] else values[1]
        with torch.utils._python_dispatch._disable_current_modes():
            result = func(*values[0], **real_kwargs)
        self.constants[key] = tensors_in(result)[position]
        return self.constants[key]

    # -- dispatch ----------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.run(func, args, kwargs)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op on meta and apply its rule; to be called where the mode is off."""
        result, kwargs = call_on_meta(func, args, kwargs)
        outputs = (result,) if isinstance(result, Tensor) else tuple(tensors_in(result))
        if not outputs:
            return result
        schema = schema_of(func)
        call = Call(
            schema.name,
            schema.bind(args, kwargs),
            outputs,
            self.algebra,
            self.layout_of,
            self.constant_of,
            func,
            self.dynamic,
            schema.name.partition("::")[2] == name_of(self.site),
            schema.mutates,
        )
        self.apply(call, find_rule(func, self.rules))
        for position, output in enumerate(outputs):
            if schema.mutates:
                self._recipes.pop(id(output), None)
                self.constants.pop(id(output), None)
            elif not schema.random:
                self._recipes[id(output)] = (func, args, kwargs, position)
        return result

    def apply(self, call: Call, rule: Rule | None) -> None:
        """Apply a rule (a barrier without one), check its answer, and record it."""
        inputs = tuple((id(t), self.layout_of(t)) for t in call.tensors())
        if rule is None:
            effect = self._barrier(call)
        else:
            try:
                effect = rule(call)
            except (ValueError, IndexError, KeyError, TypeError) as error:
                raise AnalysisError(
                    f"the rule for {call.name} failed at node {self.site.name!r} with inputs of "
                    f"shapes {[tuple(t.shape) for t in call.tensors()]}: {error!r}. This is a bug "
                    "in the rule."
                ) from error
        shapes = [tuple(output.shape) for output in call.outputs]
        stated = [tuple(axis.size for axis in layout) for layout in effect.outputs]
        if shapes != stated:
            raise AnalysisError(
                f"the rule for {call.name} at node {self.site.name!r} states outputs of shapes "
                f"{stated}, but the op returned {shapes}. This is a bug in the rule."
            )
        for output, layout in zip(call.outputs, effect.outputs, strict=True):
            self.declare(output, layout)
        self.records.append(
            Record(
                self.site,
                call,
                effect,
                inputs,
                tuple(map(id, call.outputs)),
                self.storages[inputs[0][0]] if call.writes and inputs else None,
            )
        )

    def _barrier(self, call: Call) -> Effect:
        self.barriers.append((self.site.name, call.name))
        for tensor in call.tensors():
            for axis in self.layout_of(tensor):
                self.algebra.freeze(axis, f"no rule for {call.name}")
        fresh = tuple(call.fresh(t, f"no rule for {call.name}") for t in call.outputs)
        return Effect(fresh, Kind.STATISTIC)


class _Runner(GraphRunner):
    """Runs the graph, tells the mode which node is running, and notes the axes of each result.

    `state` names the outputs that only the model itself reads: they are not frozen.
    """

    def __init__(
        self, traced: fx.GraphModule, shadow: Shadow, mode: _RuleMode, state: frozenset[str]
    ) -> None:
        super().__init__(traced)
        self.shadow, self.mode, self.state = shadow, mode, state
        self.layouts: dict[fx.Node, Any] = {}

    def run_node(self, node: fx.Node) -> Any:
        self.mode.site = self.mode.algebra.site = node
        self.mode.dynamic = any(isinstance(self.env.get(a), int) for a in node.all_input_nodes)
        try:
            value = super().run_node(node)
        except FxpruneError:  # a rule's, or that of a guard on the sizes of inputs
            raise
        except Exception as error:
            raise AnalysisError(
                f"node {node.name!r} ({node.op} {node.target}) does not run on meta tensors: "
                f"{error}. Check that the graph runs with its example inputs."
            ) from error
        if self.mode.dynamic and isinstance(value, Tensor):
            self.layouts[node] = self.layouts_in(value)
            for axis in unexplained(node, self._axes):
                for whole in (axis, *self._taken_apart(node, axis)):
                    self.mode.algebra.freeze(whole, "its size follows the inputs")
        if self.mode.dynamic and name_of(node) in ("getitem", "setitem"):
            for axis in unexplained_bounds(node, self._axes(node.args[0]), self._axes):
                self.mode.algebra.freeze(axis, "sliced to a size that follows the inputs")
        if self.mode.dynamic and name_of(node) == "roll":
            for axis in shifted(node, self._axes(node.args[0])):
                self.mode.algebra.freeze(axis, "rolled by a size that follows the inputs")
        if node.op == "placeholder":
            self._declare_fixed(value, "model input")
        if node.op == "output":
            self._freeze(without(value, self.state), "model output")
        self.layouts[node] = self.layouts_in(value)
        return value

    def _taken_apart(self, node: fx.Node, axis: Axis) -> list[Axis]:
        """The dimensions that a node reads and of which `axis` has a part. How large that part is
        follows the inputs, and so does what is left.
        """
        parts = {atom for atom in leaves(axis) if atom.reason is None}
        read = [whole for source in node.all_input_nodes for whole in self._axes(source)]
        return [whole for whole in read if not parts.isdisjoint(leaves(whole))]

    def _axes(self, node: Any) -> Layout:
        layout = self.layouts.get(node)
        return layout.axes if isinstance(layout, TensorAxes) else ()

    def get_attr(self, target: str, args: Any, kwargs: Any) -> Any:
        return self.shadow.known(super().get_attr(target, args, kwargs))

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = call_function(target, args, kwargs, self._run)
        return super().call_function(target, args, kwargs) if result is None else result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        original = module_at(self.module, target)
        known = single_op(original, args, kwargs)
        if known is not None:
            return self._run(*known)
        with torch._C._DisableTorchDispatch():
            module = self.shadow.module(original)
        rule = MODULE_RULES.get(type(module))
        if rule is None:
            value = module(*args, **kwargs)
            if isinstance(module, SizedCustomGradient):
                self._freeze((args, value), f"{module} computes with sizes")
            return value
        with torch._C._DisableTorchDispatch():
            result = rule(module, args, kwargs, self.mode.layout_of, self.mode.algebra)
        for call, effect in result.calls:
            self.mode.apply(call, lambda _, effect=effect: effect)  # type: ignore[misc]
        return result.value

    def _run(self, op: Any, operands: tuple[Any, ...], options: dict[str, Any]) -> Any:
        with torch._C._DisableTorchDispatch():
            result = self.mode.run(op, tuple(map(self.shadow.known, operands)), options)
        return result[0] if isinstance(result, tuple) else result

    def layouts_in(self, value: Any) -> Any:
        """`value` with each tensor replaced by its axes, unpacked where no pytree holds them."""
        if isinstance(value, Tensor):
            return TensorAxes(self.mode.layout_of(value), id(value))
        return tree_map(
            lambda v: self.layouts_in(v) if isinstance(v, Tensor) else v, unpacked(value)
        )

    def _declare_fixed(self, value: Any, reason: str) -> None:
        for tensor in _tensors(value):
            self.mode.declare_fixed(tensor, reason)

    def _freeze(self, value: Any, reason: str) -> None:
        for tensor in _tensors(value):
            for axis in self.mode.layout_of(tensor):
                if not is_frozen(axis):
                    self.mode.algebra.freeze(axis, reason)


def _tensors(value: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(unpacked(value)) if isinstance(leaf, Tensor))
