"""What share of a network the groups reach, and why the rest is out of their reach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor

from fxprune.groups import Group

_EXAMPLES = 2


@dataclass(frozen=True)
class FrozenReason:
    """One reason for which dimensions may not be pruned.

    reason      the reason with the operator that gave it, such as "kernel taps (aten::convolution)"
    dimensions  the frozen dimensions, as "name:dim"
    lost        entries of the parameters that have such a dimension and that no group reaches
    """

    reason: str
    dimensions: tuple[str, ...]
    lost: int


@dataclass(frozen=True)
class Coverage:
    """How much of a network's parameters some prunable group reaches.

    An entry is reached if removing some unit of some group removes it. *Weights* are the parameters
    of two or more dimensions: matrices, kernels, embedding tables.

    reached, total   entries, for each parameter by name
    weights          the names of those that are weights
    frozen           the reasons, those that cost most first
    """

    reached: Mapping[str, int]
    total: Mapping[str, int]
    weights: frozenset[str]
    frozen: tuple[FrozenReason, ...]

    @property
    def share(self) -> float:
        """Reached entries over all entries, in [0, 1]; 1 for a network without parameters."""
        return self._share(list(self.total))

    @property
    def weight_share(self) -> float:
        """The same over weights only."""
        return self._share([name for name in self.total if name in self.weights])

    @property
    def unreached(self) -> tuple[str, ...]:
        """The weights of which no entry is reached."""
        return tuple(name for name in self.total if name in self.weights and not self.reached[name])

    def _share(self, names: Sequence[str]) -> float:
        total = sum(self.total[name] for name in names)
        return sum(self.reached[name] for name in names) / total if total else 1.0

    def __str__(self) -> str:
        lines = [
            f"{self.share:.1%} of {sum(self.total.values()):,} parameters are in a prunable group, "
            f"{self.weight_share:.1%} of the weights."
        ]
        rows = [
            (row.reason, len(row.dimensions), f"{row.lost:,}", _some(row.dimensions))
            for row in self.frozen
        ]
        if rows:
            columns = ("frozen because", "dimensions", "out of reach", "such as")
            align = ("left", "right", "right", "left")
            lines.append(tabulate(rows, columns, "simple", colalign=align))
        return "\n".join(lines)


def _some(dimensions: Sequence[str]) -> str:
    more = ", ..." if len(dimensions) > _EXAMPLES else ""
    return ", ".join(dimensions[:_EXAMPLES]) + more


def coverage_of(
    parameters: Mapping[str, Tensor], groups: Sequence[Group], frozen: Sequence[Group]
) -> Coverage:
    """The coverage of `parameters` (by name) by prunable `groups`; `frozen` has the reasons."""
    missed = _missed(parameters, groups)
    dimensions: dict[str, dict[str, None]] = {}
    lost: dict[str, set[str]] = {}
    for group in frozen:
        for member in group.members:
            reason = group.reason or ""
            if member.parameter in missed:
                dimensions.setdefault(reason, {})[f"{member.parameter}:{member.dim}"] = None
                lost.setdefault(reason, set()).add(member.parameter)
    rows = [
        FrozenReason(reason, tuple(found), sum(missed[name] for name in lost[reason]))
        for reason, found in dimensions.items()
    ]
    return Coverage(
        reached={name: p.numel() - missed[name] for name, p in parameters.items()},
        total={name: p.numel() for name, p in parameters.items()},
        weights=frozenset(name for name, p in parameters.items() if p.dim() > 1),
        frozen=tuple(sorted(rows, key=lambda row: (-row.lost, -len(row.dimensions)))),
    )


def _missed(parameters: Mapping[str, Tensor], groups: Sequence[Group]) -> dict[str, int]:
    """Per parameter, the entries none of whose indices belongs to a unit."""
    outside = {
        name: [torch.ones(size, dtype=torch.bool) for size in parameter.shape]
        for name, parameter in parameters.items()
    }
    for member in (member for group in groups for member in group.members):
        if member.parameter in outside:
            outside[member.parameter][member.dim] &= member.unit < 0
    return {name: math.prod(int(flags.sum()) for flags in dims) for name, dims in outside.items()}
