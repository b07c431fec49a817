"""Ops that read or write at positions that another tensor lists."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxprune.axes import Axis, is_frozen
from fxprune.rules.base import (
    Call,
    Effect,
    Kind,
    Layout,
    Lookup,
    Rule,
    broadcast,
    index_values,
    rows,
)


def _moved(*outputs: Layout) -> Effect:
    return Effect(outputs, Kind.MOVE)


def index_select(call: Call) -> Effect:
    """``index_select(dim, index)``: a gather where the index is known, fixed otherwise."""
    axes = list(call.axes("self"))
    dim = call.dim("dim", len(axes))
    axes[dim] = _selected(call, axes[dim], call["index"])
    return _moved(tuple(axes))


def _selected(call: Call, axis: Axis, index: Tensor) -> Axis:
    """The axis of a selection by an index tensor of one dimension.

    A selection that is longer than the axis is a table lookup: its rows are not channels.
    """
    call.freeze(call.layout_of(index), "positions of an index")
    if not is_frozen(axis):
        values = call.constant_of(index) if index.numel() <= axis.size else None
        if values is not None:
            return call.algebra.gather(axis, [v % axis.size for v in index_values(values)])
        call.freeze((axis,), "indexed by data")
    return call.constant(index.numel(), "indexed by data")


def index(call: Call) -> Effect:
    """``x[None, i, j]`` with index tensors: their broadcast dimensions replace the indexed ones."""
    axes = call.axes("self")
    places = _places(call)
    if _masked(call, places):
        call.freeze(axes, "indexed by a mask")
        return _moved(call.fresh(call.outputs[0], "indexed by a mask"))
    (place, tensor), *others = places
    if not others and tensor.dim() == 1:
        table = axes[place]
        selected = _selected(call, table, tensor)
        lookup = Lookup(selected, table, tensor) if is_frozen(table) else None
        return Effect(((*axes[:place], selected, *axes[place + 1 :]),), Kind.MOVE, (), lookup)
    return _moved(_looked_up(call, places))


def _places(call: Call) -> list[tuple[int, Tensor]]:
    """The indexed dimensions, each with its index tensor."""
    return [(d, tensor) for d, tensor in enumerate(call["indices"]) if tensor is not None]


def _masked(call: Call, places: Sequence[tuple[int, Tensor]]) -> bool:
    """True if dimensions are indexed by a mask; all index tensors are frozen then."""
    masked = any(tensor.element_size() == 1 for _, tensor in places)
    for _, tensor in places if masked else ():
        call.freeze(call.layout_of(tensor), "a mask that indexes")
    return masked


def _looked_up(call: Call, places: Sequence[tuple[int, Tensor]]) -> Layout:
    """The axes of ``self[indices]``, with the indexed dimensions and the indices' own frozen."""
    axes = call.axes("self")
    dims = [d for d, _ in places]
    call.freeze([axes[d] for d in dims], "indexed by data")
    layouts = [call.layout_of(tensor) for _, tensor in places]
    tensors = [tensor for _, tensor in places]
    rank = max(tensor.dim() for tensor in tensors)
    padded = [(1,) * (rank - tensor.dim()) + tuple(tensor.shape) for tensor in tensors]
    new = broadcast(call, layouts, [max(sizes) for sizes in zip(*padded, strict=True)])
    for layout in (*layouts, new):
        call.freeze(layout, "positions of an index")
    adjacent = dims == list(range(dims[0], dims[0] + len(dims)))
    first = dims[0] if adjacent else 0
    rest = tuple(axis for d, axis in enumerate(axes) if d not in dims)
    return (*rest[:first], *new, *rest[first:])


def index_put(call: Call) -> Effect:
    """``self[indices] = values``: indexed dimensions are fixed, values follow the other ones."""
    axes, values, places = call.axes("self"), call.axes("values"), _places(call)
    if len(places) == 1 and places[0][1].dtype == torch.bool:
        return _put_by_mask(call, *places[0])
    if _masked(call, places):
        for layout in (axes, values):
            call.freeze(layout, "indexed by a mask")
        return Effect((axes,), Kind.STATISTIC)
    return _put(call, _looked_up(call, places))


def _put_by_mask(call: Call, place: int, mask: Tensor) -> Effect:
    """``self[mask] = values``: along the mask's dimensions like ``where``, if one value serves all.

    Where each entry has a value of its own, only data says which.
    """
    axes, values, stop = call.axes("self"), call.axes("values"), place + mask.dim()
    covered, rest = axes[place:stop], axes[stop:]
    entries = values[-1 - len(rest)] if len(values) > len(rest) else call.algebra.one
    if entries.size == 1:
        for one, other in zip(covered, call.layout_of(mask), strict=True):
            call.algebra.unify(one, other)
    else:
        call.freeze((*covered, *call.layout_of(mask), entries), "indexed by a mask")
    return _put(call, (*axes[:place], entries, *rest))


