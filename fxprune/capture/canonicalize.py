"""Rewrites of a captured graph that change nothing but make later analysis exact.

1. Fused projections: a view that splits one axis into (K, ...) of which the K parts are then taken
   apart becomes a split of that axis, so that each part has an axis of its own.
2. Channel shuffles: a view, a transposition and a view back that only permute one axis become an
   index_select with a constant permutation.
3. Lists of indices, as in ``x[:, [2, 0, 1]]``, become constant tensors, whose values can be
   followed.

A shape here is one tuple per dimension: its size in each capture. Dimensions with the same tuple
are equal at all sizes, dimensions with one value are static.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

Size = tuple[int, ...]
Shape = tuple[Size, ...]

_VIEWS = {"view", "reshape", torch.reshape}
_UNFLATTEN = {"unflatten", torch.unflatten}
_FLATTEN = {"flatten", torch.flatten}
_PERMUTE = {"permute", torch.permute}
_TRANSPOSE = {
    "transpose", "swapaxes", "swapdims", torch.transpose, torch.swapaxes, torch.swapdims
}  # fmt: skip
_SELECT = {"select", torch.select}
_UNBIND = {"unbind", torch.unbind}
_INDEXED = {operator.getitem, operator.setitem}


def is_static(size: Size) -> bool:
    """Whether a dimension has the same size in every capture."""
    return len(set(size)) == 1


def canonicalize(
    graph: fx.Graph, shapes: Mapping[fx.Node, Shape], constant: Callable[[Tensor], str]
) -> int:
    """Rewrite `graph` in place; `constant` registers a tensor and returns its attribute name.

    Nodes without an entry in `shapes` are left alone. Returns the number of rewrites; nodes that
    lost their users stay for dead-code elimination.
    """
    known = dict(shapes)
    count = 0
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is F.channel_shuffle:
            count += _named_shuffle(graph, node, known, constant)
        elif node.op == "call_function" and node.target in _INDEXED:
            count += _listed(graph, node, constant)
        elif _is(node, _VIEWS) or _is(node, _UNFLATTEN):
            chain = _chain(node, known)
            if chain is not None:
                count += _fused(graph, chain, known) or _shuffle(graph, chain, known, constant)
    return count


def _is(node: fx.Node, targets: set[Any]) -> bool:
    return node.op in ("call_method", "call_function") and node.target in targets


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


@dataclass(frozen=True)
class _Group:
    """Neighbouring input axes that a reshape turns into neighbouring output axes."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def groups(before: Shape, after: Shape) -> list[_Group] | None:
    """The finest row-major correspondence of two shapes; None if there is none."""
    found: list[_Group] = []
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
        found.append(_Group(tuple(range(start, i)), tuple(range(stop, j))))
    return found


def _ones(before: Shape, after: Shape) -> Size:
    return (1,) * len((before or after)[0])


def _times(a: Size, b: Size) -> Size:
    return tuple(x * y for x, y in zip(a, b, strict=True))


@dataclass(frozen=True)
class _Chain:
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


def _chain(view: fx.Node, shapes: Mapping[fx.Node, Shape]) -> _Chain | None:
    source = view.args[0]
    if not isinstance(source, fx.Node) or source not in shapes or view not in shapes:
        return None
    before, after = shapes[source], shapes[view]
    split = [
        g
        for g in groups(before, after) or ()
        if len(g.inputs) == 1 and len(g.outputs) > 1 and is_static(before[g.inputs[0]])
    ]
    split = [g for g in split if all(is_static(after[d]) for d in g.outputs)]
    if len(split) != 1:
        return None
    (group,) = split
    order, last = tuple(range(len(after))), view
    while len(last.users) == 1:
        (user,) = last.users
        moved = _moved(user, last, order)
        if moved is None:
            break
        order, last = moved, user
    factors = tuple(after[d][0] for d in group.outputs)
    return _Chain(view, source, group.inputs[0], group.outputs[0], factors, last, order)


