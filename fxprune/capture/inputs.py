"""Example inputs: binding them to forward's parameters, and the dimensions that may vary."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import TraceError

Sizes = Mapping[tuple[str, int], int]


@dataclass(frozen=True)
class Leaf:
    """A tensor among the inputs: `label` for people, `place` the placeholder, `path` inside it."""

    label: str
    place: int
    path: tuple[Any, ...]
    tensor: Tensor


@dataclass(frozen=True)
class Inputs:
    """Example inputs bound to the parameters of forward."""

    bound: inspect.BoundArguments
    names: tuple[str, ...]
    keys: tuple[tuple[str, Any], ...]
    leaves: tuple[Leaf, ...]

    @property
    def omitted(self) -> frozenset[str]:
        """The parameters that the example gives no value."""
        return frozenset(self.bound.signature.parameters) - frozenset(self.bound.arguments)

    def values(self) -> list[Any]:
        """The example value of each placeholder."""
        return [_lookup(self.bound.arguments, key) for key in self.keys]

    def call(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) that pass `values`, one per placeholder, to forward."""
        arguments = dict(self.bound.arguments)
        for (name, inner), value in zip(self.keys, values, strict=True):
            if inner is None:
                arguments[name] = value
            elif isinstance(inner, int):
                arguments[name] = (*arguments[name][:inner], value, *arguments[name][inner + 1 :])
            else:
                arguments[name] = {**arguments[name], inner: value}
        rebound = inspect.BoundArguments(self.bound.signature, arguments)
        return rebound.args, rebound.kwargs

    def converted(self, old: torch.dtype, new: torch.dtype) -> Inputs:
        """The same inputs on meta, with tensors of one dtype in another one."""
        values = (
            _map_tensors(
                value, name, (), lambda t, *_: t.to("meta", new if t.dtype == old else None)
            )
            for name, value in zip(self.names, self.values(), strict=True)
        )
        args, kwargs = self.call(list(values))
        return replace(self, bound=self.bound.signature.bind(*args, **kwargs))

    def meta(self, sizes: Sizes) -> list[Any]:
        """The placeholders' values on meta, with other sizes where `sizes` gives them."""
        return on_meta(self.values(), self.names, sizes)


def on_meta(values: Sequence[Any], names: Sequence[str], sizes: Sizes) -> list[Any]:
    """Inputs of these names on meta, with other sizes where `sizes` gives them."""
    return [
        _map_tensors(value, name, (), lambda t, label, _: meta_input(t, label, sizes))
        for name, value in zip(names, values, strict=True)
    ]


def _lookup(arguments: Mapping[str, Any], key: tuple[str, Any]) -> Any:
    name, inner = key
    return arguments[name] if inner is None else arguments[name][inner]


def meta_input(tensor: Tensor, label: str, sizes: Sizes) -> Tensor:
    """A meta tensor like an example input, with other sizes along some dimensions."""
    shape = [sizes.get((label, d), s) for d, s in enumerate(tensor.shape)]
    if tuple(shape) == tuple(tensor.shape):
        strides = tensor.stride()
        return torch.empty_strided(shape, strides, dtype=tensor.dtype, device="meta")
    last = tensor.dim() == 4 and not tensor.is_contiguous()
    last = last and tensor.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=tensor.dtype, device="meta", memory_format=layout)


def _map_tensors(
    value: Any,
    label: str,
    path: tuple[Any, ...],
    fn: Callable[[Tensor, str, tuple[Any, ...]], Any],
) -> Any:
    if isinstance(value, Tensor):
        return fn(value, label, path)
    if isinstance(value, (list, tuple)):
        items = [_map_tensors(v, f"{label}[{i}]", (*path, i), fn) for i, v in enumerate(value)]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return type(value)(items)
    if isinstance(value, dict):
        return {k: _map_tensors(v, f"{label}[{k!r}]", (*path, k), fn) for k, v in value.items()}
    return value


def tensors_in(value: Any, label: str) -> Iterator[tuple[str, tuple[Any, ...], Tensor]]:
    """(label, path, tensor) for every tensor in a nested value."""
    found: list[tuple[str, tuple[Any, ...], Tensor]] = []
    _map_tensors(value, label, (), lambda t, name, path: found.append((name, path, t)))
    yield from found


def bind(model: nn.Module, example_inputs: Any) -> Inputs:
    """Bind a tensor, a tuple or list (positional) or a mapping (keywords) to model.forward.

    Raises TraceError if they do not fit its signature, or hold no tensor that capture can see.
    """
    bound = _bound(model, example_inputs)
    places = list(_places(bound))
    leaves: list[Leaf] = []
    for place, (name, key) in enumerate(places):
        value = _lookup(bound.arguments, key)
        found = list(tensors_in(value, name))
        known = sum(isinstance(t, Tensor) for t in pytree.tree_leaves(value))
        if known > len(found):
            raise TraceError(
                f"input {name!r} is a {type(value).__name__} that holds tensors; inputs may be "
                "tensors, numbers, strings, None, and tuples, lists and dicts of them. Unpack it."
            )
        leaves += [Leaf(label, place, path, tensor) for label, path, tensor in found]
    if not leaves:
        raise TraceError(
            f"the example inputs of {type(model).__name__} hold no tensor; a capture needs at "
            "least one. Pass the inputs that forward is called with."
        )
    names, keys = zip(*places, strict=True)
    return Inputs(bound, names, keys, tuple(leaves))