def _put(call: Call, target: Layout) -> Effect:
    """Values are written into a part of self with these axes.

    Values that are broadcast along a dimension are written at its removed positions, too.
    """
    values = call.axes("values")
    broadcast(call, [target, values], [axis.size for axis in target])
    missing = len(target) - len(values)
    complete = all(is_frozen(axis) for axis in target[:missing]) and all(
        is_frozen(axis) or value.size == axis.size
        for axis, value in zip(target[missing:], values, strict=True)
    )
    return Effect((call.axes("self"),), Kind.WINDOW if complete else Kind.STATISTIC)


def gather(call: Call) -> Effect:
    """``gather(dim, index)``: fixed along dim; the others are those of self and of the index."""
    source, chosen, dim = _along(call, "self", "index")
    call.freeze((source[dim], chosen[dim]), "gathered by data")
    return _moved(chosen[: call.outputs[0].dim()])


def scatter(call: Call) -> Effect:
    """``scatter(dim, index, src)`` and its kin: fixed along dim, coupled along the others."""
    target, chosen, dim = _along(call, "self", "index")
    call.freeze((target[dim], chosen[dim]), "scattered by data")
    kind = Kind.STATISTIC
    if "src" in call.arguments:
        _, values, _ = _along(call, "self", "src")
        call.freeze((values[dim],), "scattered by data")
        kind = Kind.WINDOW
    return Effect((call.axes("self"),), kind)


def _along(call: Call, first: str, second: str) -> tuple[Layout, Layout, int]:
    """Couple two tensors along all dimensions but dim; fix those where the second is shorter."""
    one = (call.algebra.one,)
    left, right = call.axes(first) or one, call.axes(second) or one
    dim = call.dim("dim", len(left))
    for d, (x, y) in enumerate(zip(left, right, strict=True)):
        if d != dim and x.size == y.size:
            call.algebra.unify(x, y)
        elif d != dim:
            call.freeze((x, y), "only a part is indexed")
    return left, right, dim


def index_write(call: Call) -> Effect:
    """``index_add(dim, index, source)``, ``index_copy``: fixed along dim, coupled along others."""
    target, source, dim = _along(call, "self", "source")
    call.freeze((target[dim], source[dim], *call.axes("index")), "positions of an index")
    return Effect((call.axes("self"),), Kind.WINDOW)


def index_fill(call: Call) -> Effect:
    """``index_fill(dim, index, value)``: fixed along dim."""
    axes = call.axes("self")
    dim = call.dim("dim", len(axes))
    call.freeze((axes[dim], *call.axes("index")), "positions of an index")
    return Effect((axes,), Kind.STATISTIC)


def embedding(call: Call) -> Effect:
    """``embedding(weight, indices)``: rows are fixed, columns are an axis."""
    rows_axis, columns = call.axes("weight")
    call.freeze((rows_axis,), "rows are looked up by data")
    call.freeze(call.axes("indices"), "positions of an index")
    return _moved((*call.axes("indices"), columns))


def embedding_bag(call: Call) -> Effect:
    """``embedding_bag``: rows are fixed, columns are an axis; bags are fixed."""
    rows_axis, columns = call.axes("weight")
    call.freeze((rows_axis,), "rows are looked up by data")
    for name in ("indices", "offsets", "per_sample_weights"):
        call.freeze(call.axes(name), "positions of an index")
    first, *others = call.outputs
    bags = call.fresh(first, "bags")[0]
    rest = (call.fresh(t, "bags") for t in others)
    return Effect(((bags, columns), *rest), Kind.WINDOW)


def buckets(call: Call) -> Effect:
    """``bucketize`` and ``searchsorted``: each element is compared with the same boundaries."""
    bounds = call.axes("boundaries" if "boundaries" in call.arguments else "sorted_sequence")
    call.freeze(bounds, "boundaries of buckets")
    if len(bounds) == 1 and isinstance(call["self"], Tensor):
        return Effect((call.axes("self"),), Kind.STATISTIC)
    return frozen("boundaries of buckets")(call)


def frozen(what: str) -> Rule:
    """Ops that no index can be followed through."""

    def rule(call: Call) -> Effect:
        for tensor in call.tensors():
            call.freeze(call.layout_of(tensor), what)
        return Effect(tuple(call.fresh(out, what) for out in call.outputs), Kind.STATISTIC)

    return rule


INDEXING: dict[str, Rule] = {
    "index_select": index_select,
    **rows(index, "index _unsafe_index"),
    **rows(index_put, "index_put _unsafe_index_put"),
    "gather": gather,
    **rows(scatter, "scatter scatter_add scatter_reduce"),
    **rows(index_write, "index_add index_copy"),
    "index_fill": index_fill,
    "embedding": embedding,
    **rows(embedding_bag, "_embedding_bag _embedding_bag_forward_only"),
    **rows(buckets, "bucketize searchsorted"),
    **rows(
        frozen("elements are chosen by data"),
        "masked_scatter put take histc multinomial",
    ),
}
