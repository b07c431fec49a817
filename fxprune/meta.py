"""Running graphs on meta tensors: shapes without values, and without touching the user's module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from fxprune import meta_kernels
from fxprune.capture import shapes
from fxprune.capture.metacopy import copy_module, set_mode
from fxprune.errors import AnalysisError
from fxprune.walks import module_at, named_tensors

Shapes = list[tuple[int, ...]]


def shapes_on_meta(
    module: fx.GraphModule, inputs: tuple[Any, ...] | None = None
) -> Mapping[fx.Node, Shapes]:
    """The shapes of every node's tensors when the graph runs on meta.

    `inputs` are the placeholders' values; without it those of the example.
    """
    runner = _ShapeRunner(module)
    with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
        runner.run(example_values(module, inputs))
    return runner.shapes


class GraphRunner:
    """Runs a graph node by node. `env` holds the values of the nodes that ran.

    An fx.Interpreter does more for each node (progress, logs, tracebacks) than a meta kernel costs.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self.env: dict[fx.Node, Any] = {}
        self._values: Iterator[Any] = iter(())

    def run(self, values: Iterable[Any]) -> None:
        """Run all nodes; `values` are those of the placeholders."""
        self._values = iter(values)
        for node in self.graph.nodes:
            self.env[node] = self.run_node(node)

    def run_node(self, node: fx.Node) -> Any:
        """The value of a node."""
        args = fx.node.map_arg(node.args, self.env.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self.env.__getitem__) if node.kwargs else {}
        return getattr(self, node.op)(node.target, args, kwargs)

    def placeholder(self, target: str, args: Any, kwargs: Any) -> Any:
        """The next input."""
        return next(self._values)

    def get_attr(self, target: str, args: Any, kwargs: Any) -> Any:
        """An attribute of the module or of one inside it."""
        path, _, name = target.rpartition(".")
        return getattr(module_at(self.module, path), name)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """What a function returns."""
        return target(*args, **kwargs)

    def call_method(self, target: str, args: Any, kwargs: Any) -> Any:
        """What a method of the first argument returns."""
        return getattr(args[0], target)(*args[1:], **kwargs)

    def call_module(self, target: str, args: Any, kwargs: Any) -> Any:
        """What a module returns."""
        return module_at(self.module, target)(*args, **kwargs)

    def output(self, target: str, args: Any, kwargs: Any) -> Any:
        """The result of the graph."""
        return args[0]


class Shadow:
    """Tensors and modules of a graph on meta, each made when it is first asked for."""

    def __init__(self) -> None:
        self._memo: dict[int, Any] = {}

    def tensor(self, tensor: Tensor) -> Tensor:
        """The twin of a tensor: one for each."""
        if id(tensor) not in self._memo:
            self._memo[id(tensor)] = meta_twin(tensor)
        twin: Tensor = self._memo[id(tensor)]
        return twin

    def known(self, value: Any) -> Any:
        """The twin of a tensor that has one already; anything else as it is."""
        return self._memo.get(id(value), value) if isinstance(value, Tensor) else value

    def module(self, module: nn.Module) -> nn.Module:
        """The copy of a module in eval mode, with the twins of its tensors: one for each."""
        if id(module) not in self._memo:
            for _, tensor in named_tensors(module):
                self.tensor(tensor)
            set_mode(copy_module(module, self._memo), False)
        copy: nn.Module = self._memo[id(module)]
        return copy


class _ShapeRunner(GraphRunner):
    """Notes shapes at once: a later node may change that of a tensor in place.

    Where a formula gives a module's result, the module itself serves; only the others are copied
    to meta. A dispatch mode, which makes everything on meta, is entered where torch itself runs: a
    formula would make its result several times slower within.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, Shapes] = {}
        self._shadow = Shadow()
        self._on_meta = MetaFactories()  # type: ignore[no-untyped-call]

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        leaves = [value] if isinstance(value, Tensor) else tree_leaves(unpacked(value))
        self.shapes[node] = [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)]
        return value

    def get_attr(self, target: str, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return self._shadow.tensor(value) if isinstance(value, Tensor) else value

    def call_module(self, target: str, args: Any, kwargs: Any) -> Any:
        module = module_at(self.module, target)
        result = shapes.of_module(type(module), module, args, kwargs)
        if result is None:
            with self._on_meta:
                return self._shadow.module(module)(*args, **kwargs)
        if isinstance(module, nn.RNNBase):
            with self._on_meta:
                _run_one_step(self._shadow.module(module), *args, **kwargs)
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = shapes.by_formula(target, args, kwargs)
        if result is not None:
            return result
        with self._on_meta:
            return super().call_function(target, args, kwargs)

    def call_method(self, target: str, args: Any, kwargs: Any) -> Any:
        with self._on_meta:
            return super().call_method(target, args, kwargs)


def _run_one_step(module: nn.Module, input: Any, hx: Any = None) -> None:
    """Check the sizes on one time step: on meta, kernels decompose into ops for every step."""
    batched_first = input.dim() == 3 and bool(module.batch_first)
    module(input.narrow(1 if batched_first else 0, 0, 1), hx)


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


def meta_twin(tensor: Tensor) -> Tensor:
    """A tensor of the same sizes, strides and dtype on meta; a parameter for a parameter."""
    meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return nn.Parameter(meta, False) if isinstance(tensor, nn.Parameter) else meta


def copy_with(traced: fx.GraphModule, tensors: Mapping[int, Tensor]) -> nn.Module:
    """A copy of the module tree in eval mode, without its graph and with other tensors.

    tensors  by the `id` of the parameter or buffer that each stands for, all of them
    """
    memo: dict[int, Any] = {id(traced.graph): traced.graph, **tensors}
    root = nn.Module()
    for name, child in traced._modules.items():
        root.add_module(name, child and copy_module(child, memo))
    for name, parameter in traced._parameters.items():
        root.register_parameter(name, None if parameter is None else memo[id(parameter)])
    for name, buffer in traced._buffers.items():
        root.register_buffer(name, None if buffer is None else memo[id(buffer)])
    for name, value in plain_attributes(traced).items():
        setattr(root, name, value)
    set_mode(root, False)
    return root


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


class MetaFactories(meta_kernels.PlainDispatchMode):
    """Everything is created on the meta device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return call_on_meta(func, args, kwargs or {})[0]
