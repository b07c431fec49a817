"""A pruned graph as JSON data: its modules, its nodes, and why it needs its class where it does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from torch import Tensor, fx, nn

from fxprune.analysis import fingerprint
from fxprune.capture.growth import REGROUPS, VARIES
from fxprune.capture.records import TraceInfo
from fxprune.checkpoint import vocabulary
from fxprune.checkpoint.values import Unknown, encode
from fxprune.meta import plain_attributes

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
PATH = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z")
"""Paths of modules and tensors: they become part of the code that torch.fx generates."""

NOTES = MappingProxyType({"source": str, REGROUPS: bool, VARIES: tuple})
"""What a file keeps of a node's metadata, and of which type that is."""


def describe(module: nn.Module) -> tuple[dict[str, Any] | None, list[str]]:
    """The description of a graph, and what in it only the model's own class can provide."""
    if not isinstance(module, fx.GraphModule):
        return None, [f"the module is a {type(module).__name__} and no GraphModule"]
    describer = _Describer(module)
    content = describer.content()
    return (None, describer.problems) if describer.problems else (content, [])


def inputs_of(module: nn.Module) -> list[Any]:
    """The recorded example of each input: name and value; tensors without their numbers."""
    graph = getattr(module, "graph", None)
    nodes = [node for node in graph.nodes if node.op == "placeholder"] if graph else []
    try:
        return [[str(node.target), encode(node.meta["val"])] for node in nodes]
    except (KeyError, Unknown):
        return []


class _Describer:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.problems: list[str] = []

    def content(self) -> dict[str, Any]:
        graph = self.module.graph
        called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
        leaves = dict(self.module.named_modules(remove_duplicate=False))
        within = [p for p in leaves if any(p == c or p.startswith(f"{c}.") for c in called)]
        info = self.module.meta.get("fxprune", TraceInfo())
        if type(graph._codegen) is not fx.graph.CodeGen:
            self.problems.append("its graph has a calling convention of its own")
        attributes = plain_attributes(self.module)
        return {
            "class": type(self.module).__name__,
            "fingerprint": fingerprint(self.module),
            "training": self.module.training,
            "modules": {path: self._module(path, leaves[path], leaves) for path in within},
            "attributes": {name: self._attribute(name, v) for name, v in attributes.items()},
            "nodes": [self._node(node) for node in graph.nodes],
            "trace": {f.name: self._trace(getattr(info, f.name)) for f in fields(info)},
        }

    def _module(self, path: str, module: nn.Module, leaves: Mapping[str, nn.Module]) -> Any:
        first = next(name for name, other in leaves.items() if other is module)
        if first != path:
            return {"same_as": first}
        kind: Any = type(module)
        name = vocabulary.module_names().get(kind)
        if name is None:
            self.problems.append(f"module {path!r} is a {kind.__module__}.{kind.__qualname__}")
            return None
        known = vocabulary.attributes(kind)
        state = {key: value for key, value in vars(module).items() if key in known}
        absent = [[n for n, v in of.items() if v is None] for of in _registers(module)]
        try:
            return {
                "class": name,
                "state": {key: encode(value) for key, value in state.items()},
                "absent": absent,  # parameters, buffers and children that are None
            }
        except Unknown as error:
            self.problems.append(f"module {path!r} holds {error}")
            return None

    def _attribute(self, name: str, value: Any) -> Any:
        """A class whose objects the graph returns is described by its name alone."""
        if isinstance(value, type) and NAME.match(value.__name__):
            return {"state_of": value.__name__}
        try:
            return {"value": encode(value)}
        except Unknown as error:
            self.problems.append(f"attribute {name!r} is {error}")
            return None

    def _node(self, node: fx.Node) -> Any:
        try:
            return [
                node.op,
                node.name,
                self._target(node),
                [encode(argument) for argument in node.args],
                {key: encode(value) for key, value in node.kwargs.items()},
                self._notes(node),
            ]
        except Unknown as error:
            self.problems.append(f"node {node.name!r} has {error}")
            return None

    def _notes(self, node: fx.Node) -> dict[str, Any]:
        """The layer that a node stems from, and what of its sizes was seen at capture."""
        return {
            key: node.meta[key]
            for key, kind in NOTES.items()
            if isinstance(node.meta.get(key), kind)
        }

    def _target(self, node: fx.Node) -> Any:
        target: Any = node.target
        if node.op != "call_function":
            return target
        try:
            return vocabulary.name_of(target)
        except KeyError:
            pass
        fields_of = getattr(target, "_fields", None)
        if isinstance(target, type) and NAME.match(target.__name__):
            if issubclass(target, tuple) and fields_of is not None:
                return {"namedtuple": [target.__name__, list(fields_of)]}
            if not issubclass(target, (tuple, Tensor)):
                return {"output": target.__name__}
        raise Unknown(f"a call of {getattr(target, '__module__', '')}.{target.__name__}")

    def _trace(self, value: Any) -> Any:
        return encode(sorted(value) if isinstance(value, frozenset) else _plain(value))


def _registers(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return module._parameters, module._buffers, module._modules


def _plain(value: Any) -> Any:
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value
