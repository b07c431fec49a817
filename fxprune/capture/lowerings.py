"""Modules and functions that capture replaces by plainer ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LOWERINGS: dict[type, Callable[..., Any]] = {}
FUNCTIONS: dict[Any, Callable[..., Any]] = {}
