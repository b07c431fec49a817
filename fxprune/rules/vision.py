"""Operators of torchvision that have channels, by their full names.

They need not be loaded: a rule is looked up when a graph executes its operator.
"""

from __future__ import annotations

from fxprune.rules.base import Call, Effect, Kind, Rule, rows


def region_pooling(call: Call) -> Effect:
    """``roi_align`` and ``roi_pool``: channels pass; images are chosen by the regions.

    Inputs are ``[N, C, H, W]`` and regions ``[K, 5]``, results ``[K, C, rows, columns]``.
    """
    (images, channels, *space), (regions, corners) = call.axes("input"), call.axes("rois")
    call.freeze((images, *space, corners), "positions of regions")
    bins = call.fresh(call.outputs[0], "positions of regions")[2:]
    return Effect(tuple((regions, channels, *bins) for _ in call.outputs), Kind.WINDOW)


def position_sensitive_pooling(call: Call) -> Effect:
    """``ps_roi_align`` and ``ps_roi_pool``: channels are ``C*rows*columns``, one for each bin."""
    (images, channels, *space), (regions, corners) = call.axes("input"), call.axes("rois")
    call.freeze((images, *space, corners), "positions of regions")
    bins = call["pooled_height"] * call["pooled_width"]
    kept, places = call.algebra.factor(channels, [channels.size // bins, bins])
    call.freeze((places,), "positions of regions")
    grid = call.fresh(call.outputs[0], "positions of regions")[2:]
    # The second result, which only gradients read, says which channel each bin came from.
    return Effect(tuple((regions, kept, *grid) for _ in call.outputs), Kind.WINDOW)


def deformable_convolution(call: Call) -> Effect:
    """``deform_conv2d``: a convolution whose taps are displaced for each group of channels."""
    algebra, groups, shared = call.algebra, call["groups"], call["offset_groups"]
    x, (outer, inner, *taps) = call.axes("input"), call.axes("weight")
    places = call.fresh(call.outputs[0], "positions")[2:]
    given = ("offset", "mask") if call["use_mask"] else ("offset",)
    moved = [axis for name in given for axis in call.axes(name)[1:]]
    call.freeze((*taps, *x[2:], *moved), "positions under a convolution")
    batch = x[0]
    for name in given:
        batch = algebra.unify(batch, call.axes(name)[0])
    displaced, _ = algebra.factor(x[1], [shared, x[1].size // shared])
    call.freeze((displaced,), "channels that share their displacements")
    group, contracted = algebra.factor(x[1], [groups, x[1].size // groups])
    same, _ = algebra.factor(outer, [groups, outer.size // groups])
    algebra.unify(group, same)
    call.freeze((group,), "groups of a convolution")
    contracted = algebra.unify(contracted, inner)
    target = algebra.unify(outer, call.axes("bias")[0])
    return Effect(((batch, target, *places),), Kind.CONTRACT, (contracted, *taps))


VISION: dict[str, Rule] = {
    **rows(region_pooling, "torchvision::roi_align torchvision::roi_pool"),
    **rows(position_sensitive_pooling, "torchvision::ps_roi_align torchvision::ps_roi_pool"),
    "torchvision::deform_conv2d": deformable_convolution,
}
