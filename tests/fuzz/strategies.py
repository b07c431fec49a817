"""Hypothesis strategies: random programs, and random plans for their groups."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from fxprune import Group
from tests.fuzz import ops
from tests.fuzz.program import Builder, Program, Value
from tests.fuzz.table import TABLE, Op, project

MAX_STEPS = 7
MIN_STEPS = 1
_ROWS = tuple(TABLE.values())
_INPUTS = {
    "BCHW": ((3, 4, 4), (1, 5, 3), (2, 6, 4), (4, 1, 3)),
    "BCT": ((3, 5), (1, 4), (2, 1)),
    "BTC": ((4, 3), (3, 5), (1, 4), (2, 1)),
    "BC": ((4,), (3,), (1,)),
    "BT": ((4,), (3,), (1,)),
    "BHWC": ((4, 4, 3), (2, 6, 1), (1, 2, 4)),
    "BCTHW": ((2, 3, 4, 3), (1, 2, 1, 4), (3, 1, 4, 2)),
}

assert ops


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Small programs: one or two inputs, a layer on each, some ops, and layers before outputs."""
    b = Builder(lambda below: draw(_below(below)))
    for _ in range(1 + (b.choose(5) == 4)):
        _begin(b)
    steps = b.between(MIN_STEPS, MAX_STEPS)
    for _ in range(steps):
        draw(_step(b))
    return _finish(b)


def _below(bound: int) -> st.SearchStrategy[int]:
    if bound not in _INTEGERS:
        _INTEGERS[bound] = st.integers(0, bound - 1)
    return _INTEGERS[bound]


_INTEGERS: dict[int, st.SearchStrategy[int]] = {}


def _begin(b: Builder) -> None:
    """An input and a layer that makes prunable channels of it."""
    kind = b.pick(tuple(_INPUTS))
    value = b.add_input(kind, *b.pick(_INPUTS[kind]))
    if kind == "BT":
        write(b, b.pick([row for row in _ROWS if "BT" in row.kinds]), value)
    else:
        b.emit(kind, project(b, b.use(value), b.between(4, 10)))


@st.composite
def _step(draw: st.DrawFn, b: Builder) -> None:
    """One row of the table, written for one of the last values. Shrinks by leaving out a row."""
    b.choose = lambda below: draw(_below(below))
    value = b.values[-1 - b.choose(min(len(b.values), 4))]
    rows = [row for row in _ROWS if row.suits(b, value) for _ in range(row.weight)]
    write(b, b.pick(rows), value)


def write(b: Builder, row: Op, value: Value) -> None:
    """Let a row write its lines."""
    b.use(value)
    b.ops.append(row.name)
    row.write(b, value)


def _finish(b: Builder) -> Program:
    """Return every value that nothing uses, most of them through a last layer."""
    loose = [value for value in b.values if value.name not in b.used]
    names = [_head(b, value) for value in loose]
    if len(names) == 1:
        return b.program(names[0])
    keys = ", ".join(f'"{name}": {name}' for name in names)
    return b.program(b.pick((f"({', '.join(names)})", f"[{', '.join(names)}]", f"{{{keys}}}")))


def _head(b: Builder, value: Value) -> str:
    """A last layer on the value, its entries or its mean; or none: then its channels stay."""
    space = tuple(d for d, letter in enumerate(value.kind) if letter not in "BC")
    match b.choose(32):
        case 31:
            return value.name
        case 27 | 28 | 29 | 30 if space:
            return b.temp("BC", project(b, b.temp("BC", f"{value}.mean({space})"), 3)).name
        case 23 | 24 | 25 | 26 if space:
            return b.temp("BC", project(b, b.temp("BC", f"{value}.flatten(1)"), 3)).name
    return b.temp(value.kind, project(b, value, 3)).name


@st.composite
def kept_units(draw: st.DrawFn, groups: Sequence[Group]) -> dict[str, Any]:
    """Kept units per group: any number, one, all but one, or all, anew in each context."""
    kept: dict[str, Any] = {}
    for group in groups:
        count = draw(st.sampled_from((-1, 1, group.size - 1, group.size)))
        count = draw(_below(group.size)) + 1 if count == -1 else count
        rng = random.Random(draw(_below(1000)))
        rows = [sorted(rng.sample(range(group.size), count)) for _ in range(group.contexts)]
        kept[group.name] = rows if group.contexts > 1 else rows[0]
    return kept
