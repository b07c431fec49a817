"""Results on meta by formula, for ATen ops whose meta kernels are slow Python decompositions.

A kernel answers NotImplemented where its formula does not apply; torch's own then runs, and raises
if the sizes do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

Kernel: TypeAlias = Callable[..., Any]

aten = torch.ops.aten


def _new(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="meta")


def _same(*tensors: Tensor | None) -> bool:
    """Whether all tensors that are given are on meta, contiguous, floating and of one dtype."""
    given = [t for t in tensors if t is not None]
    return all(
        t.is_meta and t.dtype == given[0].dtype and t.is_floating_point() and t.is_contiguous()
        for t in given
    )


def elementwise(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """An op of one tensor."""
    plain = _same(x) and not any(isinstance(a, Tensor) for a in args) and not kwargs.get("dtype")
    return _new(x, x.shape) if plain else NotImplemented


def in_place(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """An in-place op of one tensor."""
    return x if _same(x) else NotImplemented


def binary(x: Any, y: Any, **kwargs: Any) -> Any:
    """An op of a tensor and a number, or one that broadcasts to it."""
    if not isinstance(x, Tensor) or not _same(x):
        return NotImplemented
    fits = _broadcasts(y, x) if isinstance(y, Tensor) else type(y) in (int, float)
    return _new(x, x.shape) if fits else NotImplemented


def _broadcasts(y: Tensor, x: Tensor) -> bool:
    if not _same(x, y) or y.dim() > x.dim():
        return False
    pairs = zip(reversed(y.shape), reversed(x.shape), strict=False)
    return all(size in (1, full) for size, full in pairs)


def softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    """``_softmax``."""
    return NotImplemented if half_to_float else elementwise(x)


def batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *options: float
) -> Any:
    """``native_batch_norm`` with running statistics: the result and two vectors of statistics."""
    if training or x.dim() < 2 or not _same(x, weight, bias, mean, variance):
        return NotImplemented
    given = [t for t in (weight, bias, mean, variance) if t is not None]
    if any(t.shape != (x.shape[1],) for t in given):
        return NotImplemented
    return _new(x, x.shape), _new(x, (x.shape[1],)), _new(x, (x.shape[1],))


def layer_norm(x: Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    """``native_layer_norm``: the result, and the statistics per position."""
    rank = len(shape)
    if not _same(x, weight, bias) or rank == 0 or tuple(x.shape[-rank:]) != tuple(shape):
        return NotImplemented
    if any(t is not None and tuple(t.shape) != tuple(shape) for t in (weight, bias)):
        return NotImplemented
    statistics = (*x.shape[:-rank], *[1] * rank)
    return _new(x, x.shape), _new(x, statistics), _new(x, statistics)


def addmm(bias: Tensor, a: Tensor, b: Tensor, **scales: Any) -> Any:
    """``bias + a @ b``; b is mostly a transposed weight, which is not contiguous."""
    fits = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and bias.shape == (b.shape[1],)
    plain = a.is_meta and b.is_meta and bias.is_meta and a.dtype == b.dtype == bias.dtype
    return _new(a, (a.shape[0], b.shape[1])) if fits and plain else NotImplemented


def _overloads(names: str) -> list[Any]:
    """The default overloads of these ops."""
    return [getattr(aten, name).default for name in names.split()]


KERNELS: Mapping[Any, Kernel] = MappingProxyType(
    {
        **dict.fromkeys(
            _overloads("gelu hardtanh hardswish silu hardsigmoid leaky_relu sigmoid rsqrt roll"),
            elementwise,
        ),
        **dict.fromkeys(
            _overloads("hardtanh_ hardswish_ silu_ hardsigmoid_ leaky_relu_ sigmoid_"), in_place
        ),
        **{getattr(aten, name).Tensor: binary for name in ("add", "sub", "mul", "div")},
        aten.pow.Tensor_Scalar: elementwise,
        aten._softmax.default: softmax,
        aten.native_batch_norm.default: batch_norm,
        aten.native_layer_norm.default: layer_norm,
        aten.addmm.default: addmm,
    }
)
"""ATen overload → kernel."""


def run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The result of an op on meta tensors."""
    kernel = KERNELS.get(func)
    result = NotImplemented if kernel is None else kernel(*args, **kwargs)
    return func(*args, **kwargs) if result is NotImplemented else result
