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
