"""Which single units must stay so that no tensor loses a dimension whole.

Each group keeps a unit. Where units are alone, as those of a shuffle, a slice can have some units
of one group or of several, and lose them all while the groups keep others: what convolutions,
maxima and shapes with -1 make of nothing is not defined.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set

from fxprune.axes import Atom, Axis, Concat, Product, factors_of, find, leaves, segments_of
from fxprune.propagate import Propagation


def last_units(propagation: Propagation, families: Sequence[Collection[Atom]]) -> frozenset[Atom]:
    """Atoms of `families` that keep every axis of every tensor from being empty, not many of them.

    families  atoms of one unit each; of each family at least one stays
    """
    return _Pins(families).found(_axes(propagation)) if families else frozenset()


def _axes(propagation: Propagation) -> Iterable[Axis]:
    """All axes of all tensors but the inputs, each once, in the order in which they occur."""
    made = (layout for record in propagation.records for layout in record.effect.outputs)
    layouts = itertools.chain(propagation.layouts.values(), made)
    return dict.fromkeys(find(axis) for layout in layouts for axis in layout)


class _Pins:
    """The units that stay, axis by axis.

    family  each atom's, by number
    free    the atoms that may still go
    """

    def __init__(self, families: Sequence[Collection[Atom]]) -> None:
        self.sizes = [len(family) for family in families]
        self.family: Mapping[Atom, int] = {a: n for n, atoms in enumerate(families) for a in atoms}
        self.free = set(self.family)

    def found(self, axes: Iterable[Axis]) -> frozenset[Atom]:
        """What must stay for these axes; small ones first, which leave no choice."""
        parts = [(axis, frozenset(leaves(axis))) for axis in axes if axis.size]
        for axis, atoms in sorted(parts, key=lambda part: len(part[1])):
            if not self.free.isdisjoint(atoms):
                self.free -= self._needed(axis)
        return frozenset(self.family.keys() - self.free)

    def _needed(self, axis: Axis) -> Set[Atom]:
        """Of the units that may go, those that must stay for the axis to keep an index."""
        if isinstance(axis, Product):  # it is empty where a factor is
            return frozenset[Atom]().union(*map(self._needed, factors_of(axis)))
        if isinstance(axis, Concat):  # where all segments are
            parts = [self._needed(segment) for segment in segments_of(axis)]
            if self._has_one_of_each({frozenset(part) for part in parts}):
                return frozenset()
            return min(parts, key=len)
        return self.free & set(leaves(axis))

    def _has_one_of_each(self, parts: Set[frozenset[Atom]]) -> bool:
        """Whether a part is there whichever unit each family keeps: if all combinations of one unit
        of each of some families are among the parts.
        """
        combinations: Counter[frozenset[int]] = Counter()
        for atoms in parts:
            numbers = frozenset(self.family[atom] for atom in atoms)
            if len(numbers) == len(atoms):
                combinations[numbers] += 1
        return any(
            count == math.prod(self.sizes[number] for number in numbers)
            for numbers, count in combinations.items()
        )
