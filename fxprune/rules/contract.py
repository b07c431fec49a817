"""Ops that sum products: matrix products, linear layers, convolutions."""

from __future__ import annotations

import torch

from fxprune.axes import Axis
from fxprune.rules.base import Call, Effect, Kind, Layout, Lookup, Rule, broadcast, rows


def _contract(outputs: Layout, over: Layout) -> Effect:
    return Effect((outputs,), Kind.CONTRACT, over)


def _matrix_product(call: Call, left: Layout, right: Layout) -> tuple[Layout, Axis]:
    """Axes of ``left @ right`` with broadcast batch dimensions, and the contracted axis."""
    batches = left[:-2], right[:-2]
    shape = torch.broadcast_shapes(*([axis.size for axis in batch] for batch in batches))
    inner = call.algebra.unify(left[-1], right[-2])
    return (*broadcast(call, batches, shape), left[-2], right[-1]), inner


def mm(call: Call) -> Effect:
    """``mm(self, mat2)`` and ``bmm``."""
    out, inner = _matrix_product(call, call.axes("self"), call.axes("mat2"))
    return _contract(out, (inner,))


def matmul(call: Call) -> Effect:
    """``matmul(self, other)`` of two dimensions or more each."""
    out, inner = _matrix_product(call, call.axes("self"), call.axes("other"))
    return _contract(out, (inner,))


def mv(call: Call) -> Effect:
    """``mv(self, vec)``."""
    rows_axis, columns = call.axes("self")
    inner = call.algebra.unify(columns, call.axes("vec")[0])
    return _contract((rows_axis,), (inner,))


def dot(call: Call) -> Effect:
    """``dot(self, tensor)``."""
    (inner,) = call.axes("self")
    call.algebra.unify(inner, call.axes("tensor" if "tensor" in call.arguments else "other")[0])
    return _contract((), (inner,))


def addmm(call: Call) -> Effect:
    """``addmm(self, mat1, mat2)``: a bias that is broadcast onto a matrix product."""
    out, inner = _matrix_product(call, call.axes("mat1"), call.axes("mat2"))
    out = broadcast(call, [out, call.axes("self")], call.outputs[0].shape)
    return _contract(out, (inner,))


def linear(call: Call) -> Effect:
    """``linear(input, weight, bias)``: the last dimension is contracted with that of the weight."""
    *outer, features = call.axes("input")
    target, source = call.axes("weight")
    if call.axes("bias"):
        target = call.algebra.unify(target, call.axes("bias")[0])
    return _contract((*outer, target), (call.algebra.unify(features, source),))


def baddbmm(call: Call) -> Effect:
    """``baddbmm(self, batch1, batch2)``."""
    out, inner = _matrix_product(call, call.axes("batch1"), call.axes("batch2"))
    out = broadcast(call, [out, call.axes("self")], call.outputs[0].shape)
    return _contract(out, (inner,))


def addbmm(call: Call) -> Effect:
    """``addbmm(self, batch1, batch2)``: the batch is summed, too."""
    out, inner = _matrix_product(call, call.axes("batch1"), call.axes("batch2"))
    batch, *matrix = out
    axes = broadcast(call, [tuple(matrix), call.axes("self")], call.outputs[0].shape)
    return _contract(axes, (batch, inner))


def addmv(call: Call) -> Effect:
    """``addmv(self, mat, vec)``."""
    rows_axis, columns = call.axes("mat")
    inner = call.algebra.unify(columns, call.axes("vec")[0])
    out = broadcast(call, [(rows_axis,), call.axes("self")], call.outputs[0].shape)
    return _contract(out, (inner,))


def addr(call: Call) -> Effect:
    """``addr(self, vec1, vec2)``: an outer product."""
    outer = (*call.axes("vec1"), *call.axes("vec2"))
    return _contract(broadcast(call, [outer, call.axes("self")], call.outputs[0].shape), ())


