"""Sizes that remember where they came from.

During capture `x.shape` answers with `SizeInt`s: integers that carry the expression that computed
them. User code sees plain integers; an expression is only used where the size turns out to vary.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

Log = list[tuple[Callable[..., Any], tuple[Any, ...], bool]]


def size_of(*_: Any) -> int:
    """The marker for the leaf expression: the size of a tensor along a dimension."""
    raise NotImplementedError("size_of is a marker, it is never called")


def numel_of(*_: Any) -> int:
    """The marker for the leaf expression: the number of elements of a tensor."""
    raise NotImplementedError("numel_of is a marker, it is never called")


class SizeInt(int):
    """An int with the expression `fn(*args)` that computed it; `log` collects comparisons."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    log: Log

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)

    __hash__ = int.__hash__


class SizeFloat(float):
    """A float computed from sizes, with the expression that computed it."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    log: Log

    def __deepcopy__(self, memo: dict[int, Any]) -> float:
        return float(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float(self),)

    __hash__ = float.__hash__


def sized(value: Any, fn: Callable[..., Any], args: tuple[Any, ...], log: Log) -> Any:
    """`value` as a size with its expression; what is neither int nor float stays as it is."""
    kind = SizeInt if type(value) is int else SizeFloat if type(value) is float else None
    if kind is None:
        return value
    size = kind(value)
    size.fn, size.args, size.log = fn, args, log
    return size


def plain(value: Any) -> Any:
    """The bare number of a size; anything else unchanged."""
    kind = type(value)
    return int(value) if kind is SizeInt else float(value) if kind is SizeFloat else value


def of_capture(value: Any, log: Log) -> Any:
    """A number among those of the capture with this log: a size of another one is a bare number.

    Functions that remember their results by their arguments return sizes of captures long past.
    """
    return plain(value) if getattr(value, "log", log) is not log else value


_NUMBERS = (int, float)


def _binary(name: str, fn: Callable[[Any, Any], Any]) -> None:
    def forward(self: Any, other: Any) -> Any:
        if not isinstance(other, _NUMBERS) or isinstance(other, bool):
            return NotImplemented
        args = (self, of_capture(other, self.log))
        return sized(fn(plain(self), plain(other)), fn, args, self.log)

    def reflected(self: Any, other: Any) -> Any:
        if not isinstance(other, _NUMBERS) or isinstance(other, bool):
            return NotImplemented
        args = (of_capture(other, self.log), self)
        return sized(fn(plain(other), plain(self)), fn, args, self.log)

    for cls in (SizeInt, SizeFloat):
        setattr(cls, f"__{name}__", forward)
        setattr(cls, f"__r{name}__", reflected)


def _unary(name: str, fn: Callable[[Any], Any], *classes: type) -> None:
    def forward(self: Any, *digits: Any) -> Any:
        value = fn(plain(self), *digits)
        return sized(value, fn, (self, *digits), self.log)

    for cls in classes:
        setattr(cls, f"__{name}__", forward)


def _comparison(name: str, fn: Callable[[Any, Any], bool]) -> None:
    def forward(self: Any, other: Any) -> Any:
        if not isinstance(other, _NUMBERS):
            return NotImplemented
        outcome = fn(plain(self), plain(other))
        if getattr(other, "log", self.log) is self.log:
            self.log.append((fn, (self, other), outcome))
        return outcome

    for cls in (SizeInt, SizeFloat):
        setattr(cls, f"__{name}__", forward)


_BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": pow,  # the operator would be written as -(1**n) of -1
}
for _name, _fn in _BINARY.items():
    _binary(_name, _fn)
for _name, _fn in {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}.items():
    _comparison(_name, _fn)


def _itself(self: SizeInt, *_: Any) -> SizeInt:
    return self


def _divmod(self: Any, other: Any) -> tuple[Any, Any]:
    return self // other, self % other


for _name in ("ceil", "floor", "trunc", "pos", "round"):
    setattr(SizeInt, f"__{_name}__", _itself)
for _cls in (SizeInt, SizeFloat):
    _cls.__divmod__ = _divmod  # type: ignore[method-assign]
_unary("neg", operator.neg, SizeInt, SizeFloat)
_unary("abs", abs, SizeInt, SizeFloat)
_unary("ceil", math.ceil, SizeFloat)
_unary("floor", math.floor, SizeFloat)
_unary("trunc", math.trunc, SizeFloat)
_unary("round", round, SizeFloat)
