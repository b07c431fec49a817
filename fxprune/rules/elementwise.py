"""Pointwise ops: every output element depends on the input elements at its position.

Ops that torch tags as pointwise need no row; `ELEMENTWISE` adds those that carry no tag.
"""

from __future__ import annotations

from fxprune.rules.base import Call, Effect, Kind, Rule, broadcast, rows


def pointwise(call: Call) -> Effect:
    """Broadcast and unify all tensor arguments."""
    layouts = [call.layout_of(tensor) for tensor in call.tensors()]
    shape = call.outputs[0].shape
    axes = broadcast(call, layouts, shape)
    return Effect(tuple(axes for _ in call.outputs), Kind.POINTWISE)


def same_as_input(call: Call) -> Effect:
    """A copy of the first tensor: same axes, same values."""
    return Effect((call.layout_of(call.tensors()[0]),), Kind.MOVE)


def copy_into(call: Call) -> Effect:
    """``copy_(self, src)``: the source is broadcast into self."""
    self_axes, source = call.axes("self"), call.axes("src")
    return Effect((broadcast(call, [self_axes, source], call.outputs[0].shape),), Kind.POINTWISE)


def prelu(call: Call) -> Effect:
    """``prelu(x, weight)``: one slope for all, or one per channel (dimension 1)."""
    x, (slope,) = call.axes("self"), call.axes("weight")[:1] or (call.algebra.one,)
    if slope.size > 1:
        call.algebra.unify(x[1 if len(x) > 1 else 0], slope)
    return Effect((x,), Kind.POINTWISE)


def factory(call: Call) -> Effect:
    """A tensor that depends on no index of another: its dimensions take any size that they meet."""
    axes = tuple(
        call.algebra.one if size == 1 else call.algebra.atom(size) for size in call.outputs[0].shape
    )
    return Effect((axes,), Kind.FRESH)


def like(call: Call) -> Effect:
    """``zeros_like`` and its kin: the axes of the model tensor, values of their own."""
    return Effect((call.layout_of(call.tensors()[0]),), Kind.FRESH)


def sequence(call: Call) -> Effect:
    """A factory whose values depend on the index: its dimensions are frozen."""
    return Effect(tuple(call.fresh(t, "values depend on the index") for t in call.outputs), Kind.FRESH)


def scalar_read(call: Call) -> Effect:
    """A tensor read as a Python number."""
    return Effect((), Kind.FRESH)


ELEMENTWISE: dict[str, Rule] = {
    **rows(
        pointwise,
        """where masked_fill lerp clamp clamp_min clamp_max dropout native_dropout bernoulli glu_backward
        nan_to_num rrelu rrelu_with_noise fmod remainder gelu silu mish celu selu elu softplus
        hardsigmoid hardswish hardtanh leaky_relu log_sigmoid_forward threshold softshrink hardshrink
        float_power addcmul addcdiv fill""",
    ),
    **rows(
        same_as_input,
        """clone detach alias contiguous _to_copy to lift_fresh lift_fresh_copy lift _conj
        positive resolve_conj resolve_neg _fused_dropout view_of""",
    ),
    "copy": copy_into,
    **rows(prelu, "_prelu_kernel prelu"),
    **rows(
        factory,
        """zeros ones full empty scalar_tensor new_zeros new_ones new_full new_empty empty_strided
        new_empty_strided empty_permuted""",
    ),
    **rows(like, "zeros_like ones_like full_like empty_like"),
    **rows(like, "rand_like randn_like randint_like"),
    **rows(
        sequence,
        """arange linspace logspace eye rand randn randint randperm tril_indices triu_indices range
        hann_window hamming_window one_hot""",
    ),
    **rows(scalar_read, "_local_scalar_dense item is_nonzero equal"),
}
