"""Kernels on meta give what torch's own meta kernels give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxprune import meta_kernels

aten = torch.ops.aten
SHAPES = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def arguments(func: Any, shape: Sequence[int]) -> list[tuple[Any, ...]]:
    """Calls that the kernel of `func` is meant for."""
    x, channels = meta(*shape), [meta(shape[1]) for _ in range(4)]
    special: dict[Any, list[tuple[Any, ...]]] = {
        aten.roll.default: [(x, [1], [0])],
        aten.pow.Tensor_Scalar: [(x, 2), (x, 0.5)],
        aten._softmax.default: [(x, -1, False)],
        aten.native_batch_norm.default: [
            (x, *channels, False, 0.1, 1e-5),
            (x, None, None, *channels[2:], False, 0.1, 1e-5),
        ],
        aten.native_layer_norm.default: [
            (x, [shape[-1]], meta(shape[-1]), meta(shape[-1]), 1e-5),
            (x, list(shape[-2:]), None, None, 1e-5),
        ],
        aten.mean.dim: [(x, [-1]), (x, [0, -1], True), (x, [1])],
        aten.cat.default: [([x, x, x], 1), ([x, x], -1)],
        aten._safe_softmax.default: [(x, -1)],
        aten.convolution.default: convolutions(shape),
        aten.addmm.default: [(meta(shape[1]), meta(shape[0], 3), meta(shape[1], 3).t())],
    }
    if func._schema.overload_name == "Scalar":
        return [(x, 2), (x, 0.5)]
    if func._schema.overload_name == "Tensor":
        smaller = [(x, meta(*shape)), (x, meta(shape[-1])), (x, meta(1)), (x, 2), (x, 0.5)]
        larger = [(meta(shape[-1]), x), (meta(shape[0], *[1] * len(shape[1:])), x)]
        return smaller if func._schema.is_mutable else smaller + larger
    return special.get(func, [(x,)])


def convolutions(shape: Sequence[int]) -> list[tuple[Any, ...]]:
    """Calls of ``convolution`` on an image, or on a batch of signals."""
    batch, channels, *size = shape if len(shape) > 2 else (*shape, 5)
    x, rank = meta(batch, channels, *size), len(size)
    rest = (False, [0] * rank)
    return [
        (x, meta(6, channels, *[1] * rank), meta(6), [2] * rank, [0] * rank, [1] * rank, *rest, 1),
        (
            x,
            meta(channels, 1, *[3] * rank),
            None,
            [1] * rank,
            [1] * rank,
            [1] * rank,
            *rest,
            channels,
        ),
        (x, meta(2, channels, *[2] * rank), None, [1] * rank, [2] * rank, [2] * rank, *rest, 1),
    ]


def described(result: Any) -> list[tuple[Any, ...]]:
    tensors = [result] if isinstance(result, Tensor) else list(result)
    return [(tuple(t.shape), t.stride(), t.dtype, t.device.type) for t in tensors]


@pytest.mark.parametrize("func", list(meta_kernels.KERNELS), ids=str)
@settings(max_examples=15, deadline=None)
@given(shape=SHAPES)
def test_a_kernel_agrees_with_torch(func: Any, shape: tuple[int, ...]) -> None:
    for args in arguments(func, shape):
        kernel = meta_kernels.KERNELS[func](*args)
        assert kernel is not NotImplemented, args
        assert described(kernel) == described(func(*args))
        in_place = func._schema.is_mutable
        assert (kernel is args[0]) == in_place


WIDE = meta(2, 3, dtype=torch.float64)
NOT_APPLICABLE = [
    (aten.add_.Tensor, (meta(3, 2).t(), meta(2, 3))),  # strides are kept
    (aten.mean.dim, (meta(3, 2).t(), [0])),
    (aten.cat.default, ([meta(0), meta(2, 3)], 0)),  # an empty vector is left out
    (aten.cat.default, ([meta(2, 3), WIDE], 0)),
    (aten.convolution.default, (meta(1, 2, 5), meta(2, 3, 2), None, [1], [0], [1], True, [0], 1)),
    (aten.add.Tensor, (meta(2, 3), WIDE)),  # the type is promoted
    (aten.mul.Tensor, (meta(3, 2).t(), 2)),  # strides are kept
    (aten.add.Tensor, (meta(2, 3, dtype=torch.int64), 0.5)),
    (aten._softmax.default, (meta(2, 3), 1, True)),
    (aten.native_batch_norm.default, (meta(2, 3), *[meta(3)] * 4, True, 0.1, 1e-5)),
]


@pytest.mark.parametrize(("func", "args"), NOT_APPLICABLE)
def test_where_a_formula_does_not_apply_torch_answers(func: Any, args: tuple[Any, ...]) -> None:
    assert meta_kernels.KERNELS[func](*args) is NotImplemented
    if func is not aten._softmax.default:  # half_to_float is for another device
        assert described(meta_kernels.run(func, args, {})) == described(func(*args))


WRONG = [
    (aten.add.Tensor, (meta(2, 3), meta(2, 4))),
    (aten.addmm.default, (meta(4), meta(2, 3), meta(5, 4))),
    (aten.add_.Tensor, (meta(3), meta(2, 3))),
    (aten.mean.dim, (meta(2, 3), [2])),
    (aten.mean.dim, (meta(2, 3), [1, -1])),
    (aten.cat.default, ([meta(2, 3), meta(3, 2)], 0)),
    (aten.convolution.default, (meta(1, 4, 5), meta(2, 3, 2), None, [1], [0], [1], False, [0], 1)),
    (aten.convolution.default, (meta(1, 3, 1), meta(2, 3, 2), None, [1], [0], [1], False, [0], 1)),
    (aten.native_batch_norm.default, (meta(2, 3), *[meta(4)] * 4, False, 0.1, 1e-5)),
    (aten.native_layer_norm.default, (meta(2, 3), [4], meta(4), meta(4), 1e-5)),
]


@pytest.mark.parametrize(("func", "args"), WRONG)
def test_sizes_that_do_not_fit_are_torchs_to_refuse(func: Any, args: tuple[Any, ...]) -> None:
    assert meta_kernels.KERNELS[func](*args) is NotImplemented
