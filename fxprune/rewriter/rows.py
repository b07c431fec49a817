"""One row per torch-level op that has sizes among its arguments.

A row changes the arguments of the node's copy in the new graph. Ops without a row have no sizes:
they are copied as they are. Numbers that were computed from sizes but are used as values stay
(``head_dim ** -0.5``); defaults that torch computes from a size (attention's `scale`) are written
out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from fxprune.axes import Axis
from fxprune.dynamic_sizes import name_of
from fxprune.rewriter.site import Row, Site
from fxprune.rewriter.sizes import (
    SIZE_ROWS,
    in_proportion,
    new_value,
    rescaled,
    resized,
    set_sizes,
)
from fxprune.rules.base import index_values


def repeat_interleave(site: Site) -> None:
    """`repeat_interleave(x, repeats, dim)` with an int, or with a constant: then a gather.

    A number of repeats that follows the inputs stays.
    """
    dim = site.argument(2, "dim")
    if isinstance(dim, fx.Node):
        return
    source = site.axes(site.old.args[0])
    axes, place = (source, 0) if dim is None else ((source[dim],), dim)  # None flattens it first
    out = site.out[place]
    if not any(map(site.changed, (*axes, out))):
        return
    size = site.old.kwargs.get("output_size")
    if size is not None:
        site.new.update_kwarg("output_size", rescaled(site, size, [out]))
    if isinstance(site.argument(1, "repeats"), int):
        site.set(1, "repeats", site.selection.ratio(out, *axes))
    elif site.record("aten::index_select") is not None:
        site.select(place % len(site.out), _constant_index(site, "aten::index_select"))


def split(site: Site) -> None:
    """`split`, `chunk`, `tensor_split`: into the new widths of the parts, as a `split`."""
    _split(site, int(site.argument(2, "dim", 0)))


def split_along(dim: int) -> Row:
    """`hsplit` (of one dimension, along that), `vsplit`, `dsplit`: as a `split`."""

    def row(site: Site) -> None:
        _split(site, min(dim, len(site.axes(site.old.args[0])) - 1))

    return row


def _split(site: Site, dim: int) -> None:
    axes = site.axes(site.old.args[0])
    if not site.changed(axes[dim]):
        return
    widths = [site.width(out[dim]) for out in site.outs]
    source = site.new.args[0]
    if site.new.op == "call_function":
        site.new.target = torch.split
    else:
        site.new.target = "split"
    site.new.args, site.new.kwargs = (source, widths, dim), {}


def narrow(site: Site) -> None:
    """`narrow(x, dim, start, length)`: the new start and length of what stays of the slice."""
    axes = site.axes(site.old.args[0])
    dim = int(site.argument(1, "dim")) % len(axes)
    if site.changed(axes[dim]):
        start, length = site.argument(2, "start"), site.argument(3, "length")
        begin, end = _kept_range(site, axes[dim], start % axes[dim].size, length)
        site.set(2, "start", begin)
        site.set(3, "length", end - begin)


def _kept_range(site: Site, axis: Axis, start: int, length: int) -> tuple[int, int]:
    """Where the indices that stay of ``start … start + length`` are in the new axis."""
    before = site.selection.width_before
    return before(axis, start), before(axis, start + length)


def select(site: Site) -> None:
    """`select(x, dim, index)`: the new position of the index."""
    axes = site.axes(site.old.args[0])
    dim = int(site.argument(1, "dim")) % len(axes)
    if site.changed(axes[dim]):
        site.set(2, "index", _new_index(site, axes[dim], site.argument(2, "index")))


def _new_index(site: Site, axis: Axis, index: int) -> int:
    return site.selection.width_before(axis, index % axis.size)


def getitem(site: Site) -> None:
    """``x[…]`` with slices, integers, constant index tensors and masks, which are cut with x.

    Items of tuples need nothing.
    """
    axes = site.axes(site.old.args[0])
    if not axes:
        return
    key = site.old.args[1]
    items = list(key) if isinstance(key, tuple) else [key]
    masks = _masks(site)
    if Ellipsis in [i for i in items if i is None or i is Ellipsis]:
        place = next(p for p, item in enumerate(items) if item is Ellipsis)
        consumed = sum(_span(item, masks) for item in items)
        items[place : place + 1] = [slice(None)] * (len(axes) - consumed)
    new_items: list[Any] = []
    dim = 0
    for item in items:
        kept = item is None or (isinstance(item, fx.Node) and item in masks)
        changed = not kept and site.changed(axes[dim])
        new_items.append(_new_item(site, axes[dim], item) if changed else _mapped(site, item))
        dim += _span(item, masks)
    if any(site.changed(axis) for axis in axes):
        site.new.args = (site.new.args[0], tuple(new_items), *site.new.args[2:])


def _span(item: Any, masks: Mapping[fx.Node, int]) -> int:
    """How many dimensions of x an item of an index takes."""
    if item is None or item is Ellipsis:
        return 0
    return masks.get(item, 1) if isinstance(item, fx.Node) else 1


def _masks(site: Site) -> Mapping[fx.Node, int]:
    """The nodes among the arguments that are masks by which an op indexes; their dimensions."""
    given = [t for record in site.records for t in record.call.arguments.get("indices") or ()]
    masks = {id(t): t.dim() for t in given if t is not None and t.dtype == torch.bool}
    values = site.selection.analysis.propagation.nodes
    return {
        node: masks[key]
        for node in site.old.all_input_nodes
        for key in [getattr(values[node], "key", None)]
        if key in masks
    }


def _mapped(site: Site, item: Any) -> Any:
    return fx.map_arg(item, lambda n: new_value(site, n))


def _new_item(site: Site, axis: Axis, item: Any) -> Any:
    """One index or slice of an axis that changed."""
    if isinstance(item, int):
        return _new_index(site, axis, item)
    if isinstance(item, slice) and any(
        isinstance(bound, fx.Node) for bound in (item.start, item.stop)
    ):  # of a product of this axis and others, which follow the inputs
        return slice(*(rescaled(site, b, [axis]) for b in (item.start, item.stop)))
    if isinstance(item, slice):
        picked = range(axis.size)[item]
        if len(picked) == axis.size:
            return item
        if picked.step == 1:
            begin, end = _kept_range(site, axis, picked.start, len(picked))
            return slice(begin, end)
        return _index_constant(site, axis, list(picked))
    return _index_constant(site, axis, _constant_index(site, "aten::index"))


def _index_constant(site: Site, axis: Axis, source: list[int]) -> fx.Node:
    """An index tensor with the new positions of those `source` indices that stay."""
    mask = site.selection.mask(axis)
    old = torch.tensor(source, dtype=torch.int64) % axis.size
    index = (torch.cumsum(mask, 0) - 1)[old[mask[old]]]
    with site.new.graph.inserting_before(site.new):
        return site.new.graph.get_attr(site.add(index))


def _constant_index(site: Site, op: str) -> list[int]:
    """The values of the index tensor that the old node used, which the analysis found constant."""
    record = site.record(op)
    assert record is not None
    tensors = [t for t in record.call.tensors()[1:] if not t.is_floating_point()]
    values = record.call.constant_of(tensors[0])
    assert values is not None
    return index_values(values)


def squeeze(site: Site) -> None:
    """`squeeze(x)`: drops what it dropped, but no dimension that has shrunk to size 1."""
    axes = site.axes(site.old.args[0])
    dim = site.argument(1, "dim")
    given = range(len(axes)) if dim is None else (dim,) if isinstance(dim, int) else dim
    dropped = tuple(d % len(axes) for d in given if axes[d].size == 1)
    site.new.args, site.new.kwargs = (site.new.args[0], dropped), {}


def index_select(site: Site) -> None:
    """`index_select(x, dim, index)` along an axis that changed: the index is renumbered."""
    axes = site.axes(site.old.args[0])
    dim = int(site.argument(1, "dim")) % len(axes)
    if site.changed(axes[dim]):
        source = _constant_index(site, "aten::index_select")
        site.select(dim, [i % axes[dim].size for i in source])


def roll(site: Site) -> None:
    """`roll(x, shifts, dims)` along an axis that changed."""
    axes = site.axes(site.old.args[0])
    shifts, dims = site.argument(1, "shifts"), site.argument(2, "dims")
    shifts = (shifts,) if isinstance(shifts, (int, fx.Node)) else shifts
    dims = (dims,) if isinstance(dims, int) else dims or ()
    pairs = [(s, d % len(axes)) for s, d in zip(shifts, dims, strict=True)]
    pruned = [(s, d) for s, d in pairs if site.changed(axes[d])]
    if pruned:
        graph = site.new.graph
        for pair in [pair for pair in pairs if pair not in pruned]:
            with graph.inserting_before(site.new):
                shift, dim = fx.map_arg(pair, lambda n: new_value(site, n))
                rolled = graph.call_function(torch.roll, (site.new.args[0], shift, dim))
            site.new.args = (rolled, *site.new.args[1:])
        for position, (shift, dim) in enumerate(pruned):
            size = axes[dim].size
            site.select(dim, [(i - shift) % size for i in range(size)])
            if position < len(pruned) - 1:
                with graph.inserting_before(site.new):
                    rolled = graph.call_function(torch.index_select, site.new.args)
                site.new.args = (rolled,)


def channel_shuffle(site: Site) -> None:
    """`channel_shuffle(x, groups)`."""
    shuffle_channels(site, site.argument(1, "groups"))


def shuffle_channels(site: Site, groups: int) -> None:
    """A shuffle of channels that changed, as a gather."""
    axis = site.axes(site.old.args[0])[1]
    if site.changed(axis):
        per = axis.size // groups
        site.select(1, [j * per + i for i in range(per) for j in range(groups)])


def normalized_shape(site: Site) -> None:
    """`layer_norm`, `rms_norm`: the last dimensions' sizes."""
    shape = site.argument(1, "normalized_shape")
    axes = site.axes(site.old.args[0])
    last = axes[len(axes) - len(shape) :]
    set_sizes(site, 1, "normalized_shape", resized(site, shape, last), False)


