"""Functions as few ops, told without running them.

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

Run: TypeAlias = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Runs an operator's overload on arguments by position and by keyword."""

aten = torch.ops.aten

_REAL = frozenset({torch.float32, torch.float64})


def call_function(function: Any, args: Any, kwargs: Mapping[str, Any], run: Run) -> Any:
    """What a function returns, where `run` runs its ops; None if it is not one of few ops."""
    row = FUNCTIONS.get(function)
    return None if row is None else row(run, *args, **kwargs)


def linear(run: Run, input: Any, weight: Any, bias: Any = None) -> Any:
    """``linear``, if every row of the weight has an entry of the bias."""
    if not _tensors(input, weight) or weight.dim() != 2:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return run(aten.linear.default, (input, weight, bias), {})


def matmul(run: Run, input: Any, other: Any, **options: Any) -> Any:
    """``matmul`` of matrices, or of batches of them."""
    if options or not _tensors(input, other) or min(input.dim(), other.dim()) < 2:
        return None
    return run(aten.matmul.default, (input, other), {})


def attention(
    run: Run, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """``scaled_dot_product_attention`` with equally many heads of queries, keys and values.

    softmax(scale * query @ key^T + mask) @ value, and 0 where the mask hides all keys.
    """
    if dropout_p or is_causal or enable_gqa or query.dtype not in _REAL or not query.shape[-1]:
        return None
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    turned = run(aten.transpose.int, (key, -2, -1), {})
    scaled = run(aten.mul.Scalar, (query, scale), {})
    scores = run(aten.matmul.default, (scaled, turned), {})
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            hidden, shown = (
                run(aten.scalar_tensor.default, (number,), {"dtype": query.dtype})
                for number in (-math.inf, 0.0)
            )
            attn_mask = run(aten.where.self, (attn_mask, shown, hidden), {})
        scores = run(aten.add.Tensor, (scores, attn_mask), {})
    weights = run(aten._safe_softmax.default, (scores, -1), {})
    return run(aten.matmul.default, (weights, value), {})


def _tensors(*values: Any) -> bool:
    return all(isinstance(value, Tensor) for value in values)


FUNCTIONS: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        **dict.fromkeys((F.linear, aten.linear.default), linear),
        **dict.fromkeys((torch.matmul, operator.matmul, aten.matmul.default), matmul),
        F.scaled_dot_product_attention: attention,
    }
)
"""Function → what it does: called with `run` and the function's own arguments.

Answers None, before it runs anything, where torch's dispatcher is to tell.
"""
