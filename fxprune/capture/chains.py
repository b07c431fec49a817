"""Views that split one axis, and the permutations behind them: what rewrites of a graph look for.

A shape here is one tuple per dimension: its size in each capture. Dimensions with the same tuple
are equal at all sizes, dimensions with one value are static.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

Size = tuple[int, ...]
Shape = tuple[Size, ...]

VIEWS = {"view", "reshape", torch.reshape}
UNFLATTEN = {"unflatten", torch.unflatten}
_PERMUTE = {"permute", torch.permute}
_TRANSPOSE = {
    "transpose", "swapaxes", "swapdims", torch.transpose, torch.swapaxes, torch.swapdims
}  # fmt: skip


def is_static(size: Size) -> bool:
    """Whether a dimension has the same size in every capture."""
    return len(set(size)) == 1


def calls(node: fx.Node, targets: set[Any]) -> bool:
    """Whether a node calls one of these methods or functions."""
    return node.op in ("call_method", "call_function") and node.target in targets


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a node, positional or by keyword."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


@dataclass(frozen=True)
class Group:
    """Neighbouring input axes that a reshape turns into neighbouring output axes."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def groups(before: Shape, after: Shape) -> list[Group] | None:
    """The finest row-major correspondence of two shapes; None if there is none."""
    found: list[Group] = []
    i = j = 0
    while i < len(before) or j < len(after):
        start, stop = i, j
        left, right = _ones(before, after), _ones(before, after)
        while start == i or stop == j or left != right:
            grow_left = start == i or (stop != j and left[0] < right[0])
            if grow_left and i < len(before):
                left, i = _times(left, before[i]), i + 1
            elif j < len(after):
                right, j = _times(right, after[j]), j + 1
            elif i < len(before):
                left, i = _times(left, before[i]), i + 1
            else:
                break
        if left != right:
            return None
        found.append(Group(tuple(range(start, i)), tuple(range(stop, j))))
    return found


def _ones(before: Shape, after: Shape) -> Size:
    return (1,) * len((before or after)[0])


def _times(a: Size, b: Size) -> Size:
    return tuple(x * y for x, y in zip(a, b, strict=True))


@dataclass(frozen=True)
class Chain:
    """A view of `source` that splits `axis` into `factors`, and the permutations behind it.

    first: the output dimension of the first factor. order: for each dimension of `last`, the
    dimension of the view that it was.
    """

    view: fx.Node
    source: fx.Node
    axis: int
    first: int
    factors: tuple[int, ...]
    last: fx.Node
    order: tuple[int, ...]


def find_chains(view: fx.Node, shapes: Mapping[fx.Node, Shape]) -> list[Chain]:
    """The chains that start at a view: one for each axis that it splits."""
    source = view.args[0]
    if not isinstance(source, fx.Node) or source not in shapes or view not in shapes:
        return []
    before, after = shapes[source], shapes[view]
    split = [
        g
        for g in groups(before, after) or ()
        if len(g.inputs) == 1 and len(g.outputs) > 1 and is_static(before[g.inputs[0]])
    ]
    split = [g for g in split if all(is_static(after[d]) for d in g.outputs)]
    order, last = tuple(range(len(after))), view
    while len(last.users) == 1:
        (user,) = last.users
        moved = _moved(user, last, order)
        if moved is None:
            break
        order, last = moved, user
    return [
        Chain(
            view,
            source,
            axis=group.inputs[0],
            first=group.outputs[0],
            factors=tuple(after[d][0] for d in group.outputs),
            last=last,
            order=order,
        )
        for group in split
    ]


def _moved(node: fx.Node, given: fx.Node, order: tuple[int, ...]) -> tuple[int, ...] | None:
    """The order behind a permutation node; None if the node is none."""
    if node.args[:1] != (given,):
        return None
    if calls(node, _PERMUTE):
        dims = node.args[1:] or (node.kwargs.get("dims"),)
        flat = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
        return tuple(order[operator.index(d)] for d in flat)  # type: ignore[arg-type]
    if calls(node, _TRANSPOSE):
        a, b = argument(node, 1, "dim0"), argument(node, 2, "dim1")
        if not isinstance(a, int) or not isinstance(b, int):
            return None
        swapped = list(order)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        return tuple(swapped)
    if node.op == "call_method" and node.target == "contiguous":
        return order
    return None
