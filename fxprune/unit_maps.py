"""Which unit of a group each index of an axis belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fxprune.axes import Atom, Axis, Product, factors_of, find, leaves, segments_of

Maps = Sequence[Tensor]
"""int64 [n] each: the first unit of each index, the second and so on; -1 where there is none."""


class UnitMaps:
    """The unit maps of axes, each made once. Callers share them and must not write to them."""

    def __init__(self) -> None:
        self._ranges: dict[tuple[int, int], Tensor] = {}
        self._maps: dict[tuple[Axis, tuple[tuple[int, int], ...]], Maps] = {}
        self._places: dict[Axis, Mapping[int, list[tuple[int, Axis]]]] = {}

    def of(self, axis: Axis, offsets: Mapping[int, int]) -> Maps:
        """The maps of an axis for a group of atoms, at least one.

        offsets: the key of each atom of the group → the number of its first unit.
        """
        axis = find(axis)
        key = axis, tuple(offsets.items())
        if key not in self._maps:
            self._maps[key] = self._of(axis, offsets) or [torch.full((axis.size,), -1)]
        return self._maps[key]

    def _of(self, axis: Axis, offsets: Mapping[int, int]) -> Maps:
        if isinstance(axis, Atom):
            return [self._range(axis.size, offsets[axis.key])] if axis.key in offsets else []
        if isinstance(axis, Product):
            return self._of_product(axis, offsets)
        return self._of_segments(axis, offsets)

    def _range(self, size: int, start: int) -> Tensor:
        if (size, start) not in self._ranges:
            self._ranges[size, start] = torch.arange(start, start + size)
        return self._ranges[size, start]

    def _of_product(self, axis: Axis, offsets: Mapping[int, int]) -> Maps:
        major, minor = 1, axis.size
        found: list[Tensor] = []
        for factor in factors_of(axis):
            minor //= factor.size
            for units in self._of(factor, offsets):
                laid = units[None, :, None].expand(major, -1, minor).reshape(-1)
                found = _with_further(found, laid)
            major *= factor.size
        return found

    def _of_segments(self, axis: Axis, offsets: Mapping[int, int]) -> Maps:
        found: list[Tensor] = []
        places = self._places_in(axis)
        for start, segment in {place for key in offsets for place in places.get(key, ())}:
            for level, units in enumerate(self._of(segment, offsets)):
                if level == len(found):
                    found.append(torch.full((axis.size,), -1))
                found[level][start : start + segment.size] = units
        return found

    def _places_in(self, axis: Axis) -> Mapping[int, list[tuple[int, Axis]]]:
        """The key of each atom in a concatenation → the segments with it and where they start."""
        if axis not in self._places:
            self._places[axis] = _segments_by_atom(segments_of(axis))
        return self._places[axis]


def _segments_by_atom(segments: Iterable[Axis]) -> dict[int, list[tuple[int, Axis]]]:
    places: dict[int, list[tuple[int, Axis]]] = {}
    start = 0
    for segment in segments:
        for key in {atom.key for atom in leaves(segment)}:
            places.setdefault(key, []).append((start, segment))
        start += segment.size
    return places


def _with_further(maps: Sequence[Tensor], units: Tensor) -> list[Tensor]:
    """`maps`, and for each index its further unit in the first map where it has none yet."""
    result: list[Tensor] = []
    for known in maps:
        free = known < 0
        result.append(torch.where(free, units, known))
        units = torch.where(free, -1, units)
    if bool((units >= 0).any()):
        result.append(units)
    return result
