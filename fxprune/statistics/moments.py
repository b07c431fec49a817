"""What the units of a group are at their reads: moments of activations, forward passes only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.groups import Group, Member
from fxprune.statistics import distributed
from fxprune.statistics.execution import scoring_copy
from fxprune.statistics.parts import Part
from fxprune.statistics.passes import Passes
from fxprune.statistics.reads import Read


@dataclass(frozen=True, eq=False)
class Activations:
    """One group's units at one read: moments over samples and positions.

    Each is a float64 table over the indices of what is read along `member.dims`, in ascending
    order: an index is a channel, a hidden feature, or one of the positions of a flattened channel.
    `member` says which unit each index belongs to.

    site      the node that reads
    mean      of h
    variance  of h, over the population: exactly 0 where h is constant
    absolute  the mean of |h|
    zeros     the fraction of exact zeros
    rank      the mean rank of the matrices that the last two dimensions form; None if it was not
              asked for, or if there are not two beside the samples and `member.dims`
    weight    what is multiplied with it, if that is the same for all inputs: the tensor, and which
              unit each of its indices belongs to
    """

    group: Group
    member: Member
    site: str
    mean: Tensor
    variance: Tensor
    absolute: Tensor
    zeros: Tensor
    rank: Tensor | None
    weight: tuple[Tensor, Member] | None

    @property
    def second(self) -> Tensor:
        """The mean of h²."""
        return self.variance + self.mean.square()

    def per_unit(self, table: Tensor) -> Tensor:
        """The mean of a table over what each unit owns: `group.shape`, 0 for units without any."""
        total = self.member.collect(table, self.group)
        owned = self.member.collect(torch.ones_like(table), self.group)
        return total / owned.clamp_min(1)

    def weighted(self, table: Tensor, power: float) -> Tensor | None:
        """Per unit, Σ |w|^power · t over its weights w, with the table's t for what each reads.

        Where weights and entries of the table do not stand one to one, t is the mean over the
        unit's. None without a weight. Shape `group.shape`.
        """
        if self.weight is None:
            return None
        tensor, member = self.weight
        powers = tensor.detach().abs().double() ** power
        if self.member.dims == (self.member.dim,) and torch.equal(self.member.unit, member.unit):
            shape = [1] * tensor.dim()
            shape[member.dim] = -1
            factors = table.reshape(shape)
        else:
            factors = member.spread(self.per_unit(table), self.group, 0.0, tensor.dim())
        return member.reduce(powers * factors, self.group)


def activations(
    passes: Passes, groups: Sequence[Group], ranks: bool
) -> Mapping[str, tuple[Activations, ...]]:
    """The moments of each group at each of its reads, in the order of the graph.

    Reads of tensors that depend on parameters only are left out. With `ranks` also the ranks of
    feature maps, which takes longer than the passes themselves.
    """
    running: dict[str, dict[int, _Running]] = {group.name: {} for group in groups}
    module = scoring_copy(passes.analysis.traced, trainable=False)
    for part in passes.parts("activations"):
        reads = [read for read in part.sized.reads if read.computed]
        numbers = {id(read): number for number, read in enumerate(reads)}

        def probe(
            read: Read, x: Tensor, weight: Tensor | None, numbers: Mapping[int, int] = numbers
        ) -> Tensor:
            for place, piece in enumerate(read.parts):
                known = running.get(piece.group.name)
                if known is not None:
                    key = _MOST_PARTS * numbers[id(read)] + place
                    if key not in known:
                        known[key] = _Running(read, piece, weight, ranks)
                    known[key].add(x.detach(), piece)
            return x

        with torch.no_grad():
            passes.run(module, part, reads, probe)
    return {
        name: tuple(known[key].finished() for key in sorted(known))
        for name, known in running.items()
    }


_MOST_PARTS = 1 << 10


class _Running:
    """Moments so far: count, mean and the sum of squared deviations, and means of functions."""

    def __init__(self, read: Read, part: Part, weight: Tensor | None, ranks: bool) -> None:
        self.part, self.site, self.ranks = part, read.site.name, ranks
        member = None if read.weight is None else read.weight.members.get(part.group.name)
        self.weight = None if weight is None or member is None else (weight.detach(), member)
        self.rows: list[Tensor] = []

    def add(self, x: Tensor, part: Part) -> None:
        """Put the moments of one part of the data beside the others."""
        x = torch.view_as_real(x) if x.is_complex() else x
        dims = sorted(part.member.dims)
        others = [d for d in range(x.dim()) if d not in dims]
        table = x.permute(*dims, *others).reshape(*(x.shape[d] for d in dims), -1)
        count = table.shape[-1]
        first = table[..., :1]
        apart = table - first  # of what is constant, nothing is left
        shift = apart.mean(-1, keepdim=True, dtype=torch.float64)
        squares = (apart - shift).square().sum(-1)
        moments = [
            torch.full_like(squares, count),
            (first + shift).squeeze(-1),
            squares,
            table.abs().sum(-1, dtype=torch.float64),
            (table == 0).sum(-1, dtype=torch.float64),
        ]
        if self.ranks:
            moments.append(_ranks(x, dims, part))
        self.rows.append(torch.stack(moments))
        if len(self.rows) > 1:
            self.rows = [_merged(torch.stack(self.rows))]

    def finished(self) -> Activations:
        """The moments of all ranks."""
        total = _merged(distributed.gathered(self.rows[0][None]))
        count, mean, squares, absolute, zeros, *rank = total.unbind(0)
        found = rank[0] / count if rank and not bool(rank[0].isnan().any()) else None
        return Activations(
            self.part.group,
            self.part.member,
            self.site,
            mean,
            squares / count,
            absolute / count,
            zeros / count,
            found,
            self.weight,
        )


def _merged(rows: Tensor) -> Tensor:
    """The moments of several sets of values together, [5 or 6, ...], from those of each."""
    total = rows[0]
    for row in rows[1:]:
        joint = total + row
        apart, share = row[1] - total[1], row[0] / joint[0]
        joint[1] = total[1] + apart * share
        joint[2] += apart.square() * total[0] * share
        total = joint
    return total


def _ranks(x: Tensor, dims: Sequence[int], part: Part) -> Tensor:
    """Per index, the sum over all its values of the rank of the matrix that holds it.

    NaN if there are not two dimensions beside the samples and `dims`.
    """
    fixed = {*dims, *(d for d, size in enumerate(part.samples.shape) if size > 1)}
    places = [d for d in range(x.dim()) if d not in fixed and x.shape[d] > 1]
    table = torch.zeros([x.shape[d] for d in dims], dtype=torch.float64, device=x.device)
    if len(places) < 2:
        return table.fill_(torch.nan)
    matrices = x.movedim(places[-2:], (-2, -1))
    area = matrices.shape[-1] * matrices.shape[-2]
    wide = matrices.float() if x.element_size() < 4 else matrices
    rank: Tensor = torch.linalg.matrix_rank(wide)
    left = [d for d in range(x.dim()) if d not in places[-2:]]
    summed = [position for position, d in enumerate(left) if d not in dims]
    return rank.double().sum(summed) * area if summed else rank.double() * area
