"""Functions as few ops.

Torch's dispatcher takes them apart into many more, most of which are views between the products of
matrices.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

from fxprune.schemas import schema_of

Run: TypeAlias = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Runs an operator's overload on arguments by position and by keyword."""

aten = torch.ops.aten

_REAL = frozenset({torch.float32, torch.float64})


def call_function(function: Any, args: Any, kwargs: Mapping[str, Any], run: Run) -> Any:
    """What a function returns, where `run` runs its ops; None if it is not one of few ops."""
    row = FUNCTIONS.get(function)
    if row is None:
        return None
    if isinstance(function, OpOverload):
        schema = schema_of(function)
        args, kwargs = schema.unbind(schema.bind(args, kwargs))
    return row(run, *args, **kwargs)


def is_linear(input: Any, weight: Any, bias: Any) -> bool:
    """Whether a linear layer is one op: every row of its weight has an entry of the bias."""
    if not _tensors(input, weight) or weight.dim() != 2:
        return False
    return bias is None or (isinstance(bias, Tensor) and bias.shape == weight.shape[:1])


def linear(run: Run, input: Any, weight: Any, bias: Any = None) -> Any:
    """``linear``."""
    if not is_linear(input, weight, bias):
        return None
    return run(aten.linear.default, (input, weight, bias), {})


def matmul(run: Run, input: Any, other: Any, **options: Any) -> Any:
    """``matmul`` of equally many matrices on both sides, or of several by one."""
    if options or not _tensors(input, other) or min(input.dim(), other.dim()) < 2:
        return None
    if other.dim() > 2 and input.shape[:-2] != other.shape[:-2]:
        return None
    return run(aten.matmul.default, (input, other), {})


def attention(
    run: Run, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """``scaled_dot_product_attention`` with equally many queries, keys and values per head.

    softmax(scale * query @ key^T + mask) @ value, and 0 where the mask hides all keys. As torch
    does, both factors are scaled by the root, so that neither gets very large.
    """
    heads = query.shape[:-2]
    if not heads == key.shape[:-2] == value.shape[:-2] or query.dtype not in _REAL:
        return None
    if dropout_p or is_causal or enable_gqa or not query.shape[-1]:
        return None
    root = query.shape[-1] ** -0.25 if scale is None else math.sqrt(abs(scale))
    turned = run(aten.transpose.int, (key, -2, -1), {})
    left = run(aten.mul.Scalar, (query, root if scale is None or scale >= 0 else -root), {})
    right = run(aten.mul.Scalar, (turned, root), {})
    scores = run(aten.matmul.default, (left, right), {})
    if attn_mask is not None:
        scores = run(aten.add.Tensor, (scores, _added(run, attn_mask, query.dtype)), {})
    weights = run(aten._safe_softmax.default, (scores, -1), {})
    return run(aten.matmul.default, (weights, value), {})


def _added(run: Run, mask: Tensor, dtype: torch.dtype) -> Any:
    """What a mask adds to the scores: it shows keys where it is true, if it is not a number."""
    if mask.dtype != torch.bool:
        return mask
    shown, hidden = (
        run(aten.scalar_tensor.default, (number,), {"dtype": dtype}) for number in (0.0, -math.inf)
    )
    return run(aten.where.self, (mask, shown, hidden), {})


def _tensors(*values: Any) -> bool:
    return all(isinstance(value, Tensor) for value in values)


FUNCTIONS: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        **dict.fromkeys((F.linear, aten.linear.default), linear),
        **dict.fromkeys((torch.matmul, operator.matmul, aten.matmul.default), matmul),
        **dict.fromkeys(
            (F.scaled_dot_product_attention, aten.scaled_dot_product_attention.default), attention
        ),
    }
)
"""Function or operator → what it does: called with `run` and the function's own arguments.

Answers None, before it runs anything, where torch's dispatcher is to tell.
"""
