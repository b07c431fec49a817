"""LAMP: magnitudes that can be compared between layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.criteria.norms import Norm
from fxprune.groups import Group


@dataclass(frozen=True)
class Lamp:
    """Layer-adaptive magnitude: u_(k) / sum over j >= k of u_(j), for ascending squared norms u.

    What the removal of a unit costs, as a share of what is left when all smaller ones are gone. The
    order within a group is that of the norms (see `Norm`), the scale of the weights drops out, and
    the largest unit scores 1, so that a global threshold empties no group. Contexts are ranked one
    by one. Of equal norms the lower index scores higher; a unit without weights scores 0.
    """

    def __call__(self, group: Group, parameters: Mapping[str, Tensor]) -> Tensor:
        """Scores of the group's shape, float64 in [0, 1]."""
        squares = Norm(2)(group, parameters).square()
        # Ascending, equal ones by descending index.
        ascending, order = squares.flip(-1).sort(dim=-1, stable=True)
        remaining = ascending.flip(-1).cumsum(-1).flip(-1)
        shares = torch.where(remaining > 0, ascending / remaining, 0)
        return torch.empty_like(shares).scatter_(-1, order, shares).flip(-1)
