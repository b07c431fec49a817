"""From a capture to a torch.fx.GraphModule that holds the model's own parameters."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.assembly import add_node, assemble
from fxprune.capture import guards, leaves
from fxprune.capture.canonicalize import canonicalize
from fxprune.capture.chains import Shape
from fxprune.capture.growth import note_dimensions, note_views
from fxprune.capture.metacopy import Template
from fxprune.capture.records import (
    Attr,
    Capture,
    Expr,
    Mode,
    Precision,
    Rebuilt,
    Record,
    Ref,
    Spec,
)
from fxprune.capture.sizes import numel_of, plain, size_of
from fxprune.capture.targets import LITERALS, mutates
from fxprune.errors import TraceError
from fxprune.modules import ByMode
from fxprune.walks import named_modules


class Emitter:
    """Builds the graph of one (merged) capture."""

    def __init__(self, capture: Capture, template: Template, places: int) -> None:
        self.capture = capture
        self.template = template
        self.places = places
        self.graph = fx.Graph()
        self.nodes: list[Any] = []
        self.parts: dict[Ref, Any] = {}
        self.sizes: dict[Any, fx.Node] = {}
        self.attributes: dict[str, fx.Node] = {}
        self.root: dict[str, Any] = {}
        self.first: fx.Node | None = None
        self.device: fx.Node | None = None
        self.dtype: fx.Node | None = None

    # Values ------------------------------------------------------------------------------------

    def value(self, value: Any) -> Any:
        """The fx argument for an argument of a record."""
        if isinstance(value, Ref):
            return self.reference(value)
        if isinstance(value, Attr):
            return self.attribute(value.name)
        if isinstance(value, Expr):
            return self.size(value)
        if isinstance(value, Mode):
            return self.by_mode(value)
        if isinstance(value, torch.device):
            return self.device_value(value)
        if isinstance(value, Precision):
            return self.precision()
        if isinstance(value, (tuple, list)):
            return type(value)(self.value(item) for item in value)
        if isinstance(value, dict):
            return {key: self.value(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(self.value(value.start), self.value(value.stop), self.value(value.step))
        return plain(value)

    def reference(self, ref: Ref) -> Any:
        """The node of a record's result or of a part of it, taken out right behind the record."""
        node = self.nodes[ref.index]
        if not ref.path:
            return node
        part = self.parts.get(ref)
        if part is None:
            whole = self.reference(Ref(ref.index, ref.path[:-1]))
            with self.graph.inserting_after(whole):
                part = self.graph.call_function(operator.getitem, (whole, ref.path[-1]))
            part.meta.update({k: v for k, v in whole.meta.items() if k != "val"})
            self.parts[ref] = part
        return part

    def attribute(self, name: str) -> fx.Node:
        """The get_attr node of a parameter, buffer or constant: one per graph."""
        if name not in self.attributes:
            self.attributes[name] = self.graph.get_attr(name)
            tensor = self.capture.constants.get(name)
            tensor = self.template.tensors[name] if tensor is None else tensor
            self.root[name] = tensor
        return self.attributes[name]

    def size(self, expr: Expr) -> fx.Node:
        """The node that computes a size; equal expressions share a node."""
        node = self.sizes.get(expr)
        if node is None:
            if expr.fn is size_of:
                tensor = self.reference(expr.args[0])
                node = self.graph.call_method("size", (tensor, expr.args[1]))
            elif expr.fn is numel_of:
                node = self.graph.call_method("numel", (self.reference(expr.args[0]),))
            else:
                args = tuple(self.value(a) for a in expr.args)
                node = self.graph.call_function(expr.fn, args)
            self.sizes[expr] = node
        return node

    def by_mode(self, value: Mode) -> fx.Node:
        """A call of a module that gives one of two literals."""
        for name, module in self.root.items():
            if isinstance(module, ByMode) and (module.train_value, module.eval_value) == (
                value.train_value,
                value.eval_value,
            ):
                return self.graph.call_module(name)
        name = f"_by_mode{sum(isinstance(m, ByMode) for m in self.root.values())}"
        self.root[name] = ByMode(value.train_value, value.eval_value)
        return self.graph.call_module(name)

    def device_value(self, device: torch.device) -> Any:
        """The device of the inputs where a literal means that, so that graphs can be moved."""
        if self.first is None or device != self.template.device:
            return device
        if self.device is None:
            self.device = self.graph.call_function(getattr, (self.first, "device"))
        return self.device

    def precision(self) -> fx.Node:
        """The dtype of the model's first floating tensor, so that graphs can be converted."""
        if self.dtype is None:
            name = next(n for n, t in self.template.tensors.items() if t.is_floating_point())
            self.dtype = self.graph.call_function(getattr, (self.attribute(name), "dtype"))
        return self.dtype

    # Records -----------------------------------------------------------------------------------

    def emit(self) -> None:
        """Emit every record behind the placeholders, which the caller made."""
        written = _written(self.capture.records)
        conditions: dict[int, list[Any]] = {}
        for condition in self.capture.log:
            place = max(last_ref(condition[1]), self.places - 1)
            conditions.setdefault(place, []).append(condition)
        self.conditions(conditions.get(self.places - 1, []))
        for index in range(self.places, len(self.capture.records)):
            record = self.capture.records[index]
            if record.target in LITERALS and index not in written and _is_literal(record):
                node = self.literal(record)
            else:
                args, kwargs = self.value(record.args), self.value(record.kwargs)
                node = add_node(self.graph, record.op, record.target, args, kwargs)
                if record.op == "call_module":
                    self.module(record.target)
                node.meta["source"] = record.target if record.op == "call_module" else record.source
                node.meta["line"] = record.line
            self.nodes.append(node)
            self.conditions(conditions.get(index, []))

    def conditions(self, conditions: Sequence[Any]) -> None:
        """Guard the comparisons of sizes that decided the path through the model."""
        for fn, args, outcome in conditions:
            values = tuple(self.value(a) for a in args)
            condition = self.graph.call_function(fn, values)
            what = f"{fn.__name__}({', '.join(str(v) for v in values)}), which was {outcome},"
            self.graph.call_function(guards.holds, (condition, outcome, what))

    def literal(self, record: Record) -> fx.Node:
        """A tensor made from Python numbers becomes a buffer."""
        literal = self.template.dtype  # a buffer is converted with the model
        kwargs = {
            k: literal if isinstance(v, Precision) else plain(v) for k, v in record.kwargs.items()
        }
        kwargs.setdefault("device", self.template.device)
        tensor = record.target(*record.args, **kwargs)
        taken = {*self.capture.constants, *self.root}
        number = next(i for i in range(len(taken) + 1) if f"_constant{i}" not in taken)
        name = f"_constant{number}"
        self.root[name] = tensor
        return self.graph.get_attr(name)

    def module(self, path: str) -> None:
        """Take a leaf module into the result, sharing its parameters and buffers."""
        if path in self.root:
            return
        created = self.capture.created.get(path)
        if created is not None:
            self.root[path] = created
            return
        module = self.template.modules[path]
        self.root[path] = leaves.emitted(module, self.capture.plain.get(path))

    def shapes(self) -> dict[fx.Node, Shape]:
        """The shape of each node's result, as sizes in all captures."""
        found: dict[fx.Node, Shape] = {}
        for ref, shape in self.capture.shapes.items():
            node = self.parts.get(ref) if ref.path else self.nodes[ref.index]
            if isinstance(node, fx.Node):
                found[node] = shape
        return found

    def constant(self, tensor: Tensor) -> str:
        """Register a permutation or other index; equal ones share a buffer."""
        names = [name for name in self.root if name.startswith("_permutation")]
        for name in names:
            if torch.equal(self.root[name], tensor):
                return name
        name = f"_permutation{len(names)}"
        self.root[name] = tensor.to(self.template.device)
        return name

    def set_output(self) -> None:
        """Emit the output node, rebuilding what is not a plain tuple, list or dict."""
        self.graph.output(self.output(self.capture.output))

    def output(self, value: Any) -> Any:
        """The fx value of (a part of) the output."""
        if isinstance(value, Rebuilt):
            args, kwargs = self.output(value.args), self.output(value.kwargs)
            return self.graph.call_function(value.fn, args, kwargs)
        if isinstance(value, Spec):
            name = f"_structure{sum(key.startswith('_structure') for key in self.root)}"
            self.root[name] = value.spec
            return self.graph.get_attr(name)
        if isinstance(value, (tuple, list)):
            return type(value)(self.output(item) for item in value)
        if isinstance(value, dict):
            return {key: self.output(item) for key, item in value.items()}
        return self.value(value)


