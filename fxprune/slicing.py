"""Slice a parameter by a plan: an index selection per dimension, possibly per context."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fxprune.errors import PlanError
from fxprune.groups import Group, Member
from fxprune.plans import PruningPlan


def members_by_parameter(plan: PruningPlan) -> Mapping[str, list[tuple[Group, Member]]]:
    """The memberships of every parameter that the plan changes."""
    found: dict[str, list[tuple[Group, Member]]] = {}
    for name in plan.kept_units:
        group = plan.group(name)
        for member in group.members:
            found.setdefault(member.parameter, []).append((group, member))
    return found


def slice_parameter(
    tensor: Tensor, memberships: Iterable[tuple[Group, Member]], plan: PruningPlan
) -> Tensor:
    """What the plan leaves of a parameter, in a tensor of its own and in its memory format.

    Along a dimension whose kept indices depend on another one (the channels of a grouped
    convolution, chosen per group), each index of that other dimension gathers its own. Raises
    PlanError if they keep unequal numbers.
    """
    rank = tensor.dim()
    plain = {dim: torch.ones(tensor.shape[dim], dtype=torch.bool) for dim in range(rank)}
    crossed: dict[int, Tensor] = {}
    for group, member in memberships:
        member.check_shape(tuple(tensor.shape), group)
        mask = member.spread(plan.kept_mask(group), group, True, rank)
        if len(member.dims) == 1:
            plain[member.dim] &= mask.reshape(-1)
        else:
            crossed[member.dim] = mask & crossed.get(member.dim, torch.tensor(True))
    result = tensor
    for dim, mask in plain.items():
        if not bool(mask.all()):
            index = mask.nonzero()[:, 0]
            result = result.index_select(dim, index.to(tensor.device))
            for key, cross in crossed.items():
                if cross.shape[dim] > 1:
                    crossed[key] = cross.index_select(dim, index)
    for dim, cross in crossed.items():
        result = _gather_along(result, dim, cross)
    return result.clone(memory_format=_memory_format(tensor))


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
