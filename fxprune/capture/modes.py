"""Literals that depend on the mode: found by comparing an eval capture with a train capture."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from fxprune.capture.leaves import leaf_base, reads_training
from fxprune.capture.records import Attr, Capture, Expr, Mode, Record, Ref
from fxprune.capture.sizes import SizeFloat, SizeInt
from fxprune.modules import ByMode

_COUNTER = "num_batches_tracked"


def depends_on_mode(modules: Mapping[str, nn.Module], reached: Mapping[str, Any]) -> bool:
    """Whether any module that forward reached could behave otherwise in train mode."""
    for path, cls in reached.items():
        if issubclass(cls, (nn.MultiheadAttention, ByMode)):
            return True
        module = modules.get(path)  # None if forward itself made it
        if reads_training(cls) and (module is None or leaf_base(module) is None):
            return True
    return False


def follow_modes(capture: Capture, train: Callable[[], Capture]) -> tuple[Capture, tuple[str, ...]]:
    """Replace literals that differ in train mode by `Mode`s; notes on what could not be followed.

    The train capture may fail: that is a note, because only the behaviour in train mode is lost.
    """
    try:
        other = train()
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        return capture, (f"train mode was not captured: {type(error).__name__}: {first}",)
    notes: list[str] = []
    records = list(capture.records)
    theirs = _by_source(other, capture.drop_paths)
    ours = _by_source(capture, capture.drop_paths)
    for source, indices in ours.items():
        counterparts = theirs.pop(source, [])
        pairs = _align(capture, other, indices, counterparts)
        extra = _unmatched(capture, indices, {i for i, _ in pairs})
        extra += [f"+{n}" for n in _unmatched(other, counterparts, {j for _, j in pairs})]
        if extra:
            notes.append(f"{source or 'the model'}: train mode differs by {', '.join(extra)}")
        for mine, their in pairs:
            try:
                records[mine] = _merge(records[mine], other.records[their])
            except _Differs as error:
                notes.append(f"{source or 'the model'}: {records[mine].name} {error}")
    for source, indices in theirs.items():
        names = ", ".join(f"+{other.records[i].name}" for i in indices)
        notes.append(f"{source or 'the model'}: train mode differs by {names}")
    return replace(capture, records=records), tuple(notes)


def _by_source(capture: Capture, skipped: frozenset[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, record in enumerate(capture.records):
        # Stochastic depth is one record in eval mode and several in train mode, by intent.
        if record.op != "placeholder" and record.source not in skipped:
            found.setdefault(record.source, []).append(index)
    return found


def _key(record: Record) -> str:
    return f"{record.op} {record.name}"


def _align(
    mine: Capture, other: Capture, ours: list[int], theirs: list[int]
) -> list[tuple[int, int]]:
    ours_keys = [_key(mine.records[i]) for i in ours]
    their_keys = [_key(other.records[j]) for j in theirs]
    if ours_keys == their_keys:
        return list(zip(ours, theirs, strict=True))
    blocks = difflib.SequenceMatcher(None, ours_keys, their_keys, autojunk=False)
    return [
        (ours[block.a + k], theirs[block.b + k])
        for block in blocks.get_matching_blocks()
        for k in range(block.size)
    ]


def _unmatched(capture: Capture, indices: list[int], matched: set[int]) -> list[str]:
    names: list[str] = []
    for index in indices:
        record = capture.records[index]
        first = record.args[0] if record.args else None
        counts = isinstance(first, Attr) and first.name.endswith(_COUNTER)
        if index not in matched and not counts:
            names.append(record.name)
    return names


class _Differs(Exception):
    """Two arguments differ between the modes by more than a number."""


def _merge(record: Record, other: Record) -> Record:
    args = _values(record.args, other.args)
    kwargs = _values(record.kwargs, other.kwargs)
    return replace(record, args=args, kwargs=kwargs)


def _values(mine: Any, other: Any) -> Any:
    if isinstance(mine, (Ref, Expr, SizeInt, SizeFloat)) or isinstance(other, Ref):
        # What flows along the edges may differ; the structure was aligned by name.
        return mine
    if isinstance(mine, (tuple, list)) and type(other) is type(mine) and len(other) == len(mine):
        return type(mine)(_values(a, b) for a, b in zip(mine, other, strict=True))
    if isinstance(mine, dict) and isinstance(other, dict) and list(mine) == list(other):
        return {key: _values(mine[key], other[key]) for key in mine}
    numbers = (bool, int, float)
    if isinstance(mine, numbers) and isinstance(other, numbers) and mine != other:
        if isinstance(other, (SizeInt, SizeFloat)):
            raise _Differs(f"has {mine} in eval mode and a size in train mode")
        return Mode(train_value=other, eval_value=mine)
    if isinstance(mine, (Attr, str)) and mine != other:
        raise _Differs(f"has {mine} in eval mode and {other} in train mode")
    return mine
