"""What a command gives back, and how it says that it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fxprune.errors import FxpruneError

OK, FAILED, USAGE, REFUSED, BROKEN, INTERRUPTED = 0, 1, 2, 3, 4, 130


class UsageError(FxpruneError):
    """The command line does not make sense."""


class SourceError(FxpruneError):
    """A model, its weights or its inputs could not be had."""


@dataclass(frozen=True)
class Outcome:
    """What a command prints, as text and as data for --json; its exit code is OK or FAILED."""

    text: str
    data: Any
    code: int = OK
