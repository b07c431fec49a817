"""Comparing captures at several sizes: which literals are fixed, which follow an input size."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch

from fxprune.capture.records import Attr, Capture, Expr, Rebuilt, Record, Ref
from fxprune.capture.sizes import SizeFloat, SizeInt, plain, size_of

#: a size of an input, as an expression -> (its value in each capture, the unit of its changes)
Known = Mapping[Expr, tuple[tuple[int, ...], int]]
#: looks at the index of a record, at it, and at whether forward asked for a size; raises Mismatch
Check = Callable[[int, Record, bool], None]
_LITERALS = frozenset({bool, int, float, str, type(None), Ref, Attr})
"""Types of which equal values are the same in every way."""
# Functions that may be constant at the sizes tried and not at others.
_UNEVEN = frozenset({operator.mod, math.ceil, math.floor, math.trunc, round})


class Mismatch(Exception):
    """Captures at different sizes that are not the same graph; the message says where."""


def follows(base: Capture) -> Check:
    """A check that records are the same operations as those of `base`."""

    def check(index: int, record: Record, _: bool) -> None:
        if index >= len(base.records):
            raise Mismatch(f"the model runs more operations ({record.name} at {record.line})")
        expected = base.records[index]
        if (record.op, record.target) != (expected.op, expected.target):
            names = " and ".join(sorted({expected.name, record.name}))
            raise Mismatch(f"the model takes different paths ({names} at {expected.line})")

    return check


def asks_for_no_size(_: int, __: Record, measures: bool) -> None:
    """A check that ends runs whose literals may be made of sizes."""
    if measures:
        raise Mismatch("the model asks for sizes")


def at_most(limit: int) -> Check:
    """A check that ends runs of more records."""

    def check(index: int, record: Record, _: bool) -> None:
        if index >= limit:
            raise Mismatch(f"the model runs many more operations (as at {record.line})")

    return check


def merge_captures(captures: Sequence[Capture], known: Known) -> Capture:
    """One capture with `Expr` for every size that varies. Raises Mismatch."""
    base = captures[0]
    check_structure(captures)
    records = [_merge_record(rs, known) for rs in zip(*(c.records for c in captures), strict=True)]
    output = merge(tuple(c.output for c in captures), known)
    log = _merge_logs(captures, known)
    return replace(base, records=records, output=output, log=log, shapes=merge_shapes(captures))


def merge_shapes(captures: Sequence[Capture]) -> Mapping[Ref, tuple[tuple[int, ...], ...]]:
    """The shapes of all results, with the sizes in each of the captures."""
    return {
        ref: tuple(sum(sizes, ()) for sizes in zip(*(c.shapes[ref] for c in captures), strict=True))
        for ref in captures[0].shapes
    }


def _same_constants(base: Capture, other: Capture) -> None:
    if list(base.constants) != list(other.constants):
        raise Mismatch("the model makes a different number of constants")
    for name, tensor in base.constants.items():
        twin = other.constants[name]
        same = tensor.shape == twin.shape and tensor.dtype == twin.dtype
        if not (same and torch.equal(tensor, twin)):
            raise Mismatch(f"a constant of shape {tuple(tensor.shape)} has other values")


def check_structure(captures: Sequence[Capture]) -> None:
    """Raise Mismatch if the captures are not the same operations, constants and results."""
    base, *others = captures
    check = follows(base)
    for other in others:
        _same_constants(base, other)
        for index, record in enumerate(other.records):
            check(index, record, False)
        if len(other.records) < len(base.records):
            raise Mismatch("the model runs fewer operations")


def _merge_record(group: tuple[Record, ...], known: Known) -> Record:
    base = group[0]
    try:
        args = merge(tuple(r.args for r in group), known)
        kwargs = merge(tuple(r.kwargs for r in group), known)
    except Mismatch as error:
        raise Mismatch(f"{base.name} at {base.line} {error}") from None
    return Record(base.op, base.target, args, kwargs, base.source, base.line)


def merge(values: tuple[Any, ...], known: Known) -> Any:
    """One value for the values that the captures have in the same place."""
    base, kind = values[0], type(values[0])
    alike = len(set(map(type, values))) == 1
    if alike and kind in _LITERALS and values.count(base) == len(values):
        return base
    if isinstance(base, (bool, Ref, Attr, str)) or base is None:
        raise Mismatch(f"has argument {_several(values)}")
    if isinstance(base, (int, float)):
        return _merge_numbers(values, known)
    if not alike:
        raise Mismatch(f"has arguments of types {_several(type(v).__name__ for v in values)}")
    if isinstance(base, (tuple, list)):
        if len(set(map(len, values))) > 1:
            raise Mismatch(f"has arguments of lengths {_several(len(v) for v in values)}")
        return kind(merge(items, known) for items in zip(*values, strict=True))
    if isinstance(base, dict):
        if any(list(v) != list(base) for v in values):
            raise Mismatch("has different keys")
        return kind((k, merge(tuple(v[k] for v in values), known)) for k in base)
    if isinstance(base, slice):
        parts = ((v.start, v.stop, v.step) for v in values)
        return slice(*(merge(items, known) for items in zip(*parts, strict=True)))
    if isinstance(base, Rebuilt):
        if any(v.fn is not base.fn for v in values):
            raise Mismatch(f"is a {_several(v.fn.__name__ for v in values)}")
        args = merge(tuple(v.args for v in values), known)
        return Rebuilt(base.fn, args, merge(tuple(v.kwargs for v in values), known))
    return base


def _several(values: Any) -> str:
    return " and ".join(dict.fromkeys(str(v) for v in values))


def _merge_numbers(values: tuple[Any, ...], known: Known) -> Any:
    numbers = tuple(plain(v) for v in values)
    if any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
        raise Mismatch(f"has argument {_several(values)}")
    base = values[0]
    constant = all(n == numbers[0] or n != n for n in numbers)
    if constant and not _is_uneven(values):
        return numbers[0]
    if all(isinstance(v, (SizeInt, SizeFloat)) and v.fn is base.fn for v in values):
        try:
            args = merge(tuple(v.args for v in values), known)
            return Expr(base.fn, args) if not constant or _varies(args) else numbers[0]
        except Mismatch:
            pass  # computed differently, yet it may be the same function of one size
    if constant:
        return numbers[0]
    fitted = _fit(numbers, known)
    if fitted is None:
        raise Mismatch(f"has {_several(numbers)} where a size is expected to follow the inputs")
    return fitted


def _is_uneven(values: Any) -> bool:
    """Whether equal sizes were computed by rounding, so that they need not stay equal."""
    if not all(isinstance(v, (SizeInt, SizeFloat)) for v in values):
        return False
    fn = values[0].fn
    if fn in _UNEVEN:
        return True
    if fn is operator.floordiv and any(plain(v.args[0]) % (plain(v.args[1]) or 1) for v in values):
        return True
    if any(len(v.args) != len(values[0].args) for v in values):
        return False
    return any(_is_uneven(items) for items in zip(*(v.args for v in values), strict=True))


def _varies(args: tuple[Any, ...]) -> bool:
    return any(isinstance(a, Expr) for a in args)


def _fit(numbers: tuple[Any, ...], known: Known) -> Expr | None:
    """`k * size + c`, or `k * size * size`, through all the numbers; k and c are integers.

    Sizes that change by multiples of a unit only (there is a guard then) may be divided by it.
    Whole floats are such a number as a float: `float(size)` cannot remember its size.
    """
    if all(isinstance(n, float) and n.is_integer() for n in numbers):
        whole = _fit(tuple(int(n) for n in numbers), known)
        return None if whole is None else Expr(float, (whole,))
    if not all(isinstance(n, int) for n in numbers) or len(numbers) < 3:
        return None
    for size, (sizes, unit) in known.items():
        if sizes[1] == sizes[0]:
            continue
        slope = Fraction(numbers[1] - numbers[0], sizes[1] - sizes[0])
        k, q = slope.numerator, slope.denominator
        if k == 0 or unit % q:
            continue
        c = q * numbers[0] - k * sizes[0]
        if all(q * n == k * s + c for n, s in zip(numbers, sizes, strict=True)):
            return _scaled(size, k, c, q)
    return _fit_product(numbers, known)


def _scaled(size: Expr, k: int, c: int, q: int) -> Expr:
    """`(k * size + c) // q`."""
    result = size if k == 1 else Expr(operator.mul, (size, k))
    result = result if c == 0 else Expr(operator.add, (result, c))
    return result if q == 1 else Expr(operator.floordiv, (result, q))


def _fit_product(numbers: tuple[int, ...], known: Known) -> Expr | None:
    """`k * size * size` or with three sizes: what a model counts, such as pixels and voxels."""
    for count in (2, 3):
        for sizes in itertools.combinations_with_replacement(known, count):
            values = [math.prod(v) for v in zip(*(known[s][0] for s in sizes), strict=True)]
            ratios = {Fraction(n, v) for n, v in zip(numbers, values, strict=True) if v}
            if len(ratios) != 1 or 0 in values:
                continue
            k, q = ratios.pop().as_integer_ratio()
            if k and math.prod(math.gcd(known[s][0][0], known[s][1]) for s in sizes) % q == 0:
                product = functools.reduce(lambda a, b: Expr(operator.mul, (a, b)), sizes)
                return _scaled(product, k, 0, q)
    return None


def _merge_logs(captures: Sequence[Capture], known: Known) -> Any:
    """The comparisons of varying sizes that came out the same way in every capture."""
    if len({len(c.log) for c in captures}) > 1:
        return []
    merged: dict[Any, bool] = {}
    for group in zip(*(c.log for c in captures), strict=True):
        fn, _, outcome = group[0]
        if any(entry[0] is not fn or entry[2] != outcome for entry in group):
            continue
        try:
            args = merge(tuple(entry[1] for entry in group), known)
        except Mismatch:
            continue
        if any(isinstance(a, Expr) for a in args) and args[0] != args[1]:
            merged[fn, args] = outcome
    return [(fn, args, outcome) for (fn, args), outcome in merged.items()]


def input_size(place: int, path: tuple[Any, ...], dim: int) -> Expr:
    """The expression for a size of an input."""
    return Expr(size_of, (Ref(place, path), dim))
