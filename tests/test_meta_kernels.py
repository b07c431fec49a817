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
        **{
            func: [(x, [-1]), (x, [0, -1], True), (x, [1])]
            for func in (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default)
        },
        aten.linalg_vector_norm.default: [(x, 2, [-1]), (x, 1, [0, -1], True), (x, 2, [1])],
        aten.addcmul.default: [(x, x, x), (x, meta(shape[-1]), x)],
        aten.cat.default: [([x, x, x], 1), ([x, x], -1)],
        aten._safe_softmax.default: [(x, -1)],
        aten.convolution.default: convolutions(shape),
        aten.linear.default: [
            (x, meta(3, shape[-1]), meta(3)),
            (x, meta(3, shape[-1])),
        ],
        aten.matmul.default: [
            (x, meta(shape[-1], 3)),
            (x, meta(*shape[:-2], shape[-1], 3)),
            (x, meta(5, *[1] * len(shape[:-2]), shape[-1], 3)),
            (meta(3, shape[-2]), x),
        ],
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
    return [(tuple(t.shape), t.stride(), t.dtype, t.device.type) for t in tensors_in(result)]


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
    (aten.sum.dim_IntList, (meta(2, 3, dtype=torch.int64), [0])),
    (aten.amax.default, (meta(2, 3), [])),
    (aten.cat.default, ([meta(0), meta(2, 3)], 0)),  # an empty vector is left out
    (aten.cat.default, ([meta(2, 3), WIDE], 0)),
    (aten.convolution.default, (meta(1, 2, 5), meta(2, 3, 2), None, [1], [0], [1], True, [0], 1)),
    (aten.add.Tensor, (meta(2, 3), WIDE)),  # the type is promoted
    (aten.add.Tensor, (meta(2, 3, dtype=torch.int64), 0.5)),
    (aten.add.Tensor, (meta(2, 3, dtype=torch.bool), 1)),
    (aten.add.Tensor, (meta(2, dtype=torch.complex64), meta(2, dtype=torch.complex64))),
    (aten.div.Tensor, (meta(2, 3, dtype=torch.int64), 2)),
    (aten._softmax.default, (meta(2, 3), 1, True)),
    (aten.clamp.default, (meta(2, 3, dtype=torch.int64), 0)),
    (aten.gt.Tensor, (meta(3, 2).t(), meta(2, 3))),
    (aten.where.self, (meta(2, 3) > 0, meta(2, 3), WIDE)),
]


@pytest.mark.parametrize("order", [(0, 2, 1), (2, 0, 1), (1, 2, 0)])
def test_dense_tensors_keep_their_strides(order: tuple[int, ...]) -> None:
    x = meta(2, 3, 4).permute(order)
    assert described(meta_kernels.elementwise(x)) == described(aten.gelu.default(x))


@st.composite
def laid_out(draw: st.DrawFn, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of this shape: its dimensions in any order, some cut, some repeated."""
    order = draw(st.permutations(range(len(shape))))
    wider = [shape[dim] + draw(st.integers(0, 1)) for dim in order]
    repeated = [draw(st.integers(0, 5)) == 0 for _ in order]
    x = meta(*(1 if again else size for again, size in zip(repeated, wider, strict=True)))
    x = x.to(dtype).expand(wider).permute([order.index(dim) for dim in range(len(shape))])
    return x[tuple(slice(0, size) for size in shape)]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_arithmetic_lays_its_result_out_as_torch_does(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 3), max_size=4))
    dtype = data.draw(st.sampled_from([torch.float32, torch.int64]))
    x = data.draw(laid_out(shape, dtype))
    lead = data.draw(st.integers(0, len(shape)))
    smaller = [data.draw(st.sampled_from([1, size])) for size in shape[lead:]]
    y = data.draw(laid_out(smaller, dtype))
    for func, args in (
        (aten.add.Tensor, (x, y)),
        (aten.mul.Tensor, (y, x)),
        (aten.mul.Tensor, (x, 2)),
        (aten.sub.Scalar, (x, 3)),
        (aten.rsub.Scalar, (x, 3)),
    ):
        found = meta_kernels.KERNELS[func](*args)
        assert found is not NotImplemented
        expected = func(*args)
        assert (found.shape, found.dtype, steps(found)) == (
            expected.shape,
            expected.dtype,
            steps(expected),
        )


@pytest.mark.parametrize("func", list(meta_kernels.KERNELS), ids=str)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_kernel_lays_its_result_out_as_torch_does(func: Any, data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    x, *rest = arguments(func, shape)[0]
    if func is aten.cat.default:
        rank = data.draw(st.integers(1, 5))
        x = [data.draw(laid_out([2] * rank, torch.float32)) for _ in range(2)]
    else:
        x = data.draw(laid_out(x.shape, x.dtype))
    found = meta_kernels.KERNELS[func](x, *rest)
    if found is NotImplemented or func._schema.is_mutable:
        return
    expected = func(x, *rest)
    for ours, theirs in zip(tensors_in(found), tensors_in(expected), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert steps(ours) == steps(theirs)


def tensors_in(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def steps(x: Tensor) -> list[int]:
    """Strides, where they matter."""
    return [step for size, step in zip(x.shape, x.stride(), strict=True) if size > 1]


@given(st.data())
def test_arithmetic_lays_its_result_out_as_data_lies(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(2, 3), max_size=4))
    x, y = (data.draw(laid_out(shape, torch.float32)) for _ in range(2))
    found = meta_kernels.KERNELS[aten.mul.Tensor](x, y)
    real = [torch.empty_strided(t.shape, t.stride()).fill_(1.0) for t in (x, y)]
    assert found.stride() == (real[0] * real[1]).stride()


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
    (aten.matmul.default, (meta(2, 3), meta(4, 5))),
    (aten.matmul.default, (meta(2, 1, 3), meta(3, 3, 5))),
    (aten.linear.default, (meta(2, 3), meta(5, 4))),
    (aten.linear.default, (meta(2, 3), meta(5, 3), meta(4))),
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
