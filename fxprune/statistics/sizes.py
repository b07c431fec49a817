"""A graph's reads at the sizes of a batch, found once per shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten

from fxprune.analysis import Analysis
from fxprune.axes import Atom, Axis, factors_of, find, segments_of
from fxprune.errors import AnalysisError
from fxprune.grouping import Grouped
from fxprune.propagate import Propagation, propagate
from fxprune.statistics.reads import Read, find_operands, find_reads


@dataclass(frozen=True)
class Sized:
    """The axes of a graph at the sizes of one batch, and its reads."""

    propagation: Propagation
    grouped: Grouped
    samples: int
    batch_dim: int

    @cached_property
    def reads(self) -> tuple[Read, ...]:
        """The reads, each at the value of another node where it can be."""
        return find_reads(self.propagation, self.grouped, self.samples, self.batch_dim)

    @cached_property
    def operands(self) -> tuple[Read, ...]:
        """The reads, each at the operand of its op."""
        return find_operands(self.propagation, self.grouped, self.samples, self.batch_dim)

    def groups(self) -> frozenset[str]:
        """The names of the groups that are read anywhere."""
        return frozenset(part.group.name for read in self.reads for part in read.parts)

    def unsampled(self) -> frozenset[str]:
        """The names of the groups with a read that does not tell samples apart."""
        return frozenset(p.group.name for r in self.reads if not r.sampled for p in r.parts)


class SizedReads:
    """`Sized` per input shape."""

    def __init__(self, analysis: Analysis, batch_dim: int) -> None:
        self.analysis, self.batch_dim = analysis, batch_dim
        self._known: dict[Any, Sized] = {}

    def at(self, values: tuple[Any, ...], samples: int) -> Sized:
        """The reads at the sizes of these inputs. Raises AnalysisError if the graph cannot run."""
        key = samples, *map(_signature, values)
        if key not in self._known:
            propagation = propagate(self.analysis.traced, values)
            grouped = _carried_over(self.analysis, propagation)
            self._known[key] = Sized(propagation, grouped, samples, self.batch_dim)
        return self._known[key]


def _carried_over(analysis: Analysis, propagation: Propagation) -> Grouped:
    """The analysis's groups over the atoms of a propagation at other sizes.

    Parameters have the same sizes in both: their axes are compared part by part. Raises
    AnalysisError if what is coupled depends on the sizes.
    """
    grouped, atoms = analysis.grouped, dict[Atom, Atom]()
    for name, layout in analysis.propagation.layouts.items():
        for mine, theirs in zip(layout, propagation.layouts[name], strict=True):
            for old, new in _pairs(mine, theirs):
                atoms.setdefault(old, new)
    units: dict[int, tuple[str, int]] = {}
    for old, new in atoms.items():
        if old.key in grouped.units:
            place = grouped.units[old.key]
            if units.setdefault(new.key, place) != place:
                raise _differs(place[0])
    covered: Counter[str] = Counter()
    for old in atoms:
        if old.key in grouped.units:
            covered[grouped.units[old.key][0]] += old.size
    for group in grouped.free:
        if covered[group.name] != group.size:
            raise _differs(group.name)
    contexts = {name: atoms[atom] for name, atom in grouped.contexts.items() if atom in atoms}
    return Grouped(grouped.free, (), MappingProxyType(units), MappingProxyType(contexts))


def _pairs(mine: Axis, theirs: Axis) -> Iterator[tuple[Atom, Atom]]:
    """Corresponding atoms of two axes of one dimension."""
    mine, theirs = find(mine), find(theirs)
    if isinstance(mine, Atom) and isinstance(theirs, Atom):
        yield mine, theirs
        return
    for parts in (factors_of, segments_of):
        ours, other = parts(mine), parts(theirs)
        if len(ours) > 1 and [a.size for a in ours] == [a.size for a in other]:
            for one, two in zip(ours, other, strict=True):
                yield from _pairs(one, two)
            return


def _differs(name: str) -> AnalysisError:
    return AnalysisError(
        f"on a batch with inputs of other sizes than the example's, group {name!r} is coupled "
        "differently. Trace the model with an example like the data."
    )


def _signature(value: Any) -> Any:
    leaves, spec = tree_flatten(value)
    shapes = tuple(
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in leaves
    )
    return shapes, str(spec)
