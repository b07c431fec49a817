"""ATen operators as the functions and methods of torch's that models call.

Exported programs are made of operators, and what `torch.vmap` runs arrives as such. As functions
they need no rules of their own: neither for sizes nor for the rewriter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

aten = torch.ops.aten

_OWNERS = (torch, torch._C._nn)
_PREFIXES = {"linalg_": torch.linalg, "fft_": torch.fft, "special_": torch.special}
# A view of what kernels laid out as they please fails where that is not known; a reshape is the
# same view where there is one.
_RENAMED: Mapping[Any, Any] = MappingProxyType(
    {
        aten.view.default: Tensor.reshape,
        aten._unsafe_view.default: Tensor.reshape,
        aten.lift_fresh_copy.default: Tensor.clone,
        aten.sym_size.int: Tensor.size,
        aten.sym_numel.default: Tensor.numel,
    }
)


@cache
def function_of(operator: OpOverload) -> Any:
    """The function or method that runs an operator, called as the operator is.

    The operator itself where torch has none, and where it is not torch's own.
    """
    schema = operator._schema
    namespace, name = schema.name.split("::")
    if namespace != "aten":
        return operator
    if operator in _RENAMED:
        return _RENAMED[operator]
    first = schema.arguments[0] if schema.arguments else None
    if first is not None and (first.name, str(first.type)) == ("self", "Tensor"):
        method = getattr(Tensor, name, None)
        if callable(method):
            return method
    for prefix, module in _PREFIXES.items():
        if name.startswith(prefix):
            return getattr(module, name.removeprefix(prefix), operator)
    found = (getattr(owner, name) for owner in _OWNERS if hasattr(owner, name))
    return next(found, operator)


def _slice(
    x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """``slice``; an end of the largest integer is none."""
    end = None if end is None or int(end) >= 2**63 - 1 else end
    part = slice(None if start == 0 else start, end, None if step == 1 else step)
    return x[(slice(None),) * (dim % x.dim()) + (part,)]


def _places(indices: Sequence[Tensor | None]) -> tuple[Any, ...]:
    return tuple(slice(None) if index is None else index for index in indices)


def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    return x[_places(indices)]


def _index_put_(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    """``index_put_``; the method takes no None, and an assignment does not accumulate."""
    if accumulate:
        return x.index_put_(tuple(indices), values, accumulate)
    x[_places(indices)] = values
    return x


def _index_put(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _index_put_(x.clone(), *args, **kwargs)


def _to(x: Tensor, *, copy: bool = False, **options: Any) -> Tensor:
    """``to.dtype_layout``, which also says what strided tensors have by themselves."""
    wanted = {name: options.get(name) for name in ("dtype", "device", "memory_format")}
    return x.to(copy=copy, **{name: value for name, value in wanted.items() if value is not None})


def _to_copy(x: Tensor, **options: Any) -> Tensor:
    return _to(x, copy=True, **options)


_CONVOLUTIONS: tuple[Mapping[int, Callable[..., Tensor]], ...] = (
    {1: F.conv1d, 2: F.conv2d, 3: F.conv3d},
    {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d},
)


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """``convolution``, which has all kinds' arguments."""
    function = _CONVOLUTIONS[transposed][weight.dim() - 2]
    if transposed:
        return function(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return function(x, weight, bias, stride, padding, dilation, groups)


def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``native_layer_norm``: what nobody reads of the mean and the deviation is left out."""
    dims = [dim - len(shape) for dim in range(len(shape))]
    mean, variance = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
    return F.layer_norm(x, shape, weight, bias, eps), mean, (variance + eps).rsqrt()


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, hw: int, groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``native_group_norm``, likewise."""
    parts = x.reshape(x.shape[0], groups, -1)
    mean, variance = parts.mean(-1), parts.var(-1, correction=0)
    return F.group_norm(x, groups, weight, bias, eps), mean, (variance + eps).rsqrt()


def _attention(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *,
    attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``_scaled_dot_product_flash_attention_for_cpu``, likewise."""
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale
    )
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-2, -1) * factor
    if is_causal:
        scores = scores + torch.full_like(scores, -math.inf).triu(1)
    return out, torch.logsumexp(scores if attn_mask is None else scores + attn_mask, -1)


LOWERED: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        aten.slice.Tensor: _slice,
        aten.index.Tensor: _index,
        aten.index_put.default: _index_put,
        aten.index_put_.default: _index_put_,
        aten.to.dtype_layout: _to,
        aten._to_copy.default: _to_copy,
        aten.convolution.default: _convolution,
        aten.native_layer_norm.default: _layer_norm,
        aten.native_group_norm.default: _group_norm,
        aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    }
)
"""Operator → the torch code that runs in its place, where no function does."""
