"""Axes written out index by index, and programs on them that remember what each step must preserve.

An index is the set of units that must all stay for it to stay. A program applies the algebra's
operations and notes, for each, what the operation means for single indices. Whatever units are then
removed, every note must hold: that is all that soundness says.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from fxprune.algebra import Algebra
from fxprune.axes import Atom, Axis, Concat, Product, find

Unit = tuple[int, int]
Index = frozenset[Unit]
Kept = list[bool]


def expand(axis: Axis) -> list[Index]:
    """The free units behind each index of an axis; frozen ones always stay and are left out."""
    axis = find(axis)
    if isinstance(axis, Atom):
        frozen = axis.reason is not None
        return [frozenset() if frozen else frozenset({(axis.key, i)}) for i in range(axis.size)]
    if isinstance(axis, Concat):
        return [index for segment in axis.segments for index in expand(segment)]
    assert isinstance(axis, Product)
    indices: list[Index] = [frozenset()]
    for factor in axis.factors:
        indices = [major | minor for major in indices for minor in expand(factor)]
    return indices


def outer(axes: Sequence[Kept]) -> Kept:
    """Which elements of a grid stay, flattened in row-major order."""
    return [all(row) for row in itertools.product(*axes)]


@dataclass
class Program:
    """Axes that a random program made, and what must hold between them for every choice of units.

    A note is a pair of functions of `kept`, which says what stays of an axis, and both must agree.
    """

    algebra: Algebra = field(default_factory=Algebra)
    axes: list[Axis] = field(default_factory=list)
    atoms: list[Axis] = field(default_factory=list)
    notes: list[tuple[str, Callable[[Removal], Kept], Callable[[Removal], Kept]]] = field(
        default_factory=list
    )

    def note(
        self, what: str, left: Callable[[Removal], Kept], right: Callable[[Removal], Kept]
    ) -> None:
        self.notes.append((what, left, right))

    def atom(self, size: int, reason: str | None = None) -> Axis:
        axis = self.algebra.atom(size, reason)
        self.axes.append(axis)
        self.atoms.append(axis)
        return axis

    def product(self, factors: Sequence[Axis]) -> Axis:
        axis = self.algebra.product(factors)
        self.note("product", lambda k: k(axis), lambda k: outer([k(f) for f in factors]))
        self.axes.append(axis)
        return axis

    def concat(self, segments: Sequence[Axis]) -> Axis:
        axis = self.algebra.concat(segments)
        self.note("concat", lambda k: k(axis), lambda k: [b for s in segments for b in k(s)])
        self.axes.append(axis)
        return axis

    def segment(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        parts = self.algebra.segment(axis, sizes)
        assert [part.size for part in parts] == list(sizes)
        self.note("segment", lambda k: k(axis), lambda k: [b for p in parts for b in k(p)])
        self.axes += parts
        return parts

    def gather(self, axis: Axis, indices: Sequence[int]) -> Axis:
        result = self.algebra.gather(axis, indices)
        self.note("gather", lambda k: k(result), lambda k: [k(axis)[i] for i in indices])
        self.axes.append(result)
        return result

    def factor(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        factors = self.algebra.factor(axis, sizes)
        assert [f.size for f in factors] == list(sizes)
        self.note("factor", lambda k: k(axis), lambda k: outer([k(f) for f in factors]))
        self.axes += factors
        return factors

    def view(self, axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
        result = self.algebra.view(axes, sizes)
        assert [axis.size for axis in result] == list(sizes)
        self.note(
            "view",
            lambda k: outer([k(a) for a in axes]),
            lambda k: outer([k(a) for a in result]),
        )
        self.axes += result
        return result

    def unify(self, left: Axis, right: Axis) -> Axis:
        result = self.algebra.unify(left, right)
        self.note("unify", lambda k: k(left), lambda k: k(right))
        self.note("result of unify", lambda k: k(left), lambda k: k(result))
        return result

    def freeze(self, axis: Axis) -> None:
        self.algebra.freeze(axis, "frozen by the program")
        self.note("freeze", lambda k: k(axis), lambda k: [True] * axis.size)

    def removals(self, seed: int, count: int) -> Iterator[Removal]:
        """Random choices of the units that stay, of every density."""
        rng = random.Random(seed)
        units = sorted({unit for axis in self.axes for index in expand(axis) for unit in index})
        for _ in range(count):
            density = rng.random()
            yield Removal({unit for unit in units if rng.random() < density})

    def check(self, seed: int = 0, count: int = 12) -> None:
        """Every note holds for random removals of units, all of them at once included."""
        for removal in itertools.chain([Removal(set())], self.removals(seed, count)):
            for what, left, right in self.notes:
                assert left(removal) == right(removal), what


class Removal:
    """What stays of an axis, index by index, if only some units stay."""

    def __init__(self, kept: set[Unit]) -> None:
        self.kept = kept
        self._known: dict[int, tuple[Axis, Kept]] = {}

    def __call__(self, axis: Axis) -> Kept:
        if id(axis) not in self._known:
            self._known[id(axis)] = (axis, [index <= self.kept for index in expand(axis)])
        return self._known[id(axis)][1]


class Classes:
    """Union-find over single indices of atoms: the exact coupling where there are no products."""

    def __init__(self) -> None:
        self._parent: dict[Unit, Unit] = {}

    def find(self, unit: Unit) -> Unit:
        while self._parent.setdefault(unit, unit) != unit:
            unit = self._parent[unit]
        return unit

    def union(self, left: Unit, right: Unit) -> None:
        self._parent[self.find(left)] = self.find(right)
