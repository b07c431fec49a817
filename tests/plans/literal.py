"""Criteria written out entry by entry, as their definitions read: slow, for comparison only."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fxprune.groups import Group
from tests.plans.fakes import indices, owner, slow_norm


def rows_of(
    group: Group, parameters: Mapping[str, Tensor], *roles: str
) -> dict[tuple[int, int], list[float]]:
    """Per (context, unit) the entries of its members of these roles, by index."""
    rows: dict[tuple[int, int], list[float]] = {
        (context, unit): [] for context in range(group.contexts) for unit in range(group.size)
    }
    for member in group.members:
        if member.role in roles:
            parameter = parameters[member.parameter]
            for index in indices(tuple(parameter.shape), member.dims):
                place = owner(member, index)
                if place is not None:
                    rows[place].append(float(parameter[index]))
    return rows


def slow_fpgm(group: Group, parameters: Mapping[str, Tensor], *roles: str) -> Tensor:
    rows = rows_of(group, parameters, *(roles or ("producer",)))
    scores = torch.zeros(group.contexts, group.size, dtype=torch.float64)
    for (context, unit), row in rows.items():
        scores[context, unit] = sum(
            math.dist(row, rows[context, other]) for other in range(group.size)
        )
    return scores.reshape(group.shape)


def slow_lamp(group: Group, parameters: Mapping[str, Tensor]) -> Tensor:
    norms = slow_norm(group, parameters, 2).reshape(group.contexts, group.size)
    scores = torch.zeros_like(norms)
    for context in range(group.contexts):
        squares = [float(value) ** 2 for value in norms[context]]
        for unit, square in enumerate(squares):
            # Those that are still there when this unit's turn comes: itself and what is larger.
            left = sum(
                other
                for index, other in enumerate(squares)
                if other > square or (other == square and index <= unit)
            )
            scores[context, unit] = square / left if left else 0.0
    return scores.reshape(group.shape)