def group_norm(site: Site) -> None:
    """`group_norm(x, num_groups)`: as many groups as stay."""
    groups = site.argument(1, "num_groups")
    site.set(1, "num_groups", in_proportion(site, groups, norm_groups(site)))


def norm_groups(site: Site) -> int:
    """The new number of groups of a group normalisation: channels over channels per group."""
    record = site.record("aten::native_group_norm")
    assert record is not None
    channels, inner = record.effect.outputs[0][1], record.effect.over[0]
    return site.selection.ratio(channels, inner)


def convolution(site: Site) -> None:
    """`conv1d` … `conv_transpose3d`: the new number of groups."""
    transposed = "transpose" in getattr(site.old.target, "__name__", "")
    weight = site.axes(site.argument(1, "weight"))
    position = 6  # also of conv_transpose: output_padding stands where dilation does
    groups = site.argument(position, "groups", 1)
    if groups != 1:
        now = convolution_groups(site, weight, transposed)
        site.set(position, "groups", in_proportion(site, groups, now))


def convolution_groups(site: Site, weight: Sequence[Axis], transposed: bool) -> int:
    """Channels on the weight's second dimension's side, over that dimension's width."""
    record = site.record("aten::convolution")
    assert record is not None
    spatial = len(weight) - 2
    side = site.out if transposed else record.call.axes("input")
    return site.selection.ratio(side[len(side) - 1 - spatial], weight[1])


