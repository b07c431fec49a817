"""Makers of input tensors. Sizes are distinct where a mix-up of dimensions would show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.rules.harness import Input, Sample


def real(*shape: int) -> Input:
    """Normal numbers: float64, a parameter."""
    return Input(lambda: torch.randn(shape, dtype=torch.float64))


def positive(*shape: int) -> Input:
    """Numbers in [0.2, 0.8]: in the domain of log, sqrt, acos and atanh."""
    return Input(lambda: 0.2 + 0.6 * torch.rand(*shape, dtype=torch.float64))


def negative(*shape: int) -> Input:
    """Numbers in [-0.8, -0.2]: zeros would be the largest."""
    return Input(lambda: -0.2 - 0.6 * torch.rand(*shape, dtype=torch.float64))


def boolean(*shape: int) -> Input:
    """Coin flips: a buffer."""
    return Input(lambda: torch.rand(*shape) > 0.5)


def data(*shape: int) -> Input:
    """Normal numbers that are data: a graph input."""
    return Input(lambda: torch.randn(*shape, dtype=torch.float64), fixed=True)


def given(values: Any) -> Input:
    """A constant: a buffer of integers or booleans."""
    return Input(lambda: torch.tensor(values))


def indices(high: int, *shape: int) -> Input:
    """Integers in [0, high) that are data: a graph input."""
    return Input(lambda: torch.randint(high, shape), fixed=True)


def stored(high: int, *shape: int) -> Input:
    """Integers in [0, high) in a buffer."""
    return Input(lambda: torch.randint(high, shape))


def sample(
    ops: str,
    run: Callable[..., Any],
    *inputs: Input,
    random: bool = False,
    module: bool = False,
    over_flagged: str | None = None,
    over_frozen: str | None = None,
) -> Sample:
    """One row, or part of one, of the op table."""
    return Sample(ops, run, inputs, random, module, over_flagged, over_frozen)
