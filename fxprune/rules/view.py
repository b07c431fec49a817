"""Ops that move elements: views, permutations, concatenations, slices, gathers by constants."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence

from torch import Tensor

from fxprune.axes import Axis, is_frozen
from fxprune.rules.base import (
    Call,
    Effect,
    Kind,
    Layout,
    Rule,
    broadcast,
    dims_of,
    rows,
)


def _moved(*outputs: Layout) -> Effect:
    return Effect(outputs, Kind.MOVE)


def view(call: Call) -> Effect:
    """``view`` and ``reshape``: products are taken apart and put together."""
    if call.arguments.get("dtype") not in (None, call["self"].dtype):
        return _bits(call)
    shape = call.outputs[0].shape
    return _moved(tuple(call.algebra.view(call.axes("self"), shape)))


def _bits(call: Call) -> Effect:
    """``view(dtype)``: what stands for zero, and how many elements there are, may change."""
    call.freeze(call.axes("self"), "bits are read as another dtype")
    return _moved(call.fresh(call.outputs[0], "bits of another dtype"))


def permute(call: Call) -> Effect:
    """``permute(dims)``."""
    axes = call.axes("self")
    return _moved(tuple(axes[d % len(axes)] for d in call["dims"]))


def transpose(call: Call) -> Effect:
    """``transpose(dim0, dim1)``."""
    axes = list(call.axes("self"))
    i, j = call.dim("dim0", len(axes)), call.dim("dim1", len(axes))
    if axes:
        axes[i], axes[j] = axes[j], axes[i]
    return _moved(tuple(axes))


def reverse_dims(call: Call) -> Effect:
    """``t()``: both dimensions swap."""
    axes = call.axes("self")
    return _moved(axes if len(axes) < 2 else (*axes[:-2], axes[-1], axes[-2]))


def squeeze(call: Call) -> Effect:
    """``squeeze``: a unit that disappears conditions the whole tensor."""
    axes = call.axes("self")
    dim = call.arguments.get("dim")
    chosen = () if dim == [] else dims_of(dim, len(axes))
    dropped = [d for d in chosen if axes[d].size == 1]
    call.freeze([axes[d] for d in dropped], "a dimension of size 1 is dropped")
    return _moved(tuple(axis for d, axis in enumerate(axes) if d not in dropped))


def unsqueeze(call: Call) -> Effect:
    """``unsqueeze(dim)``."""
    axes = list(call.axes("self"))
    axes.insert(call.dim("dim", len(axes) + 1), call.algebra.one)
    return _moved(tuple(axes))


def expand(call: Call) -> Effect:
    """``expand``: a dimension of size 1 becomes an axis without indices, which takes any size."""
    axes, shape = call.axes("self"), call.outputs[0].shape
    added = len(shape) - len(axes)
    result: list[Axis] = []
    for position, size in enumerate(shape):
        axis = axes[position - added] if position >= added else call.algebra.one
        if axis.size != size:
            call.freeze((axis,), "a dimension of size 1 is broadcast")
            axis = call.algebra.atom(size)
        result.append(axis)
    return _moved(tuple(result))


def repeat(call: Call) -> Effect:
    """``repeat(repeats)``: each dimension is a product of an axis without indices and itself."""
    axes, repeats = call.axes("self"), call["repeats"]
    padded = (call.algebra.one,) * (len(repeats) - len(axes)) + axes
    result = [
        axis if count == 1 else call.algebra.product([call.algebra.atom(count), axis])
        for axis, count in zip(padded, repeats, strict=True)
    ]
    return _moved(tuple(result))


def cat(call: Call) -> Effect:
    """``cat(tensors, dim)``; legacy empty tensors of one dimension are skipped."""
    layouts = [call.layout_of(t) for t in call["tensors"] if t.shape != (0,)]
    if not layouts:
        return _moved(call.fresh(call.outputs[0], "empty tensor"))
    dim = call.dim("dim", len(layouts[0]))
    axes = list(layouts[0])
    for layout in layouts[1:]:
        for d in range(len(axes)):
            if d != dim:
                axes[d] = call.algebra.unify(axes[d], layout[d])
    axes[dim] = call.algebra.concat([layout[dim] for layout in layouts])
    return _moved(tuple(axes))


def stack(call: Call) -> Effect:
    """``stack(tensors, dim)``: the tensors' axes are coupled, the new dimension is fixed."""
    layouts = [call.layout_of(t) for t in call["tensors"]]
    rank = len(layouts[0])
    axes = list(broadcast(call, layouts, call["tensors"][0].shape))
    axes.insert(call.dim("dim", rank + 1), call.constant(len(layouts), "stacked tensors"))
    return _moved(tuple(axes))