def attention(site: Site) -> None:
    """`scaled_dot_product_attention`: the default scale belongs to the original head dimension."""
    head_dim = site.axes(site.argument(0, "query"))[-1]
    if site.changed(head_dim) and site.argument(6, "scale") is None:
        args, kwargs = list(site.new.args), dict(site.new.kwargs)
        names = (
            "query",
            "key",
            "value",
            "attn_mask",
            "dropout_p",
            "is_causal",
            "scale",
            "enable_gqa",
        )
        kwargs.update(zip(names[3:], args[3:], strict=False))
        kwargs["scale"] = 1.0 / math.sqrt(head_dim.size)
        site.new.args, site.new.kwargs = tuple(args[:3]), kwargs


ROWS: Mapping[str, Row] = MappingProxyType(
    {
        **SIZE_ROWS,
        "repeat_interleave": repeat_interleave,
        **dict.fromkeys(
            "split split_with_sizes chunk tensor_split unsafe_split unsafe_split_with_sizes "
            "unsafe_chunk".split(),
            split,
        ),
        "hsplit": split_along(1),
        "vsplit": split_along(0),
        "dsplit": split_along(2),
        "narrow": narrow,
        "squeeze": squeeze,
        "select": select,
        "getitem": getitem,
        "setitem": getitem,
        "index_select": index_select,
        "roll": roll,
        "channel_shuffle": channel_shuffle,
        "layer_norm": normalized_shape,
        "rms_norm": normalized_shape,
        "group_norm": group_norm,
        **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
        **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), convolution),
        "scaled_dot_product_attention": attention,
    }
)
"""Name of the function or method → row."""


def find_row(node: fx.Node) -> Row | None:
    """The row of a call, if its op has sizes."""
    if node.op == "call_method":
        return ROWS.get(str(node.target))
    if node.op == "call_function":
        return ROWS.get(name_of(node).strip("_"))
    return None
