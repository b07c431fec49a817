"""A graph from its description: everything in it is checked against the vocabulary first.

torch.fx writes Python code for a graph, from its names and literals. So names must be identifiers
here, and literals are plain values, whose `repr` cannot say anything else.
"""

from __future__ import annotations

import collections
import keyword
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor, fx, nn

from fxprune.analysis import fingerprint
from fxprune.assembly import assemble
from fxprune.capture import guards
from fxprune.capture.records import TraceInfo
from fxprune.checkpoint import vocabulary
from fxprune.checkpoint.describing import NAME, NOTES, PATH
from fxprune.checkpoint.values import decode
from fxprune.errors import CheckpointError
from fxprune.plans.base import short
from fxprune.stand_ins import Output, State, stand_in

_MALFORMED = (
    *(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError),
    *(SyntaxError, MemoryError),  # what Python's compiler says of code that is nested too deeply
)


def rebuild(
    content: Mapping[str, Any],
    table: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    inputs: list[Any],
) -> fx.GraphModule:
    """The GraphModule that `describe` described, with these tensors.

    Raises CheckpointError for whatever the vocabulary does not have.
    """
    try:
        return _rebuild(content, table, tensors, inputs)
    except _MALFORMED as error:
        raise CheckpointError(
            "The description of the graph is malformed: "
            f"{type(error).__name__}: {short(str(error))}."
        ) from error


def _rebuild(
    content: Mapping[str, Any],
    table: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    inputs: list[Any],
) -> fx.GraphModule:
    root = nn.Module()
    modules = content["modules"]
    for path in sorted(modules, key=lambda p: ("same_as" in modules[p], p.count("."))):
        same_as = modules[path].get("same_as")
        made = _module(path, modules[path]) if same_as is None else root.get_submodule(same_as)
        _put(root, path, made)
    for name, tensor in tensors.items():
        _put(root, name, tensor, bool(table[name]["persistent"]))
    for module in root.modules():
        if isinstance(module, nn.RNNBase):
            _flatten(module)
    for name, described in content["attributes"].items():
        setattr(root, _new_name(root, _checked(name, NAME), name), _attribute(described))
    known = {"call_module": modules.keys(), "get_attr": {*tensors, *content["attributes"]}}
    graph = _graph(content["nodes"], known)
    graph.lint()
    examples = {name: decode(value) for name, value in inputs}
    for node in graph.nodes:
        if node.op == "placeholder" and node.target in examples:
            node.meta["val"] = examples[node.target]
    module = assemble(root, graph, _checked(content["class"], NAME))
    module.train(bool(content["training"]))
    module.meta["fxprune"] = _trace_info(content["trace"])
    if fingerprint(module) != content["fingerprint"]:
        raise CheckpointError(
            "The graph that was rebuilt is not the one that was described: their fingerprints "
            "differ. Save the model again, or load it with its class."
        )
    return module


def _checked(name: Any, pattern: Any) -> str:
    if not isinstance(name, str) or not pattern.match(name) or keyword.iskeyword(name):
        raise CheckpointError(f"The graph has the name {short(name)}, which is none.")
    return name


# -- Modules --------------------------------------------------------------------------------------


def _module(path: str, data: Mapping[str, Any]) -> nn.Module:
    kind: Any = vocabulary.modules().get(data["class"])
    if kind is None:
        raise CheckpointError(
            f"Module {short(path)} is a {short(data['class'])}, which no graph may call. "
            "Load the model with its class."
        )
    odd = data["state"].keys() - vocabulary.attributes(kind)
    if odd:
        raise CheckpointError(
            f"Module {short(path)}, a {kind.__name__}, cannot have {short(sorted(odd))}."
        )
    module: nn.Module = nn.Module.__new__(kind)
    nn.Module.__init__(module)
    module.__dict__.update({key: decode(value) for key, value in data["state"].items()})
    registers: tuple[dict[str, Any], ...] = module._parameters, module._buffers, module._modules
    for register, absent in zip(registers, data["absent"], strict=True):
        register.update(dict.fromkeys(_checked(name, NAME) for name in absent))
    return module


