"""One model of the sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

Inputs: TypeAlias = Callable[[nn.Module, int], dict[str, Any]]
"""Makes a model's inputs of a batch size."""


@dataclass(frozen=True)
class Entry:
    """A model and how to make inputs for it: batch 2 to trace it, another to check it."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
