"""How many multiply-accumulates an executed op does: a product of axis sizes.

Matrix products and convolutions count, as in torch's FlopCounterMode (which counts two flops for
each), and what recurrent layers are made of, which FlopCounterMode does not see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from fxprune.axes import Axis
from fxprune.propagate import Record
from fxprune.rules.base import Kind

Factors: TypeAlias = tuple[Axis, ...]
"""Axes whose sizes are multiplied."""


def products(record: Record) -> Iterable[Factors]:
    """The products of axis sizes whose sum is the number of MACs of an op; none for most ops."""
    formula = _BY_OP.get(record.call.name) or _BY_KIND.get(record.effect.kind)
    return () if formula is None else formula(record)


def _contraction(record: Record) -> Iterable[Factors]:
    """One for every element of the result and every index that is summed over."""
    yield (*record.effect.outputs[0], *record.effect.over)


def _convolution(record: Record) -> Iterable[Factors]:
    """Every weight meets every position: of the input, if the convolution is transposed."""
    (_, x), (_, weight), *_ = record.inputs
    spatial = len(weight) - 2
    places = x if record.call["transposed"] else record.effect.outputs[0]
    yield (*x[: len(x) - spatial - 1], *places[len(places) - spatial :], *weight)


def _recurrent(record: Record) -> Iterable[Factors]:
    """Every weight of every layer and direction meets every time step of every sample."""
    (_, x), *tensors = record.inputs[: len(record.call["tensors"])]
    for _, weight in tensors:
        if len(weight) == 2:  # no bias
            yield (*x[:-1], *weight)


Formula: TypeAlias = Callable[[Record], Iterable[Factors]]

_BY_OP: Mapping[str, Formula] = MappingProxyType({"aten::convolution": _convolution})
_BY_KIND: Mapping[Kind, Formula] = MappingProxyType(
    {Kind.CONTRACT: _contraction, Kind.RECURRENT: _recurrent}
)
