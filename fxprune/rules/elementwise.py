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


def glu(call: Call) -> Effect:
    """``glu(dim)``: one half of the dimension gates the other, index by index."""
    axes = list(call.axes("self"))
    dim = call.dim("dim", len(axes))
    half = axes[dim].size // 2
    value, gate = call.algebra.segment(axes[dim], [half, half])
    axes[dim] = call.algebra.unify(value, gate)
    return Effect((tuple(axes),), Kind.WINDOW)


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
    """``arange`` and its kin: the entries that stay are picked from the whole sequence."""
    return factory(call) if call.direct and not call.dynamic else indexed_factory(call)


def indexed_factory(call: Call) -> Effect:
    """A factory whose values or strides depend on the index: its dimensions are frozen.

    So are those of ``repeat_interleave(repeats)``, which lists positions.
    """
    for tensor in call.tensors():
        call.freeze(call.layout_of(tensor), "values depend on the index")
    return Effect(
        tuple(call.fresh(t, "values depend on the index") for t in call.outputs), Kind.FRESH
    )


ELEMENTWISE: dict[str, Rule] = {
    **rows(
        pointwise,
        """where masked_fill lerp clamp clamp_min clamp_max native_dropout bernoulli nan_to_num
        rrelu_with_noise fmod remainder gelu silu mish celu elu softplus hardsigmoid hardswish
        hardtanh leaky_relu log_sigmoid_forward threshold softshrink hardshrink addcmul addcdiv
        fill zero complex polar floor_divide rsub _prelu_kernel""",
    ),
    **rows(same_as_input, "clone detach alias _to_copy lift_fresh lift_fresh_copy lift _conj"),
    "copy": copy_into,
    "glu": glu,
    **rows(
        factory,
        "zeros ones full empty scalar_tensor new_zeros new_ones new_full new_empty",
    ),
    **rows(
        like,
        """zeros_like ones_like full_like empty_like rand_like randn_like randint_like
        uniform normal exponential""",
    ),
    **rows(sequence, "arange linspace logspace"),
    **rows(
        indexed_factory,
        """eye rand randn randint randperm tril_indices triu_indices
        hann_window hamming_window repeat_interleave empty_strided new_empty_strided
        empty_permuted""",
    ),
}