def slice_(call: Call) -> Effect:
    """``slice(dim, start, end, step)``."""
    axes = list(call.axes("self"))
    dim = call.dim("dim", len(axes))
    size = axes[dim].size
    picked = range(size)[slice(call["start"], call["end"], call["step"])]
    if call.dynamic:
        call.freeze((axes[dim],), "sliced to a size that follows the inputs")
    if len(picked) != size:
        axes[dim] = call.algebra.gather(axes[dim], picked)
    return _moved(tuple(axes))


def select(call: Call) -> Effect:
    """``select(dim, index)``: the chosen index must stay."""
    axes = list(call.axes("self"))
    dim = call.dim("dim", len(axes))
    axis = axes.pop(dim)
    if call.dynamic:
        call.freeze((axis,), "an index that follows the inputs is selected")
    if not is_frozen(axis):
        picked = call.algebra.gather(axis, [call["index"] % axis.size])
        call.freeze((picked,), "a single index is selected")
    return _moved(tuple(axes))


def unbind(call: Call) -> Effect:
    """``unbind(dim)``: as many results as the dimension has indices, so it is fixed."""
    axes = list(call.axes("self"))
    call.freeze(
        (axes.pop(call.dim("dim", len(axes))),), "the dimension is taken apart index by index"
    )
    return _moved(*(tuple(axes) for _ in call.outputs))


def split(call: Call) -> Effect:
    """``split``, ``split_with_sizes``, ``chunk``: neighbouring segments."""
    axes = call.axes("self")
    dim = call.dim("dim", len(axes))
    if call.dynamic:
        call.freeze((axes[dim],), "split by a size that follows the inputs")
    pieces = call.algebra.segment(axes[dim], [out.shape[dim] for out in call.outputs])
    return _moved(*((*axes[:dim], piece, *axes[dim + 1 :]) for piece in pieces))


def flip(call: Call) -> Effect:
    """``flip(dims)``: a constant permutation."""
    axes = list(call.axes("self"))
    for dim in dims_of(call["dims"], len(axes)) if call["dims"] else ():
        axes[dim] = call.algebra.gather(axes[dim], range(axes[dim].size)[::-1])
    return _moved(tuple(axes))


def roll(call: Call) -> Effect:
    """``roll(shifts, dims)``: a constant permutation; without dims, of the flattened tensor."""
    axes = list(call.axes("self"))
    shifts, dims = call["shifts"], call["dims"]
    if not dims:
        call.freeze(axes, "the flattened tensor is rolled")
        return _moved(call.fresh(call.outputs[0], "rolled"))
    for shift, dim in zip(shifts, dims, strict=True):
        size = axes[dim % len(axes)].size
        order = [(i - shift) % size for i in range(size)]
        axes[dim % len(axes)] = call.algebra.gather(axes[dim % len(axes)], order)
    return _moved(tuple(axes))


