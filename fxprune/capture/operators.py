"""ATen operators as the functions and methods of torch's that models call.

Exported programs are made of operators, and what `torch.vmap` runs arrives as such. As functions
they need no rules of their own: neither for sizes nor for the rewriter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import BuiltinFunctionType, MappingProxyType, MethodDescriptorType
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


_ASSIGNED = frozenset({aten.index_put.default, aten.index_put_.default})
_PYTHON = frozenset({Tensor.split, Tensor.unflatten, Tensor.norm, torch.einsum})
"""The Python functions among torch's that take what their operators take."""


def function_of(operator: OpOverload, args: Sequence[Any]) -> Any:
    """The function or method that runs an operator on these positional arguments.

    The operator itself where torch has none, and where it is not torch's own.
    """
    if operator in _ASSIGNED and len(args) > 3 and args[3] and any(i is None for i in args[1]):
        return operator  # neither a method nor an assignment accumulates there
    if operator in LOWERED:
        return LOWERED[operator]
    method, function = _named(operator)
    if method is not None and args and isinstance(args[0], Tensor):
        return method
    return operator if function is None else function


@cache
def _named(operator: OpOverload) -> tuple[Any, Any]:
    """The method and the function that are called as an operator is, if there are."""
    if operator in _RENAMED:
        return _RENAMED[operator], None
    schema = operator._schema
    namespace, name = schema.name.split("::")
    if namespace != "aten":
        return None, None
    arguments, method, function = schema.arguments, None, None
    first = arguments[0] if arguments and not any(a.is_out for a in arguments) else None
    if first is not None and (first.name, str(first.type)) == ("self", "Tensor"):
        method = _taking_the_same(Tensor, name)
    for prefix, module in _PREFIXES.items():
        if name.startswith(prefix):
            function = _taking_the_same(module, name.removeprefix(prefix))
    for owner in _OWNERS:
        function = function or _taking_the_same(owner, name)
    return method, function


def _taking_the_same(owner: Any, name: str) -> Any:
    found = getattr(owner, name, None)
    known = isinstance(found, (BuiltinFunctionType, MethodDescriptorType)) or found in _PYTHON
    return found if known else None


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


def _to(x: Any, *, copy: bool = False, **options: Any) -> Tensor:
    """``to.dtype_layout``, which also says what strided tensors have by themselves.

    The dispatcher gives numbers that were made tensors to be promoted as numbers again.
    """
    if not isinstance(x, Tensor):
        x = torch.scalar_tensor(x, dtype=options.get("dtype"))
    wanted = {name: options.get(name) for name in ("dtype", "device", "memory_format")}
    given = {name: value for name, value in wanted.items() if value is not None}
    result: Tensor = x.to(copy=copy, **given)
    return result


def _to_copy(x: Any, **options: Any) -> Tensor:
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
    x: Tensor, normalized_shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``native_layer_norm``; dead code is removed where nobody reads the mean or the deviation."""
    dims = list(range(-len(normalized_shape), 0))
    mean, variance = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
    return F.layer_norm(x, normalized_shape, weight, bias, eps), mean, (variance + eps).rsqrt()


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, N: int, C: int, HxW: int, group: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``native_group_norm``, likewise."""
    parts = x.reshape(x.shape[0], group, -1)
    mean, variance = parts.mean(-1), parts.var(-1, correction=0)
    return F.group_norm(x, group, weight, bias, eps), mean, (variance + eps).rsqrt()


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
