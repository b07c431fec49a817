"""Slice a parameter by a plan: an index selection per dimension, possibly per context."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxprune.errors import PlanError
from fxprune.groups import Group, Member
from fxprune.plans import PruningPlan
from fxprune.plans.values import weight_beside

_BLOCK = 1 << 17  # entries

Membership: TypeAlias = tuple[Group, Member]


def members_by_parameter(plan: PruningPlan) -> Mapping[str, list[Membership]]:
    """The memberships of every parameter that the plan cuts."""
    found: dict[str, list[Membership]] = {}
    for name in plan.kept_units:
        group = plan.group(name)
        for member in group.members:
            found.setdefault(member.parameter, []).append((group, member))
    return found


class Slicer:
    """Slices tensors by a plan; what members have in common is computed once."""

    def __init__(self, plan: PruningPlan) -> None:
        self.plan = plan
        self._kept: dict[str, Tensor] = {}
        self._indices: dict[tuple[Any, ...], tuple[Sequence[Membership], Tensor | None]] = {}

    def __call__(self, tensor: Tensor, memberships: Iterable[Membership]) -> Tensor:
        """What the plan leaves of a parameter, detached, in a tensor of its own and in its memory
        format.

        Along a dimension whose kept indices depend on another one (the channels of a grouped
        convolution, chosen per group), each index of that other dimension gathers its own. Raises
        PlanError if they keep unequal numbers.
        """
        tensor = tensor.detach()
        rank, shape = tensor.dim(), tuple(tensor.shape)
        plain: dict[int, list[Membership]] = {}
        crossed: dict[int, Tensor] = {}
        for group, member in memberships:
            member.check_shape(shape, group)
            if len(member.dims) == 1:
                plain.setdefault(member.dim, []).append((group, member))
            else:
                mask = member.spread(self.kept_mask(group), group, True, rank)
                crossed[member.dim] = mask & crossed.get(member.dim, torch.tensor(True))
        found = {dim: self._index(plain[dim]) for dim in sorted(plain)}
        indices = {dim: index for dim, index in found.items() if index is not None}
        result = _select(tensor, indices)
        for dim, cross in crossed.items():
            for other, index in indices.items():
                if cross.shape[other] > 1:
                    cross = cross.index_select(other, index)
            result = _gather_along(result, dim, cross)
        result = result.contiguous(memory_format=_memory_format(tensor))
        return result.clone() if result is tensor else result

    def values(self) -> dict[str, Tensor]:
        """What the plan leaves of its new values."""
        return {n: self(value, self._memberships(n)) for n, value in self.plan.values.items()}

    def added_biases(self) -> dict[str, Tensor]:
        """What the plan leaves of the biases that it gives to layers without."""
        return {n: self(self.plan.values[n], self._memberships(n)) for n in self.plan.added}

    def kept_entries(self, name: str) -> Tensor:
        """Where in the original's parameter or buffer the entries that stay are: flat, int64.

        Of a bias that the original's layer lacks: where it would be. PlanError for other names.
        """
        shape = self.plan.shape_of(name)
        index = torch.arange(math.prod(shape)).reshape(shape)
        return self(index, self._memberships(name))

    def _memberships(self, name: str) -> Sequence[Membership]:
        """Those of a parameter; of a bias that its layer lacks, those of the weight's rows."""
        aliases = self.plan.aliases
        own = aliases.get(name, name)
        if own in self.plan.shapes:
            return self.members.get(own, ())
        weight = weight_beside(name) or ""
        rows = self.members.get(aliases.get(weight, weight), ())
        return [(group, member) for group, member in rows if member.dims == (0,)]

    @cached_property
    def members(self) -> Mapping[str, Sequence[Membership]]:
        """The memberships of every parameter that the plan cuts."""
        return members_by_parameter(self.plan)

    def kept_mask(self, group: Group) -> Tensor:
        """Which units of a group stay: bool, of its shape."""
        if group.name not in self._kept:
            self._kept[group.name] = self.plan.kept_mask(group)
        return self._kept[group.name]

    def _index(self, memberships: Sequence[Membership]) -> Tensor | None:
        """The indices along one dimension that stay; None if all do."""
        key = tuple((group.name, id(m.unit), id(m.context)) for group, m in memberships)
        if key not in self._indices:
            masks = [
                m.spread(self.kept_mask(group), group, True, m.dim + 1) for group, m in memberships
            ]
            mask = reduce(torch.logical_and, (mask.reshape(-1) for mask in masks))
            index = None if bool(mask.all()) else mask.nonzero()[:, 0]
            self._indices[key] = memberships, index  # they keep their maps, and so the ids, alive
        return self._indices[key][1]


def slice_parameter(tensor: Tensor, memberships: Iterable[Membership], plan: PruningPlan) -> Tensor:
    """What the plan leaves of one parameter, see `Slicer`, which slices many of them faster."""
    return Slicer(plan)(tensor, memberships)


def _select(tensor: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    """The entries at the given indices of some dimensions, in the tensor's memory format.

    Along several dimensions of a large tensor in blocks of rows: selecting one whole dimension
    after the other would keep a second tensor, at times a larger one than the result.
    """
    if not indices:
        return tensor
    within = {dim: index.to(tensor.device) for dim, index in indices.items()}
    shape = [len(within[d]) if d in within else size for d, size in enumerate(tensor.shape)]
    result = torch.empty(
        shape, dtype=tensor.dtype, device=tensor.device, memory_format=_memory_format(tensor)
    )
    last, index = within.popitem()
    rows = max(1, _BLOCK * shape[0] // max(result.numel(), 1))
    if not within or rows >= shape[0]:
        for dim, other in within.items():
            tensor = tensor.index_select(dim, other)
        return torch.index_select(tensor, last, index, out=result)
    kept = within.pop(0, None)
    for start in range(0, shape[0], rows):
        here = slice(start, start + rows)
        block = tensor[here] if kept is None else tensor.index_select(0, kept[here])
        for dim, other in within.items():
            block = block.index_select(dim, other)
        torch.index_select(block, last, index, out=result[here])
    return result


def _gather_along(tensor: Tensor, dim: int, mask: Tensor) -> Tensor:
    """Keep along `dim` what `mask` keeps, which may depend on other dimensions' indices."""
    last = mask.movedim(dim, -1)
    counts = last.sum(-1)
    kept = int(counts.max())
    if int(counts.min()) != kept:
        raise PlanError(
            f"a tensor of shape {tuple(tensor.shape)} keeps between {int(counts.min())} and {kept} "
            f"indices along dimension {dim}, depending on its other dimensions; they "
            "must be equally many."
        )
    index = last.nonzero()[:, -1].reshape(*last.shape[:-1], kept).movedim(-1, dim)
    return torch.take_along_dim(tensor, index.to(tensor.device), dim)


def _memory_format(tensor: Tensor) -> torch.memory_format:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    channels_last = formats.get(tensor.dim())
    if channels_last is None or tensor.is_contiguous():
        return torch.contiguous_format
    matches = tensor.is_contiguous(memory_format=channels_last)
    return channels_last if matches else torch.contiguous_format
