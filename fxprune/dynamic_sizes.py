"""Dimensions whose size follows the model's inputs, and what of them may still be pruned.

Such a size is a node of the graph: the batch, a sequence length, or a product like ``batch * 4``.
A dimension of that size is no channel, whatever it was made from; but where the literal 4 counts
heads or channels, those may go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from torch import fx
from torch._ops import OpOverload

from fxprune.axes import Axis, factors_of, is_frozen
from fxprune.rules.base import Layout

LayoutOf: TypeAlias = Callable[[fx.Node], Layout]

_SIZES_START: Mapping[str, int] = MappingProxyType(
    dict.fromkeys(("view", "reshape", "expand", "as_strided"), 1)
    | dict.fromkeys(("zeros", "ones", "empty", "full"), 0)
)
"""Where the output's sizes start among the arguments."""


def name_of(node: fx.Node) -> str:
    """The name of the function, operator or method that a node calls."""
    target: Any = node.target
    if node.op == "call_method":
        return str(target)
    # Operators are named after their overloads, too: "view.default".
    return target._opname if isinstance(target, OpOverload) else getattr(target, "__name__", "")


def unexplained(node: fx.Node, layout_of: LayoutOf) -> Iterator[Axis]:
    """The axes of a node's tensor that follow the inputs in more than their frozen factors."""
    sizes = _sizes_of(node)
    if any(isinstance(size, fx.Node) for size in sizes):
        for axis, size in zip(layout_of(node), sizes, strict=False):
            if isinstance(size, fx.Node) and _literal(size, layout_of) % _free_size(axis) != 0:
                yield axis


def unexplained_bounds(node: fx.Node, layout: Layout, layout_of: LayoutOf) -> Iterator[Axis]:
    """The axes of x, of this layout, that ``x[…]`` slices by sizes that say nothing about channels.

    Torch slices nothing where a slice happens to be the whole dimension.
    """
    for axis, item in zip(layout, _items(node.args[1], len(layout)), strict=False):
        bounds = (item.start, item.stop, item.step) if isinstance(item, slice) else ()
        if any(
            isinstance(b, fx.Node) and _literal(b, layout_of) % _free_size(axis) for b in bounds
        ):
            yield axis


def shifted(node: fx.Node, layout: Layout) -> Iterator[Axis]:
    """The axes of x, of this layout, that ``roll(x, …)`` shifts by sizes that follow the inputs."""
    shifts, dims = (
        node.args[position] if position < len(node.args) else node.kwargs.get(name, ())
        for position, name in ((1, "shifts"), (2, "dims"))
    )
    pairs = zip(
        *(v if isinstance(v, (tuple, list)) else (v,) for v in (shifts, dims)), strict=False
    )
    yield from (layout[d] for s, d in pairs if isinstance(s, fx.Node) and isinstance(d, int))


def _items(key: object, rank: int) -> Sequence[object]:
    """The items of the `key` in ``x[key]``, one for each of the first dimensions of x."""
    items = [item for item in (key if isinstance(key, tuple) else (key,)) if item is not None]
    if any(item is Ellipsis for item in items):
        place = next(i for i, item in enumerate(items) if item is Ellipsis)
        items[place : place + 1] = [slice(None)] * (rank - len(items) + 1)
    return items


def _sizes_of(node: fx.Node) -> Sequence[object]:
    """The sizes that a node asks for, given one by one, as a sequence or by keyword."""
    start = _SIZES_START.get(name_of(node))
    if start is None:
        return ()
    given = node.args[start:] or [node.kwargs[k] for k in ("size", "shape") if k in node.kwargs]
    return given[0] if given and isinstance(given[0], (tuple, list)) else given


def _free_size(axis: Axis) -> int:
    """The size of what is not frozen of an axis: of the factors of a product that may shrink."""
    return math.prod(factor.size for factor in factors_of(axis) if not is_frozen(factor))


def _literal(size: object, layout_of: LayoutOf) -> int:
    """A literal that divides a size whatever the inputs: 4 in ``batch * 4``."""
    if not isinstance(size, fx.Node):
        return size if isinstance(size, int) else 1
    name, args = name_of(size), size.args
    if name == "size" and isinstance(args[0], fx.Node) and isinstance(args[-1], int):
        return _free_size(layout_of(args[0])[args[-1]])
    if name not in ("mul", "floordiv"):
        return 1
    first, second = (_literal(argument, layout_of) for argument in args)
    if name == "mul":
        return first * second
    exact = isinstance(args[1], int) and first % second == 0
    return first // second if exact else 1
