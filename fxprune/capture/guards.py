"""The checks that a captured graph makes on its inputs, and the functions it rebuilds outputs with.

They are ordinary functions, called by nodes of the graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import Tensor, fx
from torch.fx.node import has_side_effect

from fxprune.errors import TraceError

Function = TypeVar("Function", bound=Callable[..., Any])


def _opaque(function: Function) -> Function:
    """Let torch.fx.symbolic_trace (and so pickle) record calls of `function` as one node."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, fx.Proxy):
                return value.tracer.create_proxy("call_function", call, args, kwargs)
        return function(*args, **kwargs)

    return cast(Function, call)


@_opaque
def fixed_sizes(x: Tensor, name: str, rank: int, sizes: tuple[tuple[int, int], ...]) -> Tensor:
    """Return x unchanged if it has `rank` dimensions and, for each (dim, size), that size.

    Raises TraceError otherwise.
    """
    shape = tuple(x.shape)
    if len(shape) != rank:
        raise TraceError(
            f"input {name!r} has {len(shape)} dimensions (shape {shape}), but the model was traced "
            f"with {rank}. Trace it again with such an input."
        )
    for dim, size in sizes:
        if shape[dim] != size:
            raise TraceError(
                f"input {name!r} has size {shape[dim]} in dimension {dim} (shape {shape}), but the "
                f"model was traced for {size} there and no other size. "
                "Trace it again with an input of that size."
            )
    return x


@has_side_effect
@_opaque
def same_size(size: int, other: int, name: str, reference: str) -> None:
    """Raise TraceError unless two input sizes, which were equal in the trace, are equal."""
    if size != other:
        raise TraceError(
            f"{name} has size {size} and {reference} has size {other}, but they were equal when "
            "the model was traced, and the graph holds only for equal sizes. Pass equal sizes, or "
            "trace again with example inputs whose sizes differ."
        )


@has_side_effect
@_opaque
def stepped_size(size: int, traced: int, unit: int, name: str) -> None:
    """Raise TraceError unless a size differs from the traced one by a multiple of `unit`."""
    if (size - traced) % unit:
        raise TraceError(
            f"{name} has size {size}, but the graph holds only for sizes that differ from the "
            f"traced {traced} by multiples of {unit} (at others the model takes another path). "
            "Trace it again with an input of that size."
        )


@has_side_effect
@_opaque
def fixed_value(value: Any, expected: Any, name: str) -> None:
    """Raise TraceError unless a non-tensor input has the value it was traced with."""
    if type(value) is not type(expected) or value != expected:
        raise TraceError(
            f"input {name!r} is {value!r}, but the model was traced with {expected!r}, which the "
            "graph has built in. Trace it again with that value."
        )


@has_side_effect
@_opaque
def holds(condition: bool, expected: bool, what: str) -> None:
    """Raise TraceError unless a comparison of sizes comes out as it did in the trace."""
    if bool(condition) is not expected:
        raise TraceError(
            f"with these input sizes the model takes a path that was not traced ({what} is now "
            f"{bool(condition)}). Trace it again with example inputs of such sizes."
        )


@_opaque
def new_object(cls: type, state: dict[str, Any]) -> Any:
    """An object of a class with the given attributes, made without calling its constructor."""
    made: Any = object.__new__(cls)
    made.__dict__.update(state)
    return made