def _put(root: nn.Module, path: str, value: Any, persistent: bool = True) -> None:
    *owners, last = _checked(path, PATH).split(".")
    owner = root
    for name in owners:
        if name not in owner._modules:
            owner._modules[name] = nn.Module()
        owner = owner.get_submodule(name)
    _new_name(owner, last, path)
    if isinstance(value, nn.Module):
        owner._modules[last] = value
    elif isinstance(value, nn.Parameter):
        owner._parameters[last] = value
    else:
        owner._buffers[last] = value
        if not persistent:
            owner._non_persistent_buffers_set.add(last)


def _new_name(owner: nn.Module, name: str, path: str) -> str:
    if hasattr(type(owner), name) or name in owner.__dict__:
        raise CheckpointError(f"The graph has the name {short(path)}, which hides what is there.")
    return name


def _flatten(module: nn.RNNBase) -> None:
    """The derived attributes of a recurrent module, from its parameters."""
    ways = ("", "_reverse") if module.bidirectional else ("",)
    kinds = ["weight_ih_l{}{}", "weight_hh_l{}{}"]
    kinds += ["bias_ih_l{}{}", "bias_hh_l{}{}"] if module.bias else []
    kinds += ["weight_hr_l{}{}"] if module.proj_size else []
    rows = [[k.format(n, way) for k in kinds] for n in range(module.num_layers) for way in ways]
    module._all_weights = rows
    module._flat_weights_names = [name for row in rows for name in row]
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    module._flat_weight_refs = [None for _ in module._flat_weights]


def _attribute(described: Mapping[str, Any]) -> Any:
    if "state_of" in described:
        return stand_in(State, _checked(described["state_of"], NAME))
    return decode(described["value"])


# -- Nodes ----------------------------------------------------------------------------------------


def _graph(rows: list[Any], known: Mapping[str, Collection[str]]) -> fx.Graph:
    """The graph of the described nodes; `known` has the paths that each op may name."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for op, name, target, args, kwargs, notes in rows:
        node = graph.create_node(
            op,
            _target(op, target, known.get(op, ())),
            tuple(decode(argument, nodes) for argument in args),
            {_checked(key, NAME): decode(value, nodes) for key, value in kwargs.items()},
            _checked(name, NAME),
        )
        if node.name != name or name in nodes:
            raise CheckpointError(
                f"The graph has two nodes, or a reserved one, called {short(name)}."
            )
        _check_objects(node)
        nodes[name] = node
        node.meta.update({key: kind(notes[key]) for key, kind in NOTES.items() if key in notes})
    return graph


def _target(op: str, target: Any, known: Collection[str]) -> Any:
    if op in ("placeholder", "output"):
        return _checked(target, NAME)
    # Python's attributes, `conv.forward.__globals__`, lead to everything: only what is described.
    if op in ("call_module", "get_attr") and target in known:
        return _checked(target, PATH)
    if op == "call_method" and target in vocabulary.methods():
        return target
    if op == "call_function" and isinstance(target, dict) and len(target) == 1:
        return _output_class(target)
    try:
        if op == "call_function":
            return vocabulary.function(target)
    except (KeyError, AttributeError):
        pass
    raise CheckpointError(
        f"The graph has a {short(op)} of {short(target)}, which no graph may call. "
        "Load the model with its class."
    )


def _output_class(target: Mapping[str, Any]) -> Any:
    if "output" in target:
        return stand_in(Output, _checked(target["output"], NAME))
    name, parts = target["namedtuple"]
    checked = [_checked(part, NAME) for part in parts]
    return collections.namedtuple(_checked(name, NAME), checked)


def _check_objects(node: fx.Node) -> None:
    """Only harmless attributes are read, and only stand-ins are made, with ordinary attributes."""
    if node.target is getattr and (
        len(node.args) != 2 or node.args[1] not in vocabulary.ATTRIBUTES or node.kwargs
    ):
        raise CheckpointError(f"Node {short(node.name)} may not read {short(node.args[1:])}.")
    if node.target is guards.new_object:
        kind, state = node.args
        made = isinstance(kind, fx.Node) and kind.op == "get_attr"
        plain = isinstance(state, dict) and not any(key.startswith("__") for key in state)
        if not made or not plain or node.kwargs:
            raise CheckpointError(f"Node {short(node.name)} may not make such an object.")


def _trace_info(data: Mapping[str, Any]) -> TraceInfo:
    values = {field.name: decode(data[field.name]) for field in fields(TraceInfo)}
    return TraceInfo(**{**values, "omitted": frozenset(values["omitted"])})