def _moved(node: fx.Node, given: fx.Node, order: tuple[int, ...]) -> tuple[int, ...] | None:
    """The order behind a permutation node; None if the node is none."""
    if node.args[:1] != (given,):
        return None
    if _is(node, _PERMUTE):
        dims = node.args[1:] or (node.kwargs.get("dims"),)
        flat = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
        return tuple(order[operator.index(d)] for d in flat)  # type: ignore[arg-type]
    if _is(node, _TRANSPOSE):
        a, b = _argument(node, 1, "dim0"), _argument(node, 2, "dim1")
        if not isinstance(a, int) or not isinstance(b, int):
            return None
        swapped = list(order)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        return tuple(swapped)
    if node.op == "call_method" and node.target == "contiguous":
        return order
    return None


# Fused projections ---------------------------------------------------------------------------


def _selected(node: fx.Node, rank: int) -> tuple[int, dict[fx.Node, int]] | None:
    """(dimension, node -> index) if all users of `node` each take one index of one dimension."""
    users = list(node.users)
    if len(users) == 1 and _is(users[0], _UNBIND):
        dim = _argument(users[0], 1, "dim", 0)
        taken = {u: u.args[1] for u in users[0].users if u.target is operator.getitem}
        if len(taken) != len(users[0].users) or not isinstance(dim, int):
            return None
        if not all(isinstance(i, int) for i in taken.values()):
            return None
        return dim % rank, taken  # type: ignore[return-value]
    found: dict[fx.Node, int] = {}
    dims: set[int] = set()
    for user in users:
        place = _index(user, node, rank)
        if place is None:
            return None
        dims.add(place[0])
        found[user] = place[1]
    return (dims.pop(), found) if len(dims) == 1 else None


def _index(user: fx.Node, node: fx.Node, rank: int) -> tuple[int, int] | None:
    if not user.args or user.args[0] is not node:
        return None
    if _is(user, _SELECT):
        dim, index = _argument(user, 1, "dim"), _argument(user, 2, "index")
        both = isinstance(dim, int) and isinstance(index, int)
        return (dim % rank, index) if both else None
    if user.op != "call_function" or user.target is not operator.getitem:
        return None
    items = user.args[1] if isinstance(user.args[1], tuple) else (user.args[1],)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        missing = rank - (len(items) - 1)
        items = (*items[:at], *(slice(None),) * missing, *items[at + 1 :])
    chosen = [(d, i) for d, i in enumerate(items) if i != slice(None)]
    if len(chosen) != 1 or type(chosen[0][1]) is not int:
        return None
    return chosen[0]


def _fused(graph: fx.Graph, chain: _Chain, shapes: dict[fx.Node, Shape]) -> bool:
    rank = len(chain.order)
    selected = _selected(chain.last, rank)
    if selected is None:
        return False
    dim, takers = selected
    label = chain.order[dim]
    place = label - chain.first
    if not 0 <= place < len(chain.factors) - 1 or chain.factors[place] == 1:
        return False
    parts = _parts(graph, chain, place)
    rest = [d for d in chain.order if d != label]
    order = tuple(d - (d > label) for d in rest)
    for taker, index in takers.items():
        with graph.inserting_before(taker):
            part = parts[index % chain.factors[place]]
            if order != tuple(range(len(order))):
                part = graph.call_method("permute", (part, *order))
                part.meta.update(_meta(chain.last))
        taker.replace_all_uses_with(part)
        if taker in shapes:
            shapes[part] = shapes[taker]
    return True


def _meta(node: fx.Node) -> dict[str, Any]:
    return {key: node.meta[key] for key in ("source", "line") if key in node.meta}


