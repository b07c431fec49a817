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
        aten.addmm.default: [(meta(shape[1]), meta(shape[0], 3), meta(shape[1], 3).t())],
    }
    if func._schema.overload_name == "Tensor":
        return [(x, meta(*shape)), (x, meta(shape[-1])), (x, meta(1)), (x, 2), (x, 0.5)]
    return special.get(func, [(x,)])


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
    (aten.add.Tensor, (meta(3), meta(2, 3))),  # the second is the larger one
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
    (aten.native_batch_norm.default, (meta(2, 3), *[meta(4)] * 4, False, 0.1, 1e-5)),
    (aten.native_layer_norm.default, (meta(2, 3), [4], meta(4), meta(4), 1e-5)),
]


@pytest.mark.parametrize(("func", "args"), WRONG)
def test_sizes_that_do_not_fit_are_torchs_to_refuse(func: Any, args: tuple[Any, ...]) -> None:
    assert meta_kernels.KERNELS[func](*args) is NotImplemented
