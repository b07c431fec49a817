"""Dtype literals that mean the model's own: found by comparing captures in two precisions.

`x.to(other.dtype)` reads a literal. Emitted as one, it would fix the precision of the graph, which
`graph.half()` or `graph.double()` should change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from fxprune.capture.records import Capture, Precision, Record


def other_than(dtype: torch.dtype) -> torch.dtype:
    """A precision to compare with."""
    return torch.float32 if dtype == torch.float64 else torch.float64


def follow_precision(
    capture: Capture, dtype: torch.dtype, again: Callable[[torch.dtype], Capture]
) -> Capture:
    """Replace the literals that differ in another precision by `Precision`.

    Unless the other capture takes the same path the literals stay: only the precision of the graph
    is then fixed.
    """
    if not any(dtype in _leaves((r.args, r.kwargs)) for r in capture.records):
        return capture
    other = other_than(dtype)
    try:
        twin = again(other)
    except Exception:  # whatever the model raises in a precision that it was not made for
        return capture
    pairs = list(zip(capture.records, twin.records, strict=False))
    if len(capture.records) != len(twin.records) or any(_path(a) != _path(b) for a, b in pairs):
        return capture
    return replace(capture, records=[_followed(a, b, (dtype, other)) for a, b in pairs])


def _path(record: Record) -> tuple[str, Any, str]:
    return record.op, record.target, record.source


def _followed(record: Record, twin: Record, dtypes: tuple[torch.dtype, torch.dtype]) -> Record:
    if dtypes[0] not in _leaves((record.args, record.kwargs)):
        return record
    args = _merged(record.args, twin.args, dtypes)
    return replace(record, args=args, kwargs=_merged(record.kwargs, twin.kwargs, dtypes))


def _merged(mine: Any, theirs: Any, dtypes: tuple[torch.dtype, torch.dtype]) -> Any:
    if mine == dtypes[0] and theirs == dtypes[1]:
        return Precision()
    if type(mine) in (tuple, list) and type(theirs) is type(mine) and len(theirs) == len(mine):
        return type(mine)(_merged(a, b, dtypes) for a, b in zip(mine, theirs, strict=True))
    if isinstance(mine, dict) and isinstance(theirs, dict) and list(mine) == list(theirs):
        return {key: _merged(mine[key], theirs[key], dtypes) for key in mine}
    return mine


def _leaves(value: Any) -> Iterator[Any]:
    """The dtypes in a nested value."""
    if isinstance(value, torch.dtype):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
