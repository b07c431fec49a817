"""Slice a parameter by a plan: an index selection per dimension, also where it depends on another dimension."""

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

    Along a dimension whose kept indices depend on another one (the channels of a grouped convolution, chosen
    per group), each index of that other dimension gathers its own. Raises PlanError if they keep unequal
    numbers.
    """
    rank = tensor.dim()
    plain = {dim: torch.ones(tensor.shape[dim], dtype=torch.bool) for dim in range(rank)}
    crossed: list[tuple[Member, Tensor]] = []
    for group, member in memberships:
        member.check_shape(tuple(tensor.shape), group)
        mask = member.spread(plan.kept_mask(group), group, True, rank)
        if len(member.dims) == 1:
            plain[member.dim] &= mask.reshape(-1)
        else:
            crossed.append((member, mask))
    result = tensor
    for dim, mask in plain.items():
        if not bool(mask.all()):
            index = mask.nonzero()[:, 0]
            result = result.index_select(dim, index.to(tensor.device))
            crossed = [(m, c.index_select(dim, index) if c.shape[dim] > 1 else c) for m, c in crossed]
    for member, mask in crossed:
        result = _gather_rows(result, member, mask)
    return result.clone(memory_format=_memory_format(tensor))


def _gather_rows(tensor: Tensor, member: Member, mask: Tensor) -> Tensor:
    """Keep, for each index of the member's context dimension, the indices along its own that `mask` keeps."""
    dim, other = member.dim, member.context_dim
    flat = mask.movedim((other, dim), (0, 1)).reshape(mask.shape[other], mask.shape[dim])
    counts = flat.sum(1)
    if int(counts.min()) != int(counts.max()):
        raise PlanError(
            f"parameter {member.parameter!r}: between {int(counts.min())} and {int(counts.max())} indices are "
            f"kept along dimension {dim}, depending on dimension {other}; they must be equally many."
        )
    index = flat.nonzero()[:, 1].reshape(len(flat), -1)
    shape = [1] * tensor.dim()
    shape[other], shape[dim] = index.shape
    laid = (index if other < dim else index.t()).reshape(shape).to(tensor.device)
    return torch.take_along_dim(tensor, laid, dim)


def _memory_format(tensor: Tensor) -> torch.memory_format:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    channels_last = formats.get(tensor.dim())
    if channels_last is not None and not tensor.is_contiguous():
        if tensor.is_contiguous(memory_format=channels_last):
            return channels_last
    return torch.contiguous_format
