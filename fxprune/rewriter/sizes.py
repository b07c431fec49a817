"""Rows of the ops whose arguments are sizes, or that read sizes.

A size that follows the model's inputs is a node of the graph, and so is what is computed from it.
In the new graph every such node has the value that it had in the original, so that numbers keep
their meaning: ``x.size(0)`` of a dimension *batch * heads* that lost heads is scaled up again. Only
where such a value becomes the size of a tensor is it scaled to what is left.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from fxprune.axes import Axis, factors_of
from fxprune.rewriter.site import Row, Site


def resized(site: Site, sizes: Sequence[Any], axes: Sequence[Axis]) -> list[Any]:
    """`sizes` where axes changed: literals are replaced, computed sizes scaled; -1 stays."""
    return [
        _new_size(site, size, axis) if site.changed(axis) else size
        for size, axis in zip(sizes, axes, strict=True)
    ]


def _new_size(site: Site, size: Any, axis: Axis) -> Any:
    if isinstance(size, int):
        return size if size < 0 else site.width(axis)
    return rescaled(site, size, [axis])


def _shrinking(site: Site, axes: Sequence[Axis]) -> tuple[int, int]:
    """Product of the sizes of all factors that changed, before and after."""
    changed = [f for axis in axes for f in factors_of(axis) if site.changed(f)]
    return math.prod(f.size for f in changed), math.prod(site.width(f) for f in changed)


def _scaled(graph: fx.Graph, size: fx.Node, divisor: int, factor: int) -> fx.Node:
    """``size // divisor * factor``; the division leaves no rest."""
    rest = graph.call_function(operator.floordiv, (size, divisor))
    return graph.call_function(operator.mul, (rest, factor))


def _sizes_argument(site: Site, start: int, name: str) -> tuple[Any, bool]:
    """Sizes given as one sequence or as separate arguments, and whether they were separate.

    The sequence may be a node: the shape of a tensor.
    """
    first = site.argument(start, name)
    known = site.selection.analysis.propagation.nodes
    if isinstance(known[first] if isinstance(first, fx.Node) else first, (tuple, list)):
        return first, False
    return site.old.args[start:], True


def _taken_apart(site: Site, shape: fx.Node) -> list[Any]:
    """The sizes in a shape, whose tensor may have been pruned: numbers where the result is."""
    graph, before = site.new.graph, site.selection.analysis.propagation.nodes[shape]
    with graph.inserting_before(site.new):
        return [
            size
            if site.changed(axis)
            else graph.call_function(operator.getitem, (new_value(site, shape), place))
            for place, (size, axis) in enumerate(zip(before, site.out, strict=True))
        ]


def set_sizes(site: Site, start: int, name: str, sizes: Sequence[Any], separate: bool) -> None:
    """Give the new node these sizes, of which some may be nodes of the old graph."""
    known = set(site.old.all_input_nodes)  # what `resized` made is of the new graph already
    mapped = [new_value(site, size) if size in known else size for size in sizes]
    if separate:
        site.new.args = (*site.new.args[:start], *mapped)
    else:
        site.set(start, name, tuple(mapped))


def new_value(site: Site, value: Any) -> Any:
    """An old node as an argument of the new node."""
    if not isinstance(value, fx.Node):
        return value
    pairs = zip(site.old.all_input_nodes, site.new.all_input_nodes, strict=True)
    return dict(pairs)[value]


def sized(start: int, name: str) -> Row:
    """Ops whose sizes are the output's: view, reshape, expand, factories."""

    def row(site: Site) -> None:
        if any(site.changed(axis) for axis in site.out):
            sizes, separate = _sizes_argument(site, start, name)
            if isinstance(sizes, fx.Node):
                sizes = _taken_apart(site, sizes)
            set_sizes(site, start, name, resized(site, sizes, site.out), separate)

    return row


def view(site: Site) -> None:
    """`view(x, size)`; there are no sizes in `view(x, dtype)`."""
    record = site.record("aten::view")
    if record is None or "dtype" not in record.call.arguments:
        sized(1, "size")(site)


def repeated(name: str) -> Row:
    """`repeat`, `tile`: how often each dimension occurs in the result."""

    def row(site: Site) -> None:
        counts, separate = _sizes_argument(site, 1, name)
        axes = site.axes(site.old.args[0])
        padded: list[Axis | None] = [None] * (len(site.out) - len(axes)) + list(axes)
        counts = [1] * (len(site.out) - len(counts)) + list(counts)
        new = [
            site.selection.ratio(out, *([] if axis is None else [axis]))
            if isinstance(count, int) and site.changed(out)
            else count
            for count, axis, out in zip(counts, padded, site.out, strict=True)
        ]
        set_sizes(site, 1, name, new, separate)

    return row


