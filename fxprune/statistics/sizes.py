"""A graph's reads at the sizes of a batch, found once per shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten

from fxprune.analysis import Analysis
from fxprune.grouping import Grouped
from fxprune.propagate import Propagation, propagate
from fxprune.resizing import carried_over
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
            names = {group.name for group in self.analysis.groups}
            grouped = carried_over(self.analysis, propagation, names)
            self._known[key] = Sized(propagation, grouped, samples, self.batch_dim)
        return self._known[key]


def _signature(value: Any) -> Any:
    leaves, spec = tree_flatten(value)
    shapes = tuple(
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in leaves
    )
    return shapes, str(spec)
