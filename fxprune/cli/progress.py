"""Progress on long work, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

from tqdm import tqdm

_T = TypeVar("_T")


class Progress:
    """Says which stage of a command runs and how long it has taken, where a person looks."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown and sys.stderr.isatty()

    def stage(self, name: str, work: Callable[[], _T]) -> _T:
        """The result of `work`, with a line that says what is being done."""
        with tqdm(total=1, desc=name, disable=not self._shown, leave=True, bar_format=_LINE) as bar:
            result = work()
            bar.update()
            return result

    def each(self, name: str, items: Iterable[_T]) -> Iterable[_T]:
        """The items, counted as they are taken."""
        return tqdm(items, desc=name, disable=not self._shown)


_LINE = "{desc} {elapsed}"
