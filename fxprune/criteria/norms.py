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
            part = self._part(group, list(members), _magnitudes(parameters[name]))
            total = part if total is None else self._join(total, part.to(total.device))
        if total is None:
            raise AnalysisError(f"group {group.name!r} has no members: there is nothing to score.")
        return total if math.isinf(self.order) else total ** (1 / self.order)

    def _part(self, group: Group, members: Sequence[Member], magnitudes: Tensor) -> Tensor:
        """What one parameter adds; its entries that a unit owns through two members count once."""
        if math.isinf(self.order):  # a maximum does not change when an entry is looked at twice
            total = members[0].entries(magnitudes, group).amax(-1)
            for member in members[1:]:
                total = self._join(total, member.entries(magnitudes, group).amax(-1))
            return total
        powers = magnitudes**self.order
        total = members[0].reduce(powers, group)
        for index, member in enumerate(members[1:], start=1):
            fresh = _not_yet_counted(group, members[:index], member, powers.dim())
            total = total + member.reduce(powers * fresh.to(powers.device), group)
        return total

    def _join(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.maximum(left, right) if math.isinf(self.order) else left + right


def weights(group: Group) -> tuple[Member, ...]:
    """The members that a norm reads: producers and consumers, or all of them if there are none."""
    return tuple(m for m in group.members if m.role in WEIGHTS) or group.members


def _parameter(member: Member) -> str:
    return member.parameter


def _magnitudes(parameter: Tensor) -> Tensor:
    wide = torch.complex128 if parameter.is_complex() else torch.float64
    return parameter.detach().to(wide).abs()


def _not_yet_counted(group: Group, earlier: Sequence[Member], member: Member, rank: int) -> Tensor:
    """Where `member` gives a unit an entry that no earlier member gave it: bool, broadcasts."""
    numbers = torch.arange(group.slots).reshape(group.shape)
    own = member.spread(numbers, group, fill=-1, rank=rank)
    fresh = torch.ones((1,) * rank, dtype=torch.bool)
    for other in earlier:
        fresh = fresh & (own != other.spread(numbers, group, fill=-1, rank=rank))
    return fresh
