"""Pausing Python's garbage collector."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused_collection() -> Iterator[None]:
    """No collections meanwhile.

    A capture, an analysis and a rewrite make very many objects that stay: the collector would walk
    through them, and through all that the process has imported, again and again and find nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