def unflatten(site: Site) -> None:
    """`unflatten(x, dim, sizes)`."""
    dim = int(site.argument(1, "dim")) % len(site.axes(site.old.args[0]))
    sizes = site.argument(2, "sizes")
    axes = site.out[dim : dim + len(sizes)]
    if any(site.changed(axis) for axis in axes):
        set_sizes(site, 2, "sizes", resized(site, sizes, axes), False)


def as_strided(site: Site) -> None:
    """`as_strided(x, size, stride)`: steps get shorter as the dimensions inside them do."""
    sized(1, "size")(site)
    record, strides = site.record("aten::as_strided"), site.argument(2, "stride")
    assert record is not None
    x = record.call["self"]
    inside = [
        [axis for axis, step in zip(record.call.axes("self"), x.stride(), strict=True) if step < s]
        for s in record.call["stride"]
    ]
    new = [rescaled(site, s, axes) for s, axes in zip(strides, inside, strict=True)]
    site.set(2, "stride", tuple(new))


def rescaled(site: Site, size: Any, axes: Sequence[Axis]) -> Any:
    """A number that has the sizes of `axes` as factors, at their new sizes; None stays."""
    if size is None:
        return None
    before, after = _shrinking(site, axes)
    if isinstance(size, int):
        return size // before * after
    with site.new.graph.inserting_before(site.new):
        return _scaled(site.new.graph, new_value(site, size), before, after)


def in_proportion(site: Site, count: Any, now: int) -> Any:
    """What becomes of a count that is `now` at the traced sizes; one that follows inputs is scaled.

    ``batch * 16`` groups of which 5 in 16 stay are ``batch * 16 // 16 * 5``: the count has those
    that may go as a factor.
    """
    if not isinstance(count, fx.Node):
        return now
    share = Fraction(now, site.selection.analysis.propagation.nodes[count])
    if share == 1:
        return new_value(site, count)
    with site.new.graph.inserting_before(site.new):
        return _scaled(site.new.graph, new_value(site, count), share.denominator, share.numerator)


def size(site: Site) -> None:
    """`size(x, dim)` of a dimension that changed: its size in the original."""
    axes = site.axes(site.old.args[0])
    dim = site.argument(1, "dim")
    if dim is not None and site.changed(axes[dim]):
        _restore(site, [axes[dim]])


def numel(site: Site) -> None:
    """`numel(x)`: as many as there were in the original."""
    _restore(site, site.axes(site.old.args[0]))


def _restore(site: Site, axes: Sequence[Axis]) -> None:
    before, after = _shrinking(site, axes)
    graph, new = site.new.graph, site.new
    with graph.inserting_before(new):
        present = graph.create_node(new.op, new.target, new.args, new.kwargs)
        rest = graph.call_function(operator.floordiv, (present, after))
    new.op, new.target, new.args, new.kwargs = "call_function", operator.mul, (rest, before), {}


def sequence(site: Site) -> None:
    """`arange`, `linspace`: the entries that stay of the whole sequence."""
    (axis,) = site.out
    if site.changed(axis):
        graph, new = site.new.graph, site.new
        with graph.inserting_before(new):
            whole = graph.create_node(new.op, new.target, new.args, new.kwargs)
            kept = graph.get_attr(site.add(site.selection.mask(axis).nonzero()[:, 0]))
        new.op, new.target = "call_function", torch.index_select
        new.args, new.kwargs = (whole, 0, kept), {}


SIZE_ROWS: Mapping[str, Row] = MappingProxyType(
    {
        "view": view,
        **dict.fromkeys(("expand", "broadcast_to"), sized(1, "size")),
        "reshape": sized(1, "shape"),
        **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full"), sized(1, "size")),
        **dict.fromkeys(("zeros", "ones", "empty", "full"), sized(0, "size")),
        **dict.fromkeys(("arange", "linspace", "logspace"), sequence),
        "repeat": repeated("repeats"),
        "tile": repeated("dims"),
        "unflatten": unflatten,
        "as_strided": as_strided,
        "size": size,
        "numel": numel,
    }
)
"""Name of the function or method → row."""
