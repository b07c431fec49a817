"""Where in the model's own code an operation was called."""

from __future__ import annotations

import functools
import os
import sys
import types

import torch

_SKIPPED = (
    os.path.dirname(torch.__file__) + os.sep,
    os.path.dirname(os.path.dirname(__file__)) + os.sep,
    "<string>",
)


@functools.cache
def is_users(filename: str) -> bool:
    """Whether a file is neither torch's nor of this package."""
    return not filename.startswith(_SKIPPED)


def user_line() -> str:
    """The `file:line` of the innermost frame that is the model's own code."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if is_users(name):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
