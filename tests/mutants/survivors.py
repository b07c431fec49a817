"""Mutants that no test can kill, each with the reason why it is the same program."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

EQUIVALENT: Mapping[str, str] = MappingProxyType({})