def _parts(graph: fx.Graph, chain: _Chain, place: int) -> list[fx.Node]:
    """The K parts of the split axis, in the shape of the view without dimension K."""
    factors, view = chain.factors, chain.view
    before, count, behind = factors[:place], factors[place], factors[place + 1 :]
    width = math.prod(behind)
    sizes = _sizes(view, len(chain.order))
    parts: list[fx.Node] = []
    with graph.inserting_before(view):
        source, axis = chain.source, chain.axis
        if before:
            source = graph.call_method("unflatten", (source, axis, (*before, count * width)))
            axis += len(before)
        whole = graph.call_method("split", (source, width), {"dim": axis})
        for index in range(count):
            part = graph.call_function(operator.getitem, (whole, index))
            if sizes is not None:
                kept = sizes[: chain.first + place] + sizes[chain.first + place + 1 :]
                part = graph.call_method("reshape", (part, *kept))
            elif len(behind) > 1:
                part = graph.call_method("unflatten", (part, axis, behind))
            part.meta.update(_meta(view))
            parts.append(part)
    return parts


def _sizes(view: fx.Node, rank: int) -> tuple[Any, ...] | None:
    """The size arguments of a view; None for an unflatten, which names one axis only."""
    if _is(view, _UNFLATTEN):
        return None
    given = view.args[1:] or (view.kwargs.get("shape", view.kwargs.get("size")),)
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = tuple(given[0])
    return tuple(given)


# Channel shuffles ----------------------------------------------------------------------------


def _shuffle(
    graph: fx.Graph,
    chain: _Chain,
    shapes: dict[fx.Node, Shape],
    constant: Callable[[Tensor], str],
) -> bool:
    if len(chain.last.users) != 1 or chain.last is chain.view:
        return False
    (back,) = chain.last.users
    if not (_is(back, _VIEWS) or _is(back, _FLATTEN)) or back.args[0] is not chain.last:
        return False
    source = chain.source
    if shapes.get(back) != shapes[source]:
        return False
    stop = chain.first + len(chain.factors)
    # One view may also regroup other axes: only a pure split of one axis is a permutation of it.
    if len(chain.order) != len(shapes[source]) + len(chain.factors) - 1:
        return False
    outside = [d for d in chain.order if not chain.first <= d < stop]
    inside = chain.order[chain.first : stop]
    if outside != sorted(outside) or sorted(inside) != list(range(chain.first, stop)):
        return False
    local = [d - chain.first for d in inside]
    n = math.prod(chain.factors)
    permutation = torch.arange(n).reshape(chain.factors).permute(local).reshape(-1)
    _replace(graph, back, source, chain.axis, permutation, constant, shapes)
    return True


def _named_shuffle(
    graph: fx.Graph,
    node: fx.Node,
    shapes: dict[fx.Node, Shape],
    constant: Callable[[Tensor], str],
) -> bool:
    source, count = node.args[0], _argument(node, 1, "groups")
    if not isinstance(source, fx.Node) or source not in shapes or not isinstance(count, int):
        return False
    size = shapes[source][1]
    if not is_static(size):
        return False
    permutation = torch.arange(size[0]).reshape(count, -1).t().reshape(-1)
    _replace(graph, node, source, 1, permutation, constant, shapes)
    return True


def _replace(
    graph: fx.Graph,
    node: fx.Node,
    source: fx.Node,
    axis: int,
    permutation: Tensor,
    constant: Callable[[Tensor], str],
    shapes: dict[fx.Node, Shape],
) -> None:
    with graph.inserting_before(node):
        index = graph.get_attr(constant(permutation))
        made = graph.call_function(torch.index_select, (source, axis, index))
    made.meta.update(_meta(node))
    shapes[made] = shapes[source]
    node.replace_all_uses_with(made)


def _listed(graph: fx.Graph, node: fx.Node, constant: Callable[[Tensor], str]) -> int:
    """Replace the lists of integers in an index by constant tensors."""
    key: Any = node.args[1]
    items: tuple[Any, ...] = key if isinstance(key, tuple) else (key,)
    lists = [item for item in items if isinstance(item, list) and _all_integers(item)]
    if not lists:
        return 0
    with graph.inserting_before(node):
        new = [
            graph.get_attr(constant(torch.tensor(list(item)))) if item in lists else item
            for item in items
        ]
    node.update_arg(1, tuple(new) if isinstance(key, tuple) else new[0])
    return 1


def _all_integers(item: list[Any]) -> bool:
    return bool(item) and all(
        _all_integers(entry) if isinstance(entry, list) else type(entry) is int for entry in item
    )
