"""Normalisation layers, and ops that work on positions: pooling, resampling, windows."""

from __future__ import annotations

from fxprune.rules.base import Call, Effect, Kind, Rule, broadcast, rows


def batch_norm(call: Call) -> Effect:
    """Batch normalisation: every per-channel tensor is coupled with dimension 1."""
    x = call.axes("input")
    channel = x[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.axes(name):
            channel = call.algebra.unify(channel, call.axes(name)[0])
    out = (x[0], channel, *x[2:])
    training = bool(call.arguments.get("training")) or "with_update" in call.name
    over = (x[0], *x[2:]) if training else ()
    statistics = tuple(
        (channel,) if t.numel() else call.fresh(t, "empty") for t in call.outputs[1:]
    )
    return Effect((out, *statistics), Kind.BATCH_NORM, over)


def layer_norm(call: Call) -> Effect:
    """Layer and RMS normalisation over the last dimensions, with an affine map of that shape."""
    x = list(call.axes("input"))
    count = len(call["normalized_shape"])
    for name in ("weight", "bias"):
        for offset, axis in enumerate(call.axes(name)):
            place = len(x) - count + offset
            x[place] = call.algebra.unify(x[place], axis)
    over = tuple(x[len(x) - count :])
    outer = tuple(x[: len(x) - count])
    statistics = tuple(
        outer + (call.algebra.one,) * (t.dim() - len(outer)) for t in call.outputs[1:]
    )
    return Effect((tuple(x), *statistics), Kind.STATISTIC, over)


def group_norm(call: Call) -> Effect:
    """Group normalisation: channels are ``G*I``; statistics are taken over ``I`` and positions.

    Whole groups can be removed exactly, channels inside a group only together in every group.
    """
    x = list(call.axes("input"))
    groups = call["group"]
    for name in ("weight", "bias"):
        if call.axes(name):
            x[1] = call.algebra.unify(x[1], call.axes(name)[0])
    group, inner = call.algebra.factor(x[1], [groups, x[1].size // groups])
    statistics = tuple((x[0], group) for _ in call.outputs[1:])
    return Effect((tuple(x), *statistics), Kind.STATISTIC, (inner, *x[2:]))


def pooling(call: Call) -> Effect:
    """Pooling and resampling: trailing dimensions are positions, leading ones pass.

    Other tensors (indices, random offsets) have leading dimensions of their own, coupled with them.
    """
    x, *others = [call.layout_of(tensor) for tensor in call.tensors()]
    spatial = _SPATIAL[call.name.removeprefix("aten::")]
    kept = len(x) - spatial
    for other in others:
        call.freeze(other[kept:], "positions")
        for own, axis in zip(x[:kept], other, strict=False):
            call.algebra.unify(own, axis)
    call.freeze(x[kept:], "positions")
    space = call.fresh(call.outputs[0], "positions")[kept:]
    return Effect(tuple((*x[:kept], *space) for _ in call.outputs), Kind.WINDOW)


def im2col(call: Call) -> Effect:
    """``unfold``: channels become ``C*taps``, positions become one dimension."""
    x = call.axes("self")
    call.freeze(x[-2:], "positions under a window")
    taps = call.outputs[0].shape[-2] // x[-3].size
    channels = call.algebra.product([x[-3], call.constant(taps, "kernel taps")])
    last = call.fresh(call.outputs[0], "positions")[-1]
    return Effect(((*x[:-3], channels, last),), Kind.WINDOW)


def col2im(call: Call) -> Effect:
    """``fold``: channels were ``C*taps``; overlapping windows are summed."""
    x = call.axes("self")
    size = call.outputs[0].shape[-3]
    channels, taps = call.algebra.factor(x[-2], [size, x[-2].size // size])
    call.freeze((taps, x[-1]), "positions under a window")
    space = call.fresh(call.outputs[0], "positions")[-2:]
    return Effect(((*x[:-2], channels, *space),), Kind.WINDOW)


def unfold(call: Call) -> Effect:
    """``Tensor.unfold(dimension, size, step)``: sliding windows over one dimension."""
    x = list(call.axes("self"))
    dim = call.dim("dimension", len(x))
    call.freeze((x[dim],), "positions under a window")
    new = call.fresh(call.outputs[0], "positions under a window")
    return Effect(((*x[:dim], new[dim], *x[dim + 1 :], new[-1]),), Kind.MOVE)


def grid_sample(call: Call) -> Effect:
    """``grid_sampler``: reads positions that a grid lists; batch and channels pass."""
    x, grid = call.axes("input"), call.axes("grid")
    call.freeze((*x[2:], *grid[1:]), "positions of a grid")
    batch = call.algebra.unify(x[0], grid[0])
    space = call.fresh(call.outputs[0], "positions of a grid")[2:]
    return Effect(((batch, x[1], *space),), Kind.WINDOW)


def affine_grid(call: Call) -> Effect:
    """``affine_grid_generator``: one grid per matrix, as many as its sizes say."""
    call.freeze(call.axes("theta"), "an affine map of positions")
    return Effect((call.fresh(call.outputs[0], "positions of a grid"),), Kind.STATISTIC)


def weight_norm(call: Call) -> Effect:
    """``v * g / |v|`` with one norm per index of dim: zeros along the others do not count."""
    axes = broadcast(call, [call.axes("v"), call.axes("g")], call.outputs[0].shape)
    dim = call.dim("dim", len(axes))
    over = tuple(axis for d, axis in enumerate(axes) if d != dim)
    norms = tuple(axis if d == dim else call.algebra.one for d, axis in enumerate(axes))
    return Effect((axes, norms), Kind.SUM, over)


_SPATIAL: dict[str, int] = {
    **dict.fromkeys(
        "upsample_nearest1d upsample_linear1d _upsample_nearest_exact1d".split(),
        1,
    ),
    **dict.fromkeys(
        """max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d
        fractional_max_pool2d max_unpool2d upsample_nearest2d upsample_bilinear2d
        upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa
        _upsample_bicubic2d_aa""".split(),
        2,
    ),
    **dict.fromkeys(
        """max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d
        fractional_max_pool3d max_unpool3d upsample_nearest3d upsample_trilinear3d
        _upsample_nearest_exact3d""".split(),
        3,
    ),
}

NORMS: dict[str, Rule] = {
    **rows(
        batch_norm,
        """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
        _batch_norm_with_update _batch_norm_no_update""",
    ),
    "native_layer_norm": layer_norm,
    **rows(group_norm, "native_group_norm"),
    **dict.fromkeys(_SPATIAL, pooling),
    **rows(grid_sample, "grid_sampler_2d grid_sampler_3d"),
    "affine_grid_generator": affine_grid,
    "_weight_norm_interface": weight_norm,
    "im2col": im2col,
    "col2im": col2im,
    "unfold": unfold,
}