def last_ref(value: Any) -> int:
    """The largest record number that a value refers to; -1 if it refers to none."""
    if isinstance(value, Ref):
        return value.index
    if isinstance(value, Expr):
        return last_ref(value.args)
    if isinstance(value, tuple):
        return max((last_ref(item) for item in value), default=-1)
    return -1


def _written(records: Sequence[Record]) -> set[int]:
    """The records whose results are written into, directly."""
    found: set[int] = set()
    for record in records:
        if record.args and mutates(record.op, record.target, record.kwargs):
            first = record.args[0]
            if isinstance(first, Ref):
                found.add(first.index)
    return found


def _is_literal(record: Record) -> bool:
    def fixed(value: Any) -> bool:
        if isinstance(value, (Ref, Attr, Expr)):
            return False
        if isinstance(value, (tuple, list)):
            return all(fixed(item) for item in value)
        if isinstance(value, dict):
            return all(fixed(item) for item in value.values())
        return True

    return fixed(record.args) and fixed(record.kwargs)


def build(emitter: Emitter, model: nn.Module) -> fx.GraphModule:
    """The GraphModule: registered buffers, training flags as in the model, dead code removed."""
    graph = emitter.graph
    remove_dead(graph)
    shapes = emitter.shapes()
    note_views(graph, shapes)
    if canonicalize(graph, shapes, emitter.constant):
        remove_dead(graph)
    note_dimensions(shapes)
    readers = [n for n in graph.nodes if n.op in ("get_attr", "call_module")]
    used = {n.target for n in readers}
    root = {name: value for name, value in emitter.root.items() if name in used}
    for node in readers:
        if (name := free_name(node.target)) != node.target:
            node.target = name
    named = {free_name(name): value for name, value in root.items()}
    if len(named) < len(root):
        raise TraceError(
            f"the model has two attributes for one name in the graph, among {sorted(root)}: those "
            "named like an attribute of GraphModule get an underscore. Rename one of the two."
        )
    gm = assemble(_root(named), graph, type(model).__name__)
    for name, value in root.items():
        path, _, last = free_name(name).rpartition(".")
        if isinstance(value, Tensor) and not _persistent(model, name):
            gm.get_submodule(path)._non_persistent_buffers_set.add(last)
    modes = {free_name(path): m.training for path, m in emitter.template.modules.items()}
    for path, module in named_modules(gm):
        module.__dict__["training"] = modes.get(path, model.training)
    return gm