def grouped_mm(call: Call) -> Effect:
    """``grouped_mm(input, weight, offs)``: each run of rows is multiplied by its own matrix."""
    algebra = call.algebra
    (tokens, features), (expert, source, target) = call.axes("input"), call.axes("weight")
    call.freeze((tokens, expert, *call.axes("offs")), "rows are sorted by data")
    over = (algebra.unify(features, source),)
    lookup = Lookup(tokens, expert, call["offs"])
    return Effect(((tokens, target),), Kind.CONTRACT, over, lookup)


def convolution(call: Call) -> Effect:
    """``convolution``: contracts channels within each group; kernel taps and positions are fixed.

    Weights are ``[G*O, I, taps]``, transposed ones ``[G*I, O, taps]``, for inputs
    ``[N, G*I, positions]``. Positions that a kernel of size 1 reads one by one pass through.
    """
    algebra = call.algebra
    x, weight, groups = call.axes("input"), call.axes("weight"), call["groups"]
    spatial = len(weight) - 2
    batched = len(x) == len(weight)
    channels = x[-1 - spatial]
    call.freeze(weight[2:], "kernel taps")
    space = _positions(call, x[len(x) - spatial :], weight[2:])
    outer, inner = weight[0], weight[1]
    transposed = call["transposed"]
    if groups == 1:
        source, target = (outer, inner) if transposed else (inner, outer)
        contracted = algebra.unify(channels, source)
    else:
        group, contracted = algebra.factor(channels, [groups, channels.size // groups])
        weight_group, rest = algebra.factor(outer, [groups, outer.size // groups])
        algebra.unify(group, weight_group)
        source, target = (rest, inner) if transposed else (inner, rest)
        contracted = algebra.unify(contracted, source)
        target = algebra.product([group, target]) if transposed else outer
    if call.axes("bias"):
        target = algebra.unify(target, call.axes("bias")[0])
    out = (x[0], target, *space) if batched else (target, *space)
    return _contract(out, (contracted, *weight[2:]))


def _positions(call: Call, positions: Layout, taps: Layout) -> Layout:
    """The positions of a convolution's output; it freezes those of its input that it mixes."""
    fresh = call.fresh(call.outputs[0], "positions")[-len(positions) :]
    result = []
    for d, (position, tap, new) in enumerate(zip(positions, taps, fresh, strict=True)):
        stride, *pads = (
            call[name][d % len(call[name])] for name in ("stride", "padding", "output_padding")
        )
        alone = tap.size == 1 and stride == 1 and not any(pads)
        if not alone:
            call.freeze((position,), "positions under a convolution")
        result.append(position if alone else new)
    return tuple(result)


def trilinear(call: Call) -> Effect:
    """``_trilinear(i1, i2, i3, expand1, expand2, expand3, sumdim)``: what `bilinear` is made of."""
    shapes = [list(call.axes(name)) for name in ("i1", "i2", "i3")]
    for axes, name in zip(shapes, ("expand1", "expand2", "expand3"), strict=True):
        for dim in sorted(call[name]):
            axes.insert(dim, call.algebra.one)
    full = [max(sizes) for sizes in zip(*([a.size for a in axes] for axes in shapes), strict=True)]
    product = broadcast(call, [tuple(axes) for axes in shapes], full)
    summed = call["sumdim"]
    out = tuple(axis for d, axis in enumerate(product) if d not in summed)
    return _contract(out, tuple(product[d] for d in summed))


CONTRACTIONS: dict[str, Rule] = {
    **rows(mm, "mm bmm"),
    "matmul": matmul,
    "mv": mv,
    **rows(dot, "dot vdot"),
    "addmm": addmm,
    "linear": linear,
    "baddbmm": baddbmm,
    "addbmm": addbmm,
    "addmv": addmv,
    "addr": addr,
    "convolution": convolution,
    "_trilinear": trilinear,
    "transformers::grouped_mm_fallback": grouped_mm,
}