def pad(call: Call) -> Effect:
    """Constant padding: new indices, which are fixed, before and after; negative padding crops."""
    axes = list(call.axes("self"))
    padding: Sequence[int] = call["pad"]
    for position in range(len(padding) // 2):
        dim = len(axes) - 1 - position
        before, after = padding[2 * position : 2 * position + 2]
        axes[dim] = _padded(call, axes[dim], before, after)
    zeros = not call.arguments.get("value")
    return Effect((tuple(axes),), Kind.WINDOW if zeros else Kind.STATISTIC)


def _padded(call: Call, axis: Axis, before: int, after: int) -> Axis:
    size = axis.size
    if before == after == 0:
        return axis
    sizes = [max(-before, 0), size - max(-before, 0) - max(-after, 0), max(-after, 0)]
    front, kept, back = call.algebra.segment(axis, sizes)
    call.freeze((front, back), "cropped away")
    new = [call.constant(max(n, 0), "padding") for n in (before, after)]
    return call.algebra.concat([new[0], kept, new[1]])


def window_pad(call: Call) -> Effect:
    """Reflection and replication padding: the padded dimensions are positions."""
    axes = call.axes("self")
    count = len(call["padding"]) // 2
    kept = len(axes) - count
    call.freeze(axes[kept:], "padded by values at other positions")
    return _moved((*axes[:kept], *call.fresh(call.outputs[0], "positions")[kept:]))


def pixel_shuffle(call: Call) -> Effect:
    """``pixel_shuffle(r)``: channels are ``C*r*r``; ``r*r`` becomes space."""
    *batch, channels, height, width = call.axes("self")
    r = call["upscale_factor"]
    out, sub = call.algebra.factor(channels, [channels.size // (r * r), r * r])
    call.freeze((sub, height, width), "becomes space")
    return _moved((*batch, out, *call.fresh(call.outputs[0], "space")[-2:]))


def pixel_unshuffle(call: Call) -> Effect:
    """``pixel_unshuffle(r)``: space becomes the minor factor of the channels."""
    *batch, channels, height, width = call.axes("self")
    r = call["downscale_factor"]
    call.freeze((height, width), "space becomes channels")
    out = call.algebra.product([channels, call.constant(r * r, "space")])
    return _moved((*batch, out, *call.fresh(call.outputs[0], "space")[-2:]))


def channel_shuffle(call: Call) -> Effect:
    """``channel_shuffle(groups)``: a constant permutation of dimension 1."""
    axes, groups = list(call.axes("self")), call["groups"]
    size = axes[1].size
    order = [j * (size // groups) + i for i in range(size // groups) for j in range(groups)]
    axes[1] = call.algebra.gather(axes[1], order)
    return _moved(tuple(axes))


def view_as_complex(call: Call) -> Effect:
    """``view_as_complex``: the last dimension holds the real and the imaginary part."""
    *axes, parts = call.axes("self")
    call.freeze((parts,), "real and imaginary part")
    return Effect((tuple(axes),), Kind.WINDOW)


def view_as_real(call: Call) -> Effect:
    """``view_as_real``: a last dimension for the real and the imaginary part."""
    parts = call.constant(2, "real and imaginary part")
    return Effect(((*call.axes("self"), parts),), Kind.WINDOW)


def as_strided(call: Call) -> Effect:
    """``as_strided``: dimensions that it takes over whole are followed, all others are fixed."""
    x, offset, axes = call["self"], call["storage_offset"], call.axes("self")
    # In place, the strides that x had are gone; pooling renews those of size-1 dimensions so.
    lost = call.outputs[0] is x and (call.direct or x.shape != tuple(a.size for a in axes))
    moved = offset is not None and not offset == x.storage_offset() == 0
    kept = {} if lost or moved else _taken_over(x, call["size"], call["stride"])
    result = [*call.fresh(call.outputs[0], "read by strides")]
    call.freeze([axis for d, axis in enumerate(axes) if d not in kept], "read by strides")
    if not kept and x._base is not None:  # what it is a view of, which strides reach as well
        call.freeze(call.layout_of(x._base), "read by strides")
    for dim, position in kept.items():
        result[position] = axes[dim]
    return _moved(tuple(result))


def _taken_over(x: Tensor, size: Sequence[int], stride: Sequence[int]) -> dict[int, int]:
    """Dimension of x → dimension of ``x.as_strided(size, stride)`` that has the same indices.

    In a dense tensor an element's address is a number whose digits are its indices, each worth its
    dimension's stride. A dimension of the result is one of x if both have the same size and stride
    and no sum of steps along the others, but for such dimensions, changes that digit.
    """
    digits = {worth: d for d, worth in enumerate(x.stride()) if x.shape[d] > 1}
    places = list(itertools.accumulate((x.shape[digits[w]] for w in sorted(digits)), operator.mul))
    reach = [max(n - 1, 0) * step for n, step in zip(size, stride, strict=True)]
    dense = [1, *places] == [*sorted(digits), x.numel()]
    if not dense or sum(reach) >= x.numel():
        return {}
    kept = {
        digits[step]: position
        for position, step in enumerate(stride)
        if step in digits and size[position] == x.shape[digits[step]]
    }
    for _ in range(len(kept)):  # each round drops one or finds nothing more
        rest = [p for p in range(len(size)) if p not in kept.values()]
        kept = {
            dim: position
            for dim, position in kept.items()
            if sum(reach[p] for p in rest if stride[p] % (x.stride(dim) * x.shape[dim]))
            < x.stride(dim)
        }
    return kept


def triangle(call: Call) -> Effect:
    """``tril`` and ``triu``: what is zeroed depends on positions in the last two dimensions."""
    axes = call.axes("self")
    call.freeze(axes[-2:], "positions under a triangular mask")
    return Effect((axes,), Kind.WINDOW)


def diagonal(call: Call) -> Effect:
    """``diagonal(offset, dim1, dim2)``: two dimensions become one, at the end.

    On the main diagonal of a square, they are one axis.
    """
    axes = call.axes("self")
    first, second = (call.dim(name, len(axes)) for name in ("dim1", "dim2"))
    rest = tuple(axis for d, axis in enumerate(axes) if d not in (first, second))
    if call["offset"] == 0 and axes[first].size == axes[second].size:
        return _moved((*rest, call.algebra.unify(axes[first], axes[second])))
    call.freeze((axes[first], axes[second]), "positions on a diagonal")
    return _moved((*rest, *call.fresh(call.outputs[0], "positions on a diagonal")[-1:]))


def diag_embed(call: Call) -> Effect:
    """``diag_embed(offset, dim1, dim2)``: the last dimension becomes a diagonal of two new ones."""
    *rest, last = call.axes("self")
    rank = len(rest) + 2
    new = {call.dim(name, rank) for name in ("dim1", "dim2")}
    fresh = call.fresh(call.outputs[0], "positions on a diagonal")
    if call["offset"] != 0:
        call.freeze((last,), "positions on a diagonal")
    others = iter(rest)
    square = fresh if call["offset"] != 0 else (last,) * rank
    out = tuple(square[d] if d in new else next(others) for d in range(rank))
    return Effect((out,), Kind.WINDOW)


VIEWS: dict[str, Rule] = {
    **rows(view, "view _unsafe_view"),
    "permute": permute,
    "transpose": transpose,
    "t": reverse_dims,
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    "expand": expand,
    "repeat": repeat,
    "cat": cat,
    "stack": stack,
    "slice": slice_,
    "select": select,
    "unbind": unbind,
    **rows(split, "split split_with_sizes unsafe_split unsafe_split_with_sizes"),
    "flip": flip,
    "roll": roll,
    "constant_pad_nd": pad,
    **rows(
        window_pad,
        """reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
        replication_pad3d""",
    ),
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "view_as_complex": view_as_complex,
    "view_as_real": view_as_real,
    "as_strided": as_strided,
    **rows(triangle, "tril triu"),
    "diagonal": diagonal,
    "diag_embed": diag_embed,
}