_TAKEN = frozenset({*dir(fx.GraphModule), "meta", "shape_env"}) - {*dir(nn.Module)}


def free_name(path: str) -> str:
    """A model's path in the graph: GraphModule has attributes like `code` and `graph` itself."""
    first, dot, rest = path.partition(".")
    return f"{first}_{dot}{rest}" if first in _TAKEN else path


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _root(values: Mapping[str, Any]) -> nn.Module:
    root = nn.Module()
    ordered = sorted(values.items(), key=lambda item: not isinstance(item[1], nn.Module))
    for name, value in ordered:
        *path, last = name.split(".")
        parent = root
        for part in path:
            if part not in parent._modules:
                parent._modules[part] = nn.Module()
            child = parent._modules[part]
            assert child is not None
            parent = child
        if isinstance(value, nn.Module):
            parent._modules[last] = value
        elif isinstance(value, nn.Parameter):
            parent._parameters[last] = value
        elif isinstance(value, Tensor):
            parent._buffers[last] = value
        else:
            setattr(parent, last, value)
    return root


def _persistent(model: nn.Module, name: str) -> bool:
    """Whether a tensor belongs into the state dict: as in the model, constants do not."""
    path, _, last = name.rpartition(".")
    owner = _submodule(model, path)
    if owner is None or last in owner._non_persistent_buffers_set:
        return False
    return last in owner._buffers or last in owner._parameters


def remove_dead(graph: fx.Graph) -> None:
    """Remove nodes without effect; operations that write into a tensor have one."""

    def impure(node: fx.Node) -> bool:
        return (
            node.is_impure()
            if node.op in ("placeholder", "output")
            else node.op != "call_module"
            and (node.is_impure() or mutates(node.op, node.target, dict(node.kwargs)))
        )

    graph.eliminate_dead_code(is_impure_node=impure)
