"""What a plan leaves of an axis: its new size, and which of its indices stay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from fxprune.analysis import Analysis
from fxprune.axes import Atom, Axis, Concat, Product, factors_of, find, leaves, segments_of
from fxprune.errors import RewriteError
from fxprune.grouping import make_members
from fxprune.plans import PruningPlan
from fxprune.slicing import Membership, Slicer
from fxprune.unit_maps import UnitMaps


class Selection:
    """Answers questions about axes after a plan, derived from the analysis and the plan."""

    def __init__(self, analysis: Analysis, plan: PruningPlan) -> None:
        self.analysis = analysis
        self.plan = plan
        self._maps = UnitMaps()
        self._widths: dict[int, int] = {}
        self.slicer = Slicer(plan)

    @cached_property
    def _kept(self) -> dict[str, Tensor]:
        """Per pruned group, which units stay: bool [contexts, size]."""
        groups = map(self.plan.group, self.plan.kept_units)
        return {g.name: self.slicer.kept_mask(g).reshape(g.contexts, -1) for g in groups}

    def width(self, axis: Axis) -> int:
        """The size of an axis after pruning."""
        axis = find(axis)
        if isinstance(axis, Product):
            size = 1
            for factor in factors_of(axis):
                size *= self.width(factor)
            return size
        if isinstance(axis, Concat):
            return sum(self.width(segment) for segment in segments_of(axis))
        assert isinstance(axis, Atom)
        if axis.key not in self._widths:
            name, offset = self.analysis.grouped.units.get(axis.key, ("", 0))
            kept = self._kept.get(name)
            stay = None if kept is None else kept[0, offset : offset + axis.size]
            self._widths[axis.key] = axis.size if stay is None else int(stay.sum())
        return self._widths[axis.key]

    def ratio(self, axis: Axis, *factors: Axis) -> int:
        """The size of an axis over those of its factors, after pruning."""
        return self.width(axis) // math.prod(self.width(factor) for factor in factors)

    def shape(self, axes: Sequence[Axis]) -> tuple[int, ...]:
        """The shape of a tensor after pruning."""
        return tuple(self.width(axis) for axis in axes)

    def changed(self, axis: Axis) -> bool:
        """True if the axis loses indices."""
        return self.width(axis) != axis.size

    def width_before(self, axis: Axis, index: int) -> int:
        """How many of the first `index` indices of an axis stay."""
        axis = find(axis)
        if index in (0, axis.size):
            return self.width(axis) if index else 0
        if isinstance(axis, Product):  # f*rest: whole rows, then the beginning of one more
            major, *minor = factors_of(axis)
            rest = Product(minor)
            rows, within = divmod(index, rest.size)
            whole = self.width_before(major, rows)
            started = self.width_before(major, rows + 1) - whole if within else 0
            return whole * self.width(rest) + started * self.width_before(rest, within)
        if isinstance(axis, Concat):
            total = 0
            for segment in segments_of(axis):
                total += self.width_before(segment, min(index, segment.size))
                index -= min(index, segment.size)
            return total
        return int(self.mask(axis)[:index].sum())

    def mask(self, axis: Axis) -> Tensor:
        """Which indices of an axis stay: bool [n]. RewriteError if that depends on another axis."""
        keep = torch.ones(axis.size, dtype=torch.bool)
        for name, offsets in self._pruned_in(axis).items():
            chosen = self.analysis.grouped.contexts.get(name)
            for units in self._maps.of(axis, offsets):
                own = units >= 0
                context = torch.zeros_like(units)
                if chosen is not None:
                    context = self._maps.of(axis, {chosen.key: 0})[0]
                    if bool((context[own] < 0).any()):
                        raise RewriteError(
                            f"the kept indices of {name!r} depend on a context that lies in "
                            f"another dimension than {axis!r}, and an op takes this dimension "
                            "apart by index."
                        )
                keep[own] &= self._kept[name][context[own], units[own]]
        return keep

    def _pruned_in(self, axis: Axis) -> Mapping[str, dict[int, int]]:
        """The pruned groups in an axis: the key of each atom → the number of its first unit."""
        offsets: dict[str, dict[int, int]] = {}
        for atom in leaves(axis):
            name, offset = self.analysis.grouped.units.get(atom.key, ("", 0))
            if name in self._kept:
                offsets.setdefault(name, {})[atom.key] = offset
        return offsets

    def positions(self, layout: Sequence[Axis]) -> Tensor | None:
        """Where the entries that stay are in a tensor: int64 flat positions, in the shape after
        pruning.

        None if the tensor keeps all its entries. Indices that stay or go by data, as hidden units
        of each token's expert, count as staying: where they go they hold what masking leaves.
        """
        if not any(self.changed(axis) for axis in layout):
            return None
        shape = tuple(axis.size for axis in layout)
        flat = torch.arange(math.prod(shape)).reshape(shape)
        return self.slicer(flat, self._memberships(layout))

    def _memberships(self, layout: Sequence[Axis]) -> Iterator[Membership]:
        grouped = self.analysis.grouped
        for dim, axis in enumerate(layout):
            for name, numbers in self._pruned_in(axis).items():
                group, context = self.plan.group(name), grouped.contexts.get(name)
                if context in grouped.looked_up and not any(context in leaves(a) for a in layout):
                    continue  # data says which entries stay
                for member in make_members(
                    self._maps, "tensor", layout, dim, "producer", numbers, context
                ):
                    yield group, member
