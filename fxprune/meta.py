"""Running graphs on meta tensors: shapes without values, and without touching the user's module."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fxprune import meta_kernels
from fxprune.capture import shapes
from fxprune.capture.metacopy import copy_module, set_mode
from fxprune.errors import AnalysisError

Shapes = list[tuple[int, ...]]


def shapes_on_meta(module: fx.GraphModule) -> Mapping[fx.Node, Shapes]:
    """The shapes of every node's tensors when the graph runs on meta at the example sizes."""
    shadow, _, _ = meta_shadow(module)
    interpreter = _ShapeInterpreter(shadow, garbage_collect_values=False, graph=module.graph)
    values = example_values(module, None)
    with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]), _on_meta():
        interpreter.run(*values, enable_io_processing=False)
    return interpreter.shapes


class _ShapeInterpreter(fx.Interpreter):
    """Notes shapes at once: a later node may change that of a tensor in place."""

    @cached_property
    def shapes(self) -> dict[fx.Node, Shapes]:
        return {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        leaves = [value] if isinstance(value, Tensor) else tree_leaves(unpacked(value))
        self.shapes[n] = [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)]
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        result = shapes.of_module(type(module), module, args, kwargs)
        if result is not None and isinstance(module, nn.RNNBase):
            _run_one_step(module, *args, **kwargs)
        return module(*args, **kwargs) if result is None else result


def _run_one_step(module: nn.RNNBase, input: Any, hx: Any = None) -> None:
    """Check the sizes on one time step: on meta, kernels decompose into ops for every step."""
    module(input.narrow(1 if input.dim() == 3 and module.batch_first else 0, 0, 1), hx)


def example_values(traced: fx.GraphModule, inputs: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """The placeholders' values on meta. Raises AnalysisError if the graph has no examples."""
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    if inputs is None:
        missing = [node.name for node in placeholders if "val" not in node.meta]
        if missing:
            raise AnalysisError(
                f"the graph has no example for its inputs {missing}: analyze takes what "
                "fxprune.trace returns. Call fxprune.trace(module, example_inputs) "
                "first; it takes any GraphModule."
            )
        inputs = tuple(node.meta["val"] for node in placeholders)
    return tuple(
        tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, value) for value in inputs
    )


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters, then buffers."""
    return [*module.named_parameters(), *module.named_buffers()]


def meta_shadow(traced: fx.GraphModule) -> tuple[nn.Module, dict[int, str], dict[int, Tensor]]:
    """A copy of the module tree on meta; its tensors' names; its buffers' real values."""
    memo: dict[int, Any] = {id(traced.graph): traced.graph}
    names: dict[int, str] = {}
    real: dict[int, Tensor] = {}
    for name, tensor in named_tensors(traced):
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = nn.Parameter(meta, False) if isinstance(tensor, nn.Parameter) else meta
        names[id(memo[id(tensor)])] = name
        if not isinstance(tensor, nn.Parameter):
            real[id(meta)] = tensor
    shadow = nn.Module()
    for name, child in traced._modules.items():
        shadow.add_module(name, child and copy_module(child, memo))
    for name, parameter in traced._parameters.items():
        shadow.register_parameter(name, None if parameter is None else memo[id(parameter)])
    for name, buffer in traced._buffers.items():
        shadow.register_buffer(name, None if buffer is None else memo[id(buffer)])
    for name, value in plain_attributes(traced).items():
        setattr(shadow, name, value)
    set_mode(shadow, False)
    return shadow, names, real


def plain_attributes(traced: fx.GraphModule) -> dict[str, Any]:
    """Attributes of the root that get_attr nodes read and that are neither tensors nor modules."""
    names = {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"}
    return {name: value for name, value in vars(traced).items() if name in names}


def unpacked(value: Any, depth: int = 4) -> Any:
    """`value` with each object that holds tensors, but is no pytree, as a dict of its parts.

    Dataclasses and the output classes of model libraries are such objects.
    """
    if isinstance(value, Tensor):
        return value
    return tree_map(lambda leaf: _parts(leaf, depth), value)


def _parts(leaf: Any, depth: int) -> Any:
    if isinstance(leaf, Tensor) or not hasattr(leaf, "__dict__") or depth == 0:
        return leaf
    parts = unpacked(dict(leaf if isinstance(leaf, Mapping) else vars(leaf)), depth - 1)
    return parts if any(isinstance(part, Tensor) for part in tree_leaves(parts)) else leaf


def without(output: Any, names: frozenset[str]) -> Any:
    """The parts of a model's output but those of the given names."""
    named = isinstance(output, Mapping) or hasattr(output, "__dict__")
    if not named or isinstance(output, (Tensor, tuple, list)):  # a graph's lists have attributes
        return output
    parts = output if isinstance(output, Mapping) else vars(output)
    return {name: part for name, part in parts.items() if name not in names}


def call_on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Run an op so that what it creates is on meta. Returns the result and the kwargs used."""
    if kwargs.get("device") is not None or (_creates(args, kwargs) and _takes_device(func)):
        kwargs = {**kwargs, "device": torch.device("meta")}
    return meta_kernels.run(func, args, kwargs), kwargs


def _creates(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether no tensor is among the arguments."""
    if args and isinstance(args[0], Tensor):
        return False
    return not any(isinstance(a, Tensor) for a in tree_leaves((args, kwargs)))


@cache
def _takes_device(func: Any) -> bool:
    return any(argument.name == "device" for argument in func._schema.arguments)


def _on_meta() -> TorchDispatchMode:
    return MetaFactories()  # type: ignore[no-untyped-call]


class MetaFactories(TorchDispatchMode):
    """Everything is created on the meta device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return call_on_meta(func, args, kwargs or {})[0]
