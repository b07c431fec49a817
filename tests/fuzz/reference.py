"""What plans and groups mean, read off the members' index maps entry by entry."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune import Group, Member


def rows_of(group: Group, kept: Mapping[str, Any]) -> Sequence[Sequence[int]]:
    """The kept units of a group, per context."""
    row = kept.get(group.name, [list(range(group.size))] * group.contexts)
    return row if row and not isinstance(row[0], int) else [row]


def stays(group: Group, member: Member, kept: Mapping[str, Any], shape: Sequence[int]) -> Any:
    """Which entries of a parameter of this shape a member keeps: numpy bool of `shape`."""
    rows = [set(row) for row in rows_of(group, kept)]
    unit = member.unit.tolist()
    context = None if member.context is None else member.context.tolist()
    keep = np.ones(tuple(shape), dtype=bool)
    dims = (member.dim, member.context_dim if context is not None else member.dim)
    for i, j in itertools.product(range(shape[dims[0]]), range(shape[dims[1]])):
        if dims[0] == dims[1] and i != j:
            continue
        u, c = unit[i], 0 if context is None or len(rows) == 1 else context[j]
        if u >= 0 and c >= 0 and u not in rows[c]:
            where: list[Any] = [slice(None)] * len(shape)
            where[dims[0]], where[dims[1]] = i, j
            keep[tuple(where)] = False
    return keep


def masks(
    groups: Sequence[Group], kept: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Per parameter that loses entries: numpy bool of its shape, True where an entry stays."""
    found: dict[str, Any] = {}
    for group in groups:
        if all(len(row) == group.size for row in rows_of(group, kept)):
            continue
        for member in group.members:
            shape = shapes[member.parameter]
            keep = stays(group, member, kept, shape)
            found[member.parameter] = found.get(member.parameter, True) & keep
    return found


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all of their names."""
    named = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return dict(named)


def masked(module: nn.Module, keep: Mapping[str, Any]) -> nn.Module:
    """A copy of the module with the removed entries set to zero."""
    zeroed = copy.deepcopy(module)
    named = tensors_of(zeroed)
    with torch.no_grad():
        for name, mask in keep.items():
            named[name].masked_fill_(~torch.from_numpy(mask), 0)
    return zeroed


def crossed_dims(groups: Sequence[Group], kept: Mapping[str, Any]) -> dict[str, set[int]]:
    """Per parameter, the dimensions whose kept indices depend on another dimension's index."""
    found: dict[str, set[int]] = {}
    for group in groups:
        for member in group.members:
            if group.name in kept and len(member.dims) == 2:
                found.setdefault(member.parameter, set()).add(member.dim)
    return found


def squeezed(tensor: Tensor, keep: Any, crossed: Set[int]) -> Tensor:
    """The kept entries of a tensor, as a smaller tensor; they must form a rectangle.

    Slices that keep nothing vanish. Along the `crossed` dimensions, where every line keeps other
    indices, each entry is counted within its own line.
    """
    places = []
    for dim in range(tensor.dim()):
        others = tuple(d for d in range(tensor.dim()) if d != dim)
        slices = keep.any(axis=others, keepdims=True)
        lines = keep if dim in crossed else np.broadcast_to(slices, keep.shape)
        places.append((np.cumsum(lines, axis=dim) - 1)[keep])
    shape = tuple(int(p.max()) + 1 for p in places)
    assert keep.sum() == np.prod(shape), f"{int(keep.sum())} entries are no {shape}"
    result = tensor.new_full(shape, float("nan"))
    result[tuple(torch.from_numpy(p) for p in places)] = tensor[torch.from_numpy(keep)]
    assert not torch.isnan(result).any()
    return result


def renumber(rows: Sequence[Sequence[int]], orders: Sequence[Sequence[int]]) -> list[list[int]]:
    """Kept units where unit ``order[i]`` of each context is now number ``i``."""
    pairs = zip(rows, orders, strict=True)
    return [sorted(order.index(unit) for unit in row) for row, order in pairs]


def renumbered(
    module: nn.Module, groups: Sequence[Group], orders: Mapping[str, Sequence[Sequence[int]]]
) -> nn.Module:
    """A copy of the module in which unit ``order[i]`` of each context is number ``i``."""
    changed = copy.deepcopy(module)
    named = tensors_of(changed)
    with torch.no_grad():
        for group in groups:
            for member in group.members:
                tensor = named[member.parameter]
                tensor.copy_(_renumbered_member(tensor, member, orders[group.name]))
    return changed


def _renumbered_member(tensor: Tensor, member: Member, orders: Sequence[Sequence[int]]) -> Tensor:
    """Entries move along the member's dimension to where their unit's new number has its place.

    A unit's entries keep their order. Every context has places of its own.
    """
    unit = member.unit.tolist()
    inside = member.context is not None and member.context_dim == member.dim
    across = member.context is not None and not inside
    context = member.context.tolist() if member.context is not None else []
    result = tensor.clone()
    for c, order in enumerate(orders):
        mine = [i for i, u in enumerate(unit) if u >= 0 and (not inside or context[i] == c)]
        places = {u: [i for i in mine if unit[i] == u] for u in range(len(order))}
        for number, old in enumerate(order):
            for target, source in zip(places[number], places[old], strict=True):
                if across:
                    lines = torch.tensor([j for j, d in enumerate(context) if d == c])
                    picked = tensor.select(member.dim, source)
                    dim = member.context_dim - (member.context_dim > member.dim)
                    part = picked.index_select(dim, lines)
                    result.select(member.dim, target).index_copy_(dim, lines, part)
                else:
                    result.select(member.dim, target).copy_(tensor.select(member.dim, source))
    return result


def largest(tensor: Tensor) -> float:
    """The largest finite magnitude in a tensor."""
    values = tensor.to(_wide(tensor)).abs()
    return float(values[values.isfinite()].max()) if values.isfinite().any() else 0.0


def distance(actual: Tensor, expected: Tensor) -> float:
    """max|a-b|, 0 where both are the same infinity or NaN; inf for other shapes and NaNs."""
    if actual.shape != expected.shape:
        return math.inf
    if actual.numel() == 0:
        return 0.0
    a, b = actual.to(_wide(actual)), expected.to(_wide(actual))
    same = (a == b) | (a.isnan() & b.isnan())
    found = float(torch.where(same, 0, a - b).abs().max())
    return math.inf if math.isnan(found) else found


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """max|a-b| / max|b| per tensor, the largest over all; infinite for NaN."""
    assert [a.shape for a in actual] == [b.shape for b in expected]
    worst = 0.0
    for a, b in zip(actual, expected, strict=True):
        if a.numel():
            scale = float(b.abs().max())
            error = float((a - b).abs().max()) / (scale if scale > 0 else 1.0)
            worst = max(worst, error if error == error else float("inf"))
    return worst
