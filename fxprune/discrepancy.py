"""How much two values of tensors differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fxprune.meta import unpacked


def max_error(actual: Any, expected: Any) -> float:
    """max|a-b| / max|b| per tensor, the largest over all; inf for NaN or differing shapes.

    Infinities count as equal where they are, and are no scale for the rest.
    """
    pairs = [tensors_in(actual), tensors_in(expected)]
    if [t.shape for t in pairs[0]] != [t.shape for t in pairs[1]]:
        return float("inf")
    worst = 0.0
    for a, b in zip(*pairs, strict=True):
        if a.numel() == 0 or (a.dtype == b.dtype and torch.equal(a, b)):
            continue
        wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
        a, b = a.to(wide), b.to(a.device, wide)
        scale = float(torch.where(b.isfinite(), b, 0).abs().max())
        distance = torch.where(a == b, 0, a - b)  # equal infinities have no difference
        error = float(distance.abs().max()) / (scale if scale > 0 else 1.0)
        worst = max(worst, error if error == error else float("inf"))
    return worst


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a value of any structure, in order."""
    return [leaf for leaf in tree_leaves(unpacked(value)) if isinstance(leaf, Tensor)]


def where_defined(
    actual: list[Tensor], expected: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors with 0 where both are NaN: a NaN that no output shows is no mismatch."""
    both = [a.isnan() & b.isnan() for a, b in zip(actual, expected, strict=True)]
    return (
        [a.masked_fill(nan, 0) for a, nan in zip(actual, both, strict=True)],
        [b.masked_fill(nan, 0) for b, nan in zip(expected, both, strict=True)],
    )