def _bound(model: nn.Module, example_inputs: Any) -> inspect.BoundArguments:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_inputs, Mapping):
        kwargs = dict(example_inputs)
    elif isinstance(example_inputs, (tuple, list)):
        args = tuple(example_inputs)
    else:
        args = (example_inputs,)
    signature = inspect.signature(model.forward)
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TraceError(
            f"the example inputs do not fit {type(model).__name__}.forward{signature}: {error}. "
            "Pass a tensor, a tuple of positional arguments, or a dict of keyword arguments."
        ) from None


def _places(bound: inspect.BoundArguments) -> Iterator[tuple[str, tuple[str, Any]]]:
    """For each input of the graph its name, and where it is among the arguments, see `_lookup`."""
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            yield from ((f"{name}_{i}", (name, i)) for i in range(len(value)))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            yield from ((key, (name, key)) for key in value)
        else:
            yield name, (name, None)


@dataclass(frozen=True)
class Symbol:
    """Input dimensions that vary together: (label, dim) pairs, their example size, trial sizes.

    `wide` trial sizes are far from the example and have no divisor in common with it: they show
    what only seems constant near the example. `careful` ones are for models that bear less: for
    images they differ from the example by multiples of `unit`, for sequences they are close.
    """

    places: tuple[tuple[str, int], ...]
    size: int
    wide: tuple[int, int]
    careful: tuple[int, int]
    unit: int

    def with_unit(self, unit: int) -> Symbol:
        """The same dimensions with careful trial sizes that differ by multiples of another unit."""
        first, second = (self.size + (s - self.size) // self.unit * unit for s in self.careful)
        return replace(self, careful=(first, second), unit=unit) if self.unit > 1 else self

    @property
    def elsewhere(self) -> tuple[int, int]:
        """Two more sizes that the model may bear, none of them a trial size."""
        first, second = self.careful
        return first + second - self.size, first + 2 * (second - self.size)

    def describe(self) -> str:
        """For messages: the dimension(s) by name."""
        return ", ".join(f"dimension {dim} of {label!r}" for label, dim in self.places)


# Increments of the two trial sizes. Their ratios all differ, so that a literal that follows a size
# follows only one.
_BATCH = (3, 37)
NEAR_BATCH = (3, 5)
_IMAGE = ((229, 509), (331, 617), (257, 719), (271, 523))
_UNITS = ((7, 16), (10, 19), (8, 23), (9, 17))
_FAR = ((37, 1511), (43, 1307), (53, 1811), (59, 1613), (61, 1213))
_NEAR = ((5, 11), (6, 13), (9, 20), (7, 16), (8, 19))


def _symbol(places: list[tuple[str, int]], size: int, order: int, image: bool) -> Symbol:
    def pair(table: tuple[tuple[int, int], ...], unit: int = 1) -> tuple[int, int]:
        first, second = table[order % len(table)]
        scale = unit * (1 + order // len(table))
        return size + first * scale, size + second * scale

    if places[0][1] == 0 and order == 0:
        batch = (size + _BATCH[0], size + _BATCH[1])
        return Symbol(tuple(places), size, batch, batch, 1)
    if image:
        return Symbol(tuple(places), size, pair(_IMAGE), pair(_UNITS, 32), 32)
    return Symbol(tuple(places), size, pair(_FAR), pair(_NEAR), 1)


def symbols(leaves: Sequence[Leaf]) -> list[Symbol]:
    """The candidate symbols: the batch first, then the other dimensions of the inputs.

    Dimensions with the same index and size in several inputs share a symbol. Channel dimensions of
    images (dimension 1 of floating tensors with 4 or more) and sizes of 1 other than the batch are
    left out.
    """
    places: dict[tuple[int, int], list[tuple[str, int]]] = {}
    images: set[tuple[int, int]] = set()
    for leaf in leaves:
        for dim, size in enumerate(leaf.tensor.shape):
            places.setdefault((dim, size), []).append((leaf.label, dim))
            if dim >= 2 and leaf.tensor.dim() >= 4 and leaf.tensor.is_floating_point():
                images.add((dim, size))
    ordered = sorted(places.items(), key=lambda item: item[0][0])
    return [
        _symbol(where, size, order, (dim, size) in images)
        for order, ((dim, size), where) in enumerate(ordered)
    ]


def is_channel(leaf: Leaf, dim: int) -> bool:
    """Whether a dimension is by convention one of channels, not worth a trial."""
    return dim == 1 and leaf.tensor.dim() >= 4 and leaf.tensor.is_floating_point()
