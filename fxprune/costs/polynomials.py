"""Sizes of axes as polynomials in widths.

A *width* is how many units of a group stay. An atom's size is a width or a constant, a product's
size is a product and a concatenation's a sum; so every size is a polynomial, and removing a unit
changes only the monomials that contain its group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fxprune.axes import Atom, Axis, Concat, Product, factors_of, find, leaves, segments_of
from fxprune.grouping import Grouped
from fxprune.plans import PruningPlan

Monomial: TypeAlias = tuple[int, ...]
"""Numbers of widths in ascending order, repetitions included; () is the constant."""

Polynomial: TypeAlias = Mapping[Monomial, int]
"""Monomial → coefficient. Empty is 0."""

ONE: Polynomial = {(): 1}


def multiplied(left: Polynomial, right: Polynomial) -> Polynomial:
    """The product of two polynomials."""
    result: dict[Monomial, int] = {}
    for first, a in left.items():
        for second, b in right.items():
            both = tuple(sorted(first + second)) if first and second else first or second
            result[both] = result.get(both, 0) + a * b
    return result


def added(parts: Iterable[Polynomial], factor: int = 1) -> Polynomial:
    """The sum of polynomials, times a number."""
    result: dict[Monomial, int] = {}
    for part in parts:
        for monomial, coefficient in part.items():
            result[monomial] = result.get(monomial, 0) + factor * coefficient
    return result


@dataclass(frozen=True)
class Width:
    """How many of a group's units stay; of some of them only, if `units` says which.

    Groups of single indices, as shuffles leave them, may have a part of their units in a tensor.
    """

    group: str
    units: frozenset[int] | None = None

    def has(self, unit: int) -> bool:
        """True if removing that unit makes it smaller."""
        return self.units is None or unit in self.units

    def after(self, plan: PruningPlan) -> int:
        """The width that a plan leaves."""
        kept = plan.kept_mask(self.group).reshape(-1, plan.group(self.group).size)[0]
        return int(kept.sum() if self.units is None else kept[list(self.units)].sum())


class Sizes:
    """Turns axes into polynomials, and numbers the widths that they contain.

    `widths` lists them by number: first those of all prunable groups, in their order.
    """

    def __init__(self, grouped: Grouped) -> None:
        self.widths = [Width(group.name) for group in grouped.free]
        self._sizes = {group.name: group.size for group in grouped.free}
        self._units = grouped.units
        self._numbers = {width: number for number, width in enumerate(self.widths)}
        self._known: dict[int, tuple[Axis, Polynomial]] = {}

    def product(self, axes: Iterable[Axis]) -> Polynomial:
        """The product of the sizes of axes."""
        result = ONE
        for axis in axes:
            result = multiplied(result, self.of(axis))
        return result

    def of(self, axis: Axis) -> Polynomial:
        """The size of an axis."""
        axis = find(axis)
        if id(axis) not in self._known:
            self._known[id(axis)] = axis, self._compute(axis)
        return self._known[id(axis)][1]

    def _compute(self, axis: Axis) -> Polynomial:
        if isinstance(axis, Product):
            return self.product(factors_of(axis))
        if isinstance(axis, Concat):
            whole: list[Axis] = []
            single: dict[str, dict[int, int]] = {}
            for segment in segments_of(axis):
                group, unit = self._place(segment)
                if segment.size == 1 and self._sizes.get(group, 1) > 1:
                    counts = single.setdefault(group, {})
                    counts[unit] = counts.get(unit, 0) + 1
                else:
                    whole.append(segment)
            parts = [self.of(segment) for segment in whole]
            return added([*parts, *(self._several(g, c) for g, c in single.items())])
        (atom,) = leaves(axis)
        group, unit = self._place(atom)
        if group not in self._sizes:
            return {(): atom.size} if atom.size else {}
        return self._several(group, dict.fromkeys(range(unit, unit + atom.size), 1))

    def _place(self, axis: Axis) -> tuple[str, int]:
        """The group of an atom and the number of its first unit there."""
        return self._units.get(axis.key, ("", 0)) if isinstance(axis, Atom) else ("", 0)

    def _several(self, group: str, counts: Mapping[int, int]) -> Polynomial:
        """The sum of a group's units, each counted that often."""
        by_count: dict[int, set[int]] = {}
        for unit, count in counts.items():
            by_count.setdefault(count, set()).add(unit)
        parts: dict[Monomial, int] = {}
        for count, units in by_count.items():
            every = len(units) == self._sizes[group]
            parts[(self._number(Width(group, None if every else frozenset(units))),)] = count
        return parts

    def _number(self, width: Width) -> int:
        if width not in self._numbers:
            self._numbers[width] = len(self.widths)
            self.widths.append(width)
        return self._numbers[width]


class Compiled:
    """A polynomial as arrays, for evaluation at many widths; exact in 64-bit integers."""

    def __init__(self, polynomial: Polynomial) -> None:
        degree = max((len(monomial) for monomial in polynomial), default=0)
        # Number 0 stands for the constant 1 that fills monomials of a lower degree up.
        rows = [[n + 1 for n in m] + [0] * (degree - len(m)) for m in polynomial]
        self._factors = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), degree)
        self._coefficients = torch.tensor(list(polynomial.values()), dtype=torch.int64)

    def at(self, widths: Sequence[int] | Tensor) -> int:
        """The value at widths, one for each number."""
        padded = torch.cat([torch.ones(1, dtype=torch.int64), torch.as_tensor(widths)])
        return int((self._coefficients * padded[self._factors].prod(1)).sum())
