"""Norms of the weights that make a unit and of those that read it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from fxprune.errors import AnalysisError
from fxprune.groups import Group, Member

_BLOCK = 1 << 17  # entries
WEIGHTS = frozenset({"producer", "consumer"})


@dataclass(frozen=True)
class Norm:
    """The p-norm of a unit's producer and consumer weights: (sum |w|^p)^(1/p), max |w| for p = inf.

    Biases and norms do not count, except in a group that has nothing else (a per-channel scale on
    its own): there all members count. An entry that belongs to a unit twice, as W[k, k] does in a
    weight that both makes and reads its group, counts once. Scores are float64.
    """

    order: float

    def __post_init__(self) -> None:
        if not self.order > 0:
            raise ValueError(f"the order of a norm must be positive, not {self.order}")

    def __call__(self, group: Group, parameters: Mapping[str, Tensor]) -> Tensor:
        """Scores of the group's shape; raises AnalysisError for parameters of another graph."""
        total: Tensor | None = None
        for name, members in groupby(sorted(weights(group), key=_parameter), key=_parameter):
            if name not in parameters:
                raise AnalysisError(
                    f"group {group.name!r} reads parameter {name!r}, which the given parameters "
                    f"({len(parameters)} of them) do not contain."
                )
            part = self._part(group, list(members), parameters[name].detach())
            total = part if total is None else self._join(total, part.to(total.device))
        if total is None:
            raise AnalysisError(f"group {group.name!r} has no members: there is nothing to score.")
        return total if math.isinf(self.order) else total ** (1 / self.order)

    def _part(self, group: Group, members: Sequence[Member], parameter: Tensor) -> Tensor:
        """What one parameter adds; its entries that a unit owns through two members count once."""
        first, *more = members
        if math.isinf(self.order):  # a maximum does not change when an entry is looked at twice
            magnitudes = _wide(parameter).abs()
            total = first.entries(magnitudes, group).amax(-1)
            for member in more:
                total = self._join(total, member.entries(magnitudes, group).amax(-1))
            return total
        first.check_shape(tuple(parameter.shape), group)
        total = first.collect(self._power_sums(parameter, first.dims), group)
        for index, member in enumerate(more, start=1):
            fresh = not_yet_counted(group, members[:index], member, parameter.dim())
            powers = _wide(parameter).abs() ** self.order
            total = total + member.reduce(powers * fresh.to(powers.device), group)
        return total

    def _power_sums(self, parameter: Tensor, dims: Sequence[int]) -> Tensor:
        """Sum of |w|^p over all dimensions but `dims`, in float64.

        In blocks that fit into a cache: for large weights that is twenty times faster. The result
        is allocated before them: pieces that stay between the blocks would scatter the memory.
        """
        others = [dim for dim in range(parameter.dim()) if dim not in dims]
        rows = max(1, _BLOCK * len(parameter) // max(parameter.numel(), 1))
        leading = 0 in dims  # else it is summed over first, and what else is in the end
        if leading and rows >= len(parameter):
            return self._powers(parameter).sum(others) if others else self._powers(parameter)
        kept = [parameter.shape[dim] for dim in sorted(dims)] if leading else parameter.shape[1:]
        total = torch.zeros(kept, dtype=torch.float64, device=parameter.device)
        for start in range(0, len(parameter), rows):
            powers = self._powers(parameter[start : start + rows])
            if leading:
                total[start : start + rows] = powers.sum(others) if others else powers
            else:
                total += powers.sum(0)
        rest = [dim - 1 for dim in others if dim]
        return total.sum(rest) if rest and not leading else total

    def _powers(self, block: Tensor) -> Tensor:
        wide = _wide(block)
        if self.order == 2:
            return wide.abs().square_() if wide.is_complex() else wide.square_()
        return wide.abs().pow_(self.order)

    def _join(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.maximum(left, right) if math.isinf(self.order) else left + right


def weights(group: Group) -> tuple[Member, ...]:
    """The members that a norm reads: producers and consumers, or all of them if there are none."""
    return tuple(m for m in group.members if m.role in WEIGHTS) or group.members


def _parameter(member: Member) -> str:
    return member.parameter


def _wide(tensor: Tensor) -> Tensor:
    """In double precision; a copy, even if it is already."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64, copy=True)


def not_yet_counted(group: Group, earlier: Sequence[Member], member: Member, rank: int) -> Tensor:
    """Where `member` gives a unit an entry that no earlier member gave it: bool, broadcasts."""
    numbers = torch.arange(group.slots).reshape(group.shape)
    own = member.spread(numbers, group, fill=-1, rank=rank)
    fresh = torch.ones((1,) * rank, dtype=torch.bool)
    for other in earlier:
        fresh = fresh & (own != other.spread(numbers, group, fill=-1, rank=rank))
    return fresh
