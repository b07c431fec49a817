"""The literals of a graph as JSON data, and back.

None, booleans, integers, finite floats, texts and lists are themselves. All else is an object
with one entry, whose key says what it is: `{"tuple": [1, 2]}`, `{"dtype": "float32"}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.checkpoint import vocabulary
from fxprune.errors import CheckpointError
from fxprune.plans.base import short


class Unknown(Exception):
    """A value that a file cannot describe: whoever loads it needs the model's class."""


def encode(value: Any) -> Any:
    """JSON data for a literal or argument. Raises Unknown for what only code can make."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if type(value) is torch.Size:
        return {"size": list(value)}
    if type(value) is tuple:
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(value.start), encode(value.stop), encode(value.step)]}
    for tag, (kind, encoder, _) in _KINDS.items():
        if isinstance(value, kind):
            return {tag: encoder(value)}
    try:
        return {"function": vocabulary.name_of(value)}
    except KeyError:
        raise Unknown(f"a {type(value).__name__}: {short(value)}") from None


def decode(data: Any, nodes: Mapping[str, fx.Node] | None = None) -> Any:
    """The literal that `encode` described. Raises CheckpointError for anything else.

    nodes   the nodes of the graph so far, which the value may refer to
    """
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if isinstance(data, list):
        return [decode(item, nodes) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise CheckpointError(f"The graph has the value {short(data)}, which is no literal.")
    ((tag, content),) = data.items()
    if tag == "node" and nodes is not None and isinstance(content, str) and content in nodes:
        return nodes[content]
    try:
        return _decoded(tag, content, nodes)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"The graph has the value {short(data)}, which this version does not know: "
            f"{short(str(error))}."
        ) from error


def _decoded(tag: str, content: Any, nodes: Mapping[str, fx.Node] | None) -> Any:
    if tag in ("tuple", "size", "slice"):
        items = [decode(item, nodes) for item in _typed(content, list)]
        return _SEQUENCES[tag](items)
    if tag == "dict":
        return {decode(k, nodes): decode(v, nodes) for k, v in _typed(content, list)}
    if tag == "function":
        return _value_function(_typed(content, str))
    return _KINDS[tag][2](content)


def _value_function(name: str) -> Callable[..., Any]:
    """A function that is passed on. Those whose arguments are checked are only called by name."""
    function = vocabulary.function(name)
    if function in vocabulary.CHECKED:
        raise ValueError("it may only be called")
    return function


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{short(value)} is not a {kind.__name__}")
    return value


def _tensor(data: Any) -> Tensor:
    """An example input: a meta tensor, of which only the geometry is known."""
    shape, stride, dtype = data
    if not all(type(n) is int and n >= 0 for n in (*shape, *stride)):
        raise ValueError("sizes are no integers")
    return torch.empty_strided(shape, stride, dtype=_dtype(dtype), device="meta")


def _dtype(name: Any) -> torch.dtype:
    return _DTYPES[_typed(name, str)]


_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {str(v).removeprefix("torch."): v for v in vars(torch).values() if isinstance(v, torch.dtype)}
)
_LAYOUTS = {str(v): v for v in (torch.strided, torch.sparse_coo)}
_FORMATS = {
    str(v): v
    for v in (
        torch.contiguous_format,
        torch.channels_last,
        torch.channels_last_3d,
        torch.preserve_format,
    )
}
_SEQUENCES: Mapping[str, Callable[[list[Any]], Any]] = MappingProxyType(
    {"tuple": tuple, "size": torch.Size, "slice": lambda items: slice(*items)}
)
_KINDS: Mapping[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = MappingProxyType(
    {
        "node": (fx.Node, lambda node: node.name, lambda _: _refuse()),
        "float": (
            float,
            str,
            lambda text: {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[text],
        ),
        "complex": (complex, lambda c: [c.real, c.imag], lambda parts: complex(*parts)),
        "dtype": (torch.dtype, lambda dtype: str(dtype).removeprefix("torch."), _dtype),
        "device": (torch.device, str, lambda name: torch.device(_typed(name, str))),
        "layout": (torch.layout, str, _LAYOUTS.__getitem__),
        "memory_format": (torch.memory_format, str, _FORMATS.__getitem__),
        "ellipsis": (type(...), lambda _: True, lambda _: ...),
        "range": (range, lambda r: [r.start, r.stop, r.step], lambda ends: range(*ends)),
        "tensor": (
            Tensor,
            lambda t: [list(t.shape), list(t.stride()), str(t.dtype).removeprefix("torch.")],
            _tensor,
        ),
    }
)
"""Key → the type, how it is described, and how it is made again."""


def _refuse() -> Any:
    raise ValueError("there is no such node before it")
