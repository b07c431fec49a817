"""Sizes of results by formula: what the kernels on meta and the shortcuts of capture share.

Each formula returns None where sizes do not fit; then torch itself runs, and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence


def broadcast(a: Sequence[int], b: Sequence[int]) -> Sequence[int] | None:
    """The shape to which two shapes broadcast."""
    if a == b:
        return a
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    lead = len(longer) - len(shorter)
    shape = list(longer)
    for at, size in enumerate(shorter, start=lead):
        if shape[at] == 1:
            shape[at] = size
        elif size not in (1, shape[at]):
            return None
    return shape


def elementwise_strides(shape: Sequence[int], operands: Sequence[Sequence[int]]) -> Sequence[int]:
    """The strides of an elementwise result, whose dimensions lie in memory as the operands' do.

    `operands` are their strides after broadcasting, 0 where one is repeated. As torch does
    (`compute_elementwise_output_strides`): the first operand that can tell two dimensions apart
    does, and where none can they keep their places.
    """
    order = list(reversed(range(len(shape))))  # from the innermost
    for start in range(1, len(order)):
        here = start
        for other in reversed(range(start)):
            found = _compared(order[other], order[here], shape, operands)
            if found > 0:
                order[other], order[here] = order[here], order[other]
                here = other
            elif found < 0:
                break
    strides, step = [0] * len(shape), 1
    for dim in order:
        strides[dim] = step
        step *= max(shape[dim], 1)
    return strides


def _compared(a: int, b: int, shape: Sequence[int], operands: Sequence[Sequence[int]]) -> int:
    """Negative if dimension `a` lies inside `b`, positive if outside, 0 if nothing tells."""
    for strides in operands:
        if strides[a] and strides[b]:
            if strides[a] != strides[b]:
                return strides[a] - strides[b]
            if shape[a] > shape[b]:
                return 1
    return 0


def joined(shapes: Sequence[Sequence[int]], dim: int) -> Sequence[int] | None:
    """The shape of a concatenation along `dim`, which may count from the end."""
    rank = len(shapes[0])
    if not -rank <= dim < rank or any(len(shape) != rank for shape in shapes):
        return None
    at = dim % rank
    first, *others = ([*shape[:at], *shape[at + 1 :]] for shape in shapes)
    if any(other != first for other in others):
        return None
    return [*first[:at], sum(shape[at] for shape in shapes), *first[at:]]


def convolved(
    x: Sequence[int],
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Sequence[int] | None:
    """The shape of a convolution of [batch, channels, *positions]; no padding by name."""
    rank = len(x) - 2
    if not 0 < rank == len(weight) - 2 == len(stride) == len(padding) == len(dilation):
        return None
    if x[1] != weight[1] * groups or weight[0] % groups:
        return None
    sizes = [
        (size + 2 * p - d * (taps - 1) - 1) // step + 1
        for size, taps, step, p, d in zip(x[2:], weight[2:], stride, padding, dilation, strict=True)
    ]
    return (x[0], weight[0], *sizes) if min(sizes) > 0 else None
