"""Norms of the weights that make a unit and of those that read it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from fxprune.criteria.binding import Scorer
from fxprune.errors import AnalysisError
from fxprune.groups import Group, Member

_BLOCK = 1 << 15  # entries
WEIGHTS = frozenset({"producer", "consumer"})

Dims: TypeAlias = tuple[int, ...]


@final
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
        return self._scores(group, parameters, PowerSums(self.order, (group,)))

    def bind(self, analysis: Any) -> Scorer:
        """The criterion for the groups of this analysis: it reads each weight once for all."""
        sums = PowerSums(self.order, analysis.groups)
        return lambda group, parameters: self._scores(group, parameters, sums)

    def _scores(self, group: Group, parameters: Mapping[str, Tensor], sums: PowerSums) -> Tensor:
        total: Tensor | None = None
        for name, members in groupby(sorted(weights(group), key=_parameter), key=_parameter):
            if name not in parameters:
                raise AnalysisError(
                    f"group {group.name!r} reads parameter {name!r}, which the given parameters "
                    f"({len(parameters)} of them) do not contain."
                )
            if not parameters[name].numel():
                continue
            part = self._part(group, list(members), parameters[name], sums)
            total = part if total is None else self._join(total, part.to(total.device))
        if total is None:
            raise AnalysisError(f"group {group.name!r} has no members: there is nothing to score.")
        return total if math.isinf(self.order) else total ** (1 / self.order)

    def _part(
        self, group: Group, members: Sequence[Member], parameter: Tensor, sums: PowerSums
    ) -> Tensor:
        """What one parameter adds; its entries that a unit owns through two members count once."""
        first, *more = members
        values = parameter.detach()
        if math.isinf(self.order):  # a maximum does not change when an entry is looked at twice
            magnitudes = _wide(values).abs()
            total = first.entries(magnitudes, group).amax(-1)
            for member in more:
                total = self._join(total, member.entries(magnitudes, group).amax(-1))
            return total
        first.check_shape(tuple(parameter.shape), group)
        total = first.collect(sums(parameter, first), group)
        for index, member in enumerate(more, start=1):
            fresh = not_yet_counted(group, members[:index], member, parameter.dim())
            powers = _wide(values).abs() ** self.order
            total = total + member.reduce(powers * fresh.to(powers.device), group)
        return total

    def _join(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.maximum(left, right) if math.isinf(self.order) else left + right


class PowerSums:
    """Sums of |w|^p over all dimensions but those of a member, in float64.

    Reading the weights is most of the work: a weight is read once for all members of `groups` that
    it has. It is read again if it is another tensor, or was written to.
    """

    def __init__(self, order: float, groups: Iterable[Group]) -> None:
        self._order = order
        self._dims: dict[str, set[Dims]] = {}
        for group in groups:
            for member in weights(group):
                self._dims.setdefault(member.parameter, set()).add(member.dims)
        self._known: dict[str, tuple[Tensor | None, int, Mapping[Dims, Tensor]]] = {}

    def __call__(self, parameter: Tensor, member: Member) -> Tensor:
        """The sums for a member: its `.dims` in ascending order."""
        name, version = member.parameter, 0 if parameter.is_inference() else parameter._version
        known, at, sums = self._known.get(name, (None, 0, {}))
        if known is not parameter or at != version or member.dims not in sums:
            sums = self._sums(parameter.detach(), self._dims.get(name, set()) | {member.dims})
            self._known[name] = parameter, version, sums
        return sums[member.dims]

    def _sums(self, parameter: Tensor, wanted: Set[Dims]) -> Mapping[Dims, Tensor]:
        """In blocks that fit into a cache: for large weights that is twenty times faster.

        The results are allocated before them: pieces that stay between the blocks would scatter the
        memory.
        """
        size, shape = len(parameter), parameter.shape
        rows = max(1, _BLOCK * size // max(parameter.numel(), 1))
        if rows >= size:
            totals = _by_rows(self._powers(parameter), wanted)
        else:
            kept = {
                dims: [shape[d] for d in sorted(dims)] if 0 in dims else shape[1:]
                for dims in wanted
            }
            totals = {d: parameter.new_zeros(n, dtype=torch.float64) for d, n in kept.items()}
            for start in range(0, size, rows):
                here = slice(start, start + rows)
                for dims, part in _by_rows(self._powers(parameter[here]), wanted).items():
                    if 0 in dims:
                        totals[dims][here] = part
                    else:
                        totals[dims] += part
        return {
            dims: total if 0 in dims else _over_all_but(total, [dim - 1 for dim in dims])
            for dims, total in totals.items()
        }

    def _powers(self, block: Tensor) -> Tensor:
        wide = _wide(block)
        if self._order == 2:
            return wide.abs().square_() if wide.is_complex() else wide.square_()
        return wide.abs().pow_(self._order)


def _by_rows(powers: Tensor, wanted: Iterable[Dims]) -> dict[Dims, Tensor]:
    """Sums over all other dimensions; where rows do not matter, first over these alone."""
    return {d: _over_all_but(powers, d) if 0 in d else powers.sum(0) for d in wanted}


def _over_all_but(powers: Tensor, dims: Sequence[int]) -> Tensor:
    others = [dim for dim in range(powers.dim()) if dim not in dims]
    return powers.sum(others) if others else powers


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
