"""The layers of a graph that have Kronecker factors, and their inputs and gradients as columns.

A layer multiplies a weight with patches of its input: `nn.Linear`, `nn.Conv1d` to `nn.Conv3d`, and
linear functions on rows of a parameter, as in attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

_KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Layer:
    """One weight that multiplies patches, and all its uses in a graph.

    name      of the module; of a linear function the parameter's, with its rows if it has others
    weight    name of the parameter
    bias      name of the parameter, None without one
    rows      which rows of the parameter are the weight's, (first, after the last)
    shape     of the weight
    groups    of a grouped convolution, else 1
    calls     the nodes that use it
    norm      the batch normalisation that alone reads its only use, if there is one
    geometry  of a convolution, None if it is linear
    """

    name: str
    weight: str
    bias: str | None
    rows: tuple[int, int]
    shape: tuple[int, ...]
    groups: int
    calls: tuple[fx.Node, ...]
    norm: str | None
    geometry: Geometry | None

    @property
    def outputs(self) -> int:
        """Output features or channels of each group."""
        return self.shape[0] // self.groups

    @property
    def kernel(self) -> int:
        """How many positions the kernel has."""
        return math.prod(self.shape[2:])

    @property
    def inputs(self) -> int:
        """Entries of a patch of one group, without a constant: input channels · kernel."""
        return math.prod(self.shape[1:])

    def columns(self, x: Tensor) -> Tensor:
        """The patches of an input: [groups, inputs, positions], the samples outermost."""
        if self.geometry is None:
            return x.reshape(-1, x.shape[-1]).t()[None]
        return self.geometry.patches(x).reshape(self.groups, self.inputs, -1)

    def gradients(self, gradient: Tensor) -> Tensor:
        """A gradient by the output: [groups, outputs, positions], in the order of `columns`."""
        if self.geometry is None:
            return gradient.reshape(-1, gradient.shape[-1]).t()[None]
        batched = self.geometry.batched(gradient)
        return batched.transpose(0, 1).reshape(self.groups, self.outputs, -1)

    def tells_apart(self, known: Tensor | None) -> bool:
        """Whether each position is of one sample, if `known` says that of the input's indices."""
        if known is None:
            return False
        if self.geometry is None:
            return known.shape[-1] == 1
        return known.numel() == 1 or (
            known.dim() == len(self.shape) and known.numel() == len(known)
        )

    def of_samples(self, known: Tensor, value: Tensor, first: int, last: int) -> Tensor:
        """The entries of an input or output whose sample is in [first, last), sample by sample.

        The outermost dimension of the result has equally many indices of each of these samples.
        """
        if self.geometry is None:
            rows = known.select(-1, 0).expand(value.shape[:-1]).reshape(-1)
            value = value.reshape(-1, value.shape[-1])
        else:
            value = self.geometry.batched(value)
            rows = known.reshape(-1).expand(len(value))
        chosen = ((rows >= first) & (rows < last)).nonzero()[:, 0]
        order = chosen[rows[chosen].argsort(stable=True)]
        return value[order.to(value.device)]

    def positions(self, value: Tensor) -> int:
        """How many positions an output has, those of all samples together."""
        return value.numel() // self.shape[0]

    def chunks(self, x: Tensor, most: int) -> Iterator[Tensor]:
        """An input in slices of the outermost dimension whose patches have at most `most` entries,
        or one index each.
        """
        if self.geometry is None:
            yield x
            return
        x = self.geometry.batched(x)
        step = max(1, most // max(1, self.inputs * self.groups * self.geometry.positions(x)))
        for start in range(0, len(x), step):
            yield x[start : start + step]


@dataclass(frozen=True)
class Geometry:
    """Where a convolution's kernel lands. `padding` is for `torch.nn.functional.pad`."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    mode: str

    def batched(self, x: Tensor) -> Tensor:
        """The input or output with a dimension of samples."""
        return x[None] if x.dim() == len(self.kernel) + 1 else x

    def positions(self, x: Tensor) -> int:
        """How many output positions a sample has."""
        total = 1
        for dim, kernel in enumerate(self.kernel):
            pads = len(self.padding) - 2 * dim
            size = x.shape[dim - len(self.kernel)] + sum(self.padding[pads - 2 : pads])
            total *= (size - self.dilation[dim] * (kernel - 1) - 1) // self.stride[dim] + 1
        return total

    def patches(self, x: Tensor) -> Tensor:
        """[channels, *kernel, samples, *positions]"""
        x = self.batched(x)
        if any(self.padding):
            x = functional.pad(x, self.padding, self.mode)
        rank = len(self.kernel)
        for dim in range(rank):
            reach = self.dilation[dim] * (self.kernel[dim] - 1) + 1
            x = x.unfold(2 + dim, reach, self.stride[dim])[..., :: self.dilation[dim]]
        inner, outer = range(2 + rank, 2 + 2 * rank), range(2, 2 + rank)
        return x.permute(1, *inner, 0, *outer)


def find_layers(traced: fx.GraphModule) -> tuple[Layer, ...]:
    """The layers of a graph in the order of their first use."""
    named = dict(traced.named_parameters(remove_duplicate=False))
    names = {id(p): name for name, p in reversed(named.items())}  # tied ones by their first name
    found: dict[tuple[str, str | None, tuple[int, int]], Layer] = {}
    for node in traced.graph.nodes:
        layer = _called(traced, node, names) or _linear(traced, node)
        if layer is not None:
            key = layer.weight, layer.bias, layer.rows
            known = found.get(key)
            if known is None:
                found[key] = layer
            elif known.geometry == layer.geometry and known.groups == layer.groups:
                found[key] = replace(known, calls=(*known.calls, node), norm=None)
    return tuple(found.values())


def input_of(node: fx.Node) -> fx.Node | None:
    """The node whose value a layer's use reads."""
    x = node.args[0] if node.args else node.kwargs.get("input")
    return x if isinstance(x, fx.Node) else None


def _called(traced: fx.GraphModule, node: fx.Node, names: Mapping[int, str]) -> Layer | None:
    module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    kind = next((kind for kind in _KINDS if isinstance(module, kind)), None)
    if (
        module is None
        or kind is None
        or type(module).forward is not kind.forward
        or input_of(node) is None
    ):
        return None
    assert isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    weight, bias = module.weight, module.bias
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        return None  # parametrized or quantized
    geometry = None
    if not isinstance(module, nn.Linear):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        pads: Any = module._reversed_padding_repeated_twice
        if mode == "constant" and not isinstance(module.padding, str):  # what forward reads
            pads = [size for size in reversed(module.padding) for _ in range(2)]
        geometry = Geometry(module.kernel_size, module.stride, module.dilation, tuple(pads), mode)
    return Layer(
        str(node.target),
        names[id(weight)],
        names[id(bias)] if isinstance(bias, nn.Parameter) else None,
        (0, len(weight)),
        tuple(weight.shape),
        getattr(module, "groups", 1),
        (node,),
        _norm_after(traced, node),
        geometry,
    )


def _linear(traced: fx.GraphModule, node: fx.Node) -> Layer | None:
    """A linear function on consecutive rows of a parameter."""
    if node.op != "call_function" or node.target is not functional.linear:
        return None
    bound = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(node.kwargs)
    weight, bias = _rows(traced, bound.get("weight")), _rows(traced, bound.get("bias"))
    if weight is None or input_of(node) is None:
        return None
    name, rows = weight
    if bound.get("bias") is not None and (bias is None or bias[1] != rows):
        return None
    size = traced.get_parameter(name).shape
    whole = rows == (0, size[0])
    return Layer(
        name if whole else f"{name}[{rows[0]}:{rows[1]}]",
        name,
        None if bias is None else bias[0],
        rows,
        (rows[1] - rows[0], *size[1:]),
        1,
        (node,),
        None,
        None,
    )


def _rows(traced: fx.GraphModule, value: Any) -> tuple[str, tuple[int, int]] | None:
    """The parameter, and which of its rows a node selects, if that is all that it does."""
    steps: list[fx.Node] = []
    node = value
    while isinstance(node, fx.Node) and node.op != "get_attr":
        steps.append(node)
        node = node.args[0] if len(node.all_input_nodes) == 1 and node.args else None
        if len(steps) > 2 or steps[-1].op == "call_module":
            return None
    if not isinstance(node, fx.Node):
        return None
    parameter = dict(traced.named_parameters(remove_duplicate=False)).get(str(node.target))
    if parameter is None or not parameter.is_floating_point():
        return None
    entries: Any = torch.arange(parameter.numel()).reshape(parameter.shape)
    for step in reversed(steps):
        arguments = (entries, *step.args[1:])
        if step.op == "call_method":
            entries = getattr(entries, str(step.target))(*arguments[1:], **step.kwargs)
        else:
            assert callable(step.target)
            entries = step.target(*arguments, **step.kwargs)
    return None if not isinstance(entries, Tensor) else _span(str(node.target), parameter, entries)


def _span(name: str, parameter: Tensor, entries: Tensor) -> tuple[str, tuple[int, int]] | None:
    per_row = math.prod(parameter.shape[1:])
    first = int(entries.reshape(-1)[0]) // per_row
    expected = torch.arange(parameter.numel()).reshape(parameter.shape)[first:][: len(entries)]
    return (name, (first, first + len(entries))) if torch.equal(entries, expected) else None


def _norm_after(traced: fx.GraphModule, node: fx.Node) -> str | None:
    """The batch normalisation that alone reads a layer's only call and normalises nothing else."""
    same = [n for n in traced.graph.nodes if n.op == "call_module" and n.target == node.target]
    users = list(node.users)
    if len(same) != 1 or len(users) != 1 or users[0].op != "call_module":
        return None
    norm = traced.get_submodule(str(users[0].target))
    others = [
        n for n in traced.graph.nodes if n.op == "call_module" and n.target == users[0].target
    ]
    known = isinstance(norm, _BatchNorm) and norm.running_var is not None
    return str(users[0].target) if known and len(others) == 1 else None
