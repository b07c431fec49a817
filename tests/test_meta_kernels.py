"""Kernels on meta give what torch's own meta kernels give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxprune import meta_kernels

aten = torch.ops.aten
SHAPES = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)


TWO_TENSORS = (
    *(aten.logical_and.default, aten.logical_or.default),
    *(aten.maximum.default, aten.minimum.default),
    *(getattr(aten, name).Tensor for name in ("gt", "ge", "lt", "le", "eq", "ne")),
)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def arguments(func: Any, shape: Sequence[int]) -> list[tuple[Any, ...]]:
    """Calls that the kernel of `func` is meant for."""
    x, channels = meta(*shape), [meta(shape[1]) for _ in range(4)]
    special: dict[Any, list[tuple[Any, ...]]] = {
        aten.clamp_min.default: [(x, 0), (x, 0.5)],
        aten.clamp.default: [(x, 0, 1), (x, None, 0.5)],
        aten.rsub.Scalar: [(x, 1), (x, 0.5)],
        aten._log_softmax.default: [(x, -1, False)],
        aten.where.self: [
            (x > 0, x, x),
            (meta(shape[-1]) > 0, x, meta(1)),
            (x > 0, meta(1), meta(shape[-1])),
        ],
        aten.native_group_norm.default: group_norms(shape),
        aten.upsample_linear1d.default: [(meta(2, 3, 4), [7], False)],
        aten.upsample_bilinear2d.default: [(meta(*shape[:2], 4, 1), [7, 2], False)],
        aten.upsample_bicubic2d.default: [(meta(*shape[:2], 1, 3), [2, 5], True)],
        aten.upsample_trilinear3d.default: [(meta(*shape[:2], 2, 1, 3), [2, 5, 4], True)],
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
    if func in TWO_TENSORS:
        return [(x, meta(*shape)), (x, meta(shape[-1])), (meta(1), x)]
    if func._schema.overload_name == "Tensor":
        smaller = [(x, meta(*shape)), (x, meta(shape[-1])), (x, meta(1)), (x, 2), (x, 0.5)]
        larger = [(meta(shape[-1]), x), (meta(shape[0], *[1] * len(shape[1:])), x)]
        return smaller if func._schema.is_mutable else smaller + larger
    return special.get(func, [(x,)])


def group_norms(shape: Sequence[int]) -> list[tuple[Any, ...]]:
    """Calls of ``native_group_norm`` with one group, and with one per channel."""
    batch, channels, *size = shape
    rest, affine = math.prod(size), (meta(channels), meta(channels))
    return [
        (meta(*shape), *affine, batch, channels, rest, 1, 1e-5),
        (meta(*shape), None, None, batch, channels, rest, channels, 1e-5),
    ]


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


def test_tensors_on_meta_equal_none() -> None:
    x = torch.ones(3)
    for pair in ((meta(3), meta(3)), (meta(3), x), (x, meta(3))):
        assert meta_kernels.run(aten.equal.default, pair, {}) is False
    assert meta_kernels.run(aten.equal.default, (x, x.clone()), {}) is True


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
    (aten.gelu.default, (meta(1, 3).expand(2, 3),)),
    (aten.clamp.default, (meta(2, 3, dtype=torch.int64), 0)),
    (aten.gt.Tensor, (meta(3, 2).t(), meta(2, 3))),
    (aten.where.self, (meta(2, 3) > 0, meta(2, 3), WIDE)),
]


@pytest.mark.parametrize("order", [(0, 2, 1), (2, 0, 1), (1, 2, 0)])
def test_dense_tensors_keep_their_strides(order: tuple[int, ...]) -> None:
    x = meta(2, 3, 4).permute(order)
    assert described(meta_kernels.elementwise(x)) == described(aten.gelu.default(x))


def test_the_mode_runs_composite_functions_by_kernels() -> None:
    q, k, mask = meta(2, 4, 5, 6), meta(2, 4, 7, 6), meta(5, 7) > 0
    images = meta(2, 3, 8, 8).to(memory_format=torch.channels_last)
    calls: list[Callable[[], Tensor]] = [
        lambda: F.scaled_dot_product_attention(q, k, k, attn_mask=mask),
        lambda: F.batch_norm(meta(2, 3, 4), None, None, training=True),
        lambda: F.interpolate(images, scale_factor=2, mode="bilinear"),
        lambda: F.adaptive_avg_pool2d(images, 1),
        lambda: F.layer_norm(images.permute(0, 2, 3, 1), (3,)),
    ]
    for call in calls:
        with meta_kernels.MetaKernels():
            found = call()
        assert described(found) == described(call())


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
