"""Output shapes by formula, for operations whose meta kernels are slow Python decompositions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FUNCTIONS: dict[Any, Callable[..., Any]] = {}
MODULES: dict[Any, Callable[..., Any]] = {}
