"""Literals that depend on the mode: found by comparing an eval capture with a train capture."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch.nn.functional as F
from torch import nn

from fxprune.capture.compare import Mismatch, check_structure, merge, merge_shapes
from fxprune.capture.leaves import leaf_base, reads_training
from fxprune.capture.metacopy import COUNTER
from fxprune.capture.records import Attr, Capture, Expr, Mode, Precision, Record, Ref
from fxprune.capture.sizes import SizeFloat, SizeInt, plain
from fxprune.modules import ByMode

_NUMBERS = (bool, int, float)
_TOLD_TO_DROP: Mapping[Any, frozenset[int | str]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout,
                F.feature_alpha_dropout,
            ),
            frozenset({1, 2, "p", "training"}),
        ),
        F.scaled_dot_product_attention: frozenset({4, "dropout_p"}),
    }
)  # fmt: skip
"""Function → the positions and the names of the arguments by which a mode turns dropout on."""


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
    pairs: list[tuple[int, int]] = []
    for source in [*ours, *(source for source in theirs if source not in ours)]:
        mine, counterparts = ours.get(source, []), theirs.get(source, [])
        aligned = _align(capture, other, mine, counterparts)
        pairs += aligned
        extra = _unmatched(capture, mine, {i for i, _ in aligned})
        extra += [f"+{n}" for n in _unmatched(other, counterparts, {j for _, j in aligned})]
        if extra:
            notes.append(f"{source or 'the model'}: train mode differs by {', '.join(extra)}")
    twins = {i: i for i, record in enumerate(records) if record.op == "placeholder"}
    twins |= {j: i for i, j in pairs}
    for index, twin in pairs:
        record = records[index]
        try:
            records[index] = _merge(record, other.records[twin], twins)
        except _Differs as error:
            notes.append(f"{record.source or 'the model'}: {record.name} {error}")
    return replace(capture, records=records), tuple(notes)


def merge_modes(capture: Capture, train: Capture) -> Capture:
    """A capture with a `Mode` for each number in which one in train mode differs.

    Unlike `follow_modes`, raises Mismatch for whatever else differs.
    """
    both = capture, train
    check_structure(both)
    merge((capture.output, train.output), {})
    same = {index: index for index in range(len(capture.records))}
    try:
        pairs = zip(capture.records, train.records, strict=True)
        records = [_merge(mine, theirs, same) for mine, theirs in pairs]
    except _Differs as error:
        raise Mismatch(str(error)) from None
    return replace(capture, records=records, shapes=merge_shapes(both))


def without_dropout(capture: Capture, train: Capture) -> Capture:
    """The capture in train mode with what the one in eval mode tells its dropouts.

    Where that is the same, its own records.
    """
    pairs = zip(capture.records, train.records, strict=True)
    return replace(train, records=[_without_dropout(mine, theirs) for mine, theirs in pairs])


def _without_dropout(mine: Record, theirs: Record) -> Record:
    ours, given = (dict(enumerate(r.args)) | r.kwargs for r in (mine, theirs))
    told = _TOLD_TO_DROP.get(theirs.target, frozenset()) & ours.keys() & given.keys()
    if all(plain(ours[place]) == plain(given[place]) for place in told):
        return theirs
    given |= {place: ours[place] for place in told}
    args = tuple(given[place] for place in range(len(theirs.args)))
    kwargs = {name: given[name] for name in theirs.kwargs}
    return Record(theirs.op, theirs.target, args, kwargs, theirs.source, theirs.line)


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
        counts = isinstance(first, Attr) and first.name.endswith(COUNTER)
        if index not in matched and not counts:
            names.append(record.name)
    return names


class _Differs(Exception):
    """Two arguments differ between the modes by more than a number."""


def _merge(record: Record, other: Record, twins: Mapping[int, int]) -> Record:
    args = _values(record.args, other.args, twins)
    kwargs = _values(record.kwargs, other.kwargs, twins)
    return Record(record.op, record.target, args, kwargs, record.source, record.line)


def _values(mine: Any, other: Any, twins: Mapping[int, int]) -> Any:
    """An argument with a `Mode` for each number that differs.

    twins: records of the train capture -> those of this one.
    """
    if isinstance(mine, Ref) or isinstance(other, Ref):
        if not isinstance(mine, Ref) or not isinstance(other, Ref):
            raise _Differs("takes other values in train mode")
        # What only train mode computes has no twin, and was noted where it is.
        if mine != Ref(twins.get(other.index, mine.index), other.path):
            raise _Differs("takes other values in train mode")
        return mine
    if isinstance(mine, (Expr, Precision, SizeInt, SizeFloat)):
        return mine
    if isinstance(mine, (tuple, list)) and type(other) is type(mine) and len(other) == len(mine):
        return type(mine)(_values(a, b, twins) for a, b in zip(mine, other, strict=True))
    if isinstance(mine, dict) and isinstance(other, dict) and list(mine) == list(other):
        return {key: _values(mine[key], other[key], twins) for key in mine}
    if isinstance(mine, _NUMBERS) and isinstance(other, _NUMBERS):
        if mine == other:
            return mine
        if isinstance(other, (SizeInt, SizeFloat)):
            raise _Differs(f"has {mine} in eval mode and a size in train mode")
        return Mode(train_value=other, eval_value=mine)
    if isinstance(mine, slice) and isinstance(other, slice):
        one, two = ((v.start, v.stop, v.step) for v in (mine, other))
        if any(isinstance(v, Mode) for v in _values(one, two, twins)):
            raise _Differs(f"has {mine} in eval mode and {other} in train mode")
        return mine
    if type(mine) is not type(other) or mine != other:
        raise _Differs(f"has {mine} in eval mode and {other} in train mode")
    return mine
