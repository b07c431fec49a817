"""Sizes behave as the numbers they are, and remember what computed them."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.capture.sizes import Log, SizeFloat, SizeInt, plain, size_of, sized


def size(value: float, log: Log | None = None) -> Any:
    return sized(value, size_of, (), [] if log is None else log)


def evaluate(value: Any) -> Any:
    """The number that a size's expression computes; leaves are their own value."""
    if not isinstance(value, (SizeInt, SizeFloat)) or value.fn is size_of:
        return plain(value)
    return value.fn(*(evaluate(a) for a in value.args))


BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod"]


@given(st.sampled_from(BINARY), st.integers(-9, 9), st.integers(1, 9), st.booleans())
def test_arithmetic(name: str, a: int, b: int, swapped: bool) -> None:
    fn = getattr(operator, name)
    left, right = (a, size(b)) if swapped else (size(a), b)
    result = fn(left, right)
    assert result == fn(a, b)
    assert type(result) is (SizeFloat if name == "truediv" else SizeInt)
    assert evaluate(result) == fn(a, b)
    with_float = fn(left, right + 0.5)
    assert isinstance(with_float, SizeFloat)
    assert evaluate(with_float) == with_float


@given(st.integers(1, 50), st.integers(1, 9))
def test_rounding(a: int, b: int) -> None:
    ratio = size(a) / b
    for fn in (math.ceil, math.floor, round, math.trunc):
        result = fn(ratio)
        assert type(result) is SizeInt
        assert result == fn(a / b) == evaluate(result)
    assert type(int(ratio)) is int
    assert divmod(size(a), b) == divmod(a, b)
    assert math.ceil(size(a)) == a
    assert type(math.prod([size(a), 3])) is SizeInt
    assert type(sum([size(a), 3])) is SizeInt
    assert -size(a) == -a
    assert abs(-size(a)) == a
    assert size(a) ** 2 == a * a
    assert type(size(a) ** -0.5) is SizeFloat


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_comparisons_are_plain_and_logged(name: str) -> None:
    log: Log = []
    fn = getattr(operator, name)
    assert fn(size(3, log), 4) is fn(3, 4)
    assert [(entry[0], entry[2]) for entry in log] == [(fn, fn(3, 4))]


def test_sizes_stay_sizes_only_during_capture() -> None:
    assert type(copy.deepcopy(size(3))) is int
    assert type(pickle.loads(pickle.dumps(size(3)))) is int
    assert type(pickle.loads(pickle.dumps(size(3) / 2))) is float
    assert {3: "x"}[size(3)] == "x"
    assert size(3) != "3"
    with pytest.raises(TypeError):
        size(3) + "3"
