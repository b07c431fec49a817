"""What a plan leaves of a tensor, read off its axes entry by entry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fxprune.analysis import Analysis
from fxprune.axes import Atom, Axis, Concat, Product, find
from fxprune.plans import PruningPlan


def written_out(axis: Axis) -> list[dict[Atom, int]]:
    """For each index of an axis, the units that it needs."""
    axis = find(axis)
    if isinstance(axis, Concat):
        return [row for segment in axis.segments for row in written_out(segment)]
    if isinstance(axis, Product):
        tables = [written_out(factor) for factor in axis.factors]
        rows: list[dict[Atom, int]] = []
        for combination in itertools.product(*tables):
            merged: dict[Atom, int] = {}
            for part in combination:
                for atom, unit in part.items():
                    if merged.setdefault(atom, unit) != unit:
                        raise AssertionError(f"{axis!r} holds a unit twice")
            rows.append(merged)
        return rows
    assert isinstance(axis, Atom)
    return [{axis: unit} for unit in range(axis.size)]


class Survivors:
    """Which entries of a tensor stay under a plan and where they go, entry by entry."""

    def __init__(self, analysis: Analysis, plan: PruningPlan) -> None:
        self.grouped = analysis.grouped
        self.kept = {
            n: plan.kept_mask(n).reshape(plan.group(n).contexts, -1) for n in plan.kept_units
        }

    def cut(self, tensor: Tensor, layout: Sequence[Axis]) -> Tensor:
        """What stays of a tensor with these axes.

        Where the choice along a dimension depends on the index along another one, each index of
        that other one has its own.
        """
        tables = [written_out(axis) for axis in layout]
        placings = [_Placing(self, table) for table in tables]
        places: list[tuple[int, ...]] = []
        chosen: list[tuple[int, ...]] = []
        for position in itertools.product(*(range(axis.size) for axis in layout)):
            rows = [table[index] for table, index in zip(tables, position, strict=True)]
            units = {atom: unit for row in rows for atom, unit in row.items()}
            place = tuple(p.of(units)[i] for p, i in zip(placings, position, strict=True))
            if -1 not in place:
                places.append(place)
                chosen.append(position)
        if not places:
            return torch.empty(0, dtype=tensor.dtype)
        shape = [max(column) + 1 for column in zip(*places, strict=True)]
        assert len(set(places)) == len(places) == math.prod(shape), (
            f"{layout}: no rectangle is left"
        )
        result = torch.empty(shape, dtype=tensor.dtype)
        for place, position in zip(places, chosen, strict=True):
            result[place] = tensor[position]
        return result

    def context_of(self, atom: Atom) -> Atom | None:
        """The atom whose index decides which row of the plan applies."""
        return self.grouped.contexts.get(self.grouped.units.get(atom.key, ("", 0))[0])

    def stays(self, atom: Atom, unit: int, units: Mapping[Atom, int]) -> bool:
        """True if the plan keeps a unit, where the other units of the entry are these."""
        name, offset = self.grouped.units.get(atom.key, ("", 0))
        if name not in self.kept:
            return True
        context = self.grouped.contexts.get(name)
        row = 0 if context is None else units[context]
        return bool(self.kept[name][row, offset + unit])


class _Placing:
    """The new index of each index of a dimension (-1: removed), given the other dimensions."""

    def __init__(self, survivors: Survivors, table: list[dict[Atom, int]]) -> None:
        self.survivors, self.table = survivors, table
        found = [survivors.context_of(atom) for row in table for atom in row]
        self.contexts = list(dict.fromkeys(c for c in found if c is not None))
        self.known: dict[tuple[int, ...], list[int]] = {}

    def of(self, units: Mapping[Atom, int]) -> list[int]:
        key = tuple(units[context] for context in self.contexts)
        if key not in self.known:
            outside = dict(zip(self.contexts, key, strict=True))
            self.known[key] = self._number(outside)
        return self.known[key]

    def _number(self, outside: Mapping[Atom, int]) -> list[int]:
        places: list[int] = []
        count = 0
        for row in self.table:
            kept = all(self.survivors.stays(a, u, {**outside, **row}) for a, u in row.items())
            places.append(count if kept else -1)
            count += kept
        return places
