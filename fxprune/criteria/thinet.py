"""ThiNet: the units without which the next layers compute the same."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxprune.groups import Group
from fxprune.statistics import Statistics


@dataclass(frozen=True)
class ThiNet:
    """Greedy: the unit goes next that adds the least to the change of what the readers compute.

    Without a set P of units the results of the ops that read them change by 1ᵀ_P K 1_P in squares,
    K as in `Statistics.contributions`. A unit's score is that change when it goes, as a share of
    Σ_k K[k, k], so that scores of different groups can be compared; units that go later never
    score less. Contexts are ranked one by one.

    What the units that stay can make up for is not looked at: `compensate="least_squares"` does.
    """

    requires: ClassVar[Set[str]] = frozenset({"contributions"})

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape; NotApplicableError where no linear op reads the group."""
        products = statistics.contributions(group).cpu()
        shape = (group.contexts, group.size) * 2
        blocks = products.reshape(shape).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        return torch.stack([_greedy(block) for block in blocks]).reshape(group.shape)

    def change(self, group: Group, removed: Tensor, statistics: Statistics) -> float:
        """1ᵀ_P K 1_P of a set, given as bool of the group's shape."""
        gone = removed.reshape(-1).double()
        return float(gone @ statistics.contributions(group).cpu() @ gone)


def _greedy(products: Tensor) -> Tensor:
    """The score of each unit of one context, [size]; of equal units the last goes first."""
    size = len(products)
    scores, left = torch.zeros(size, dtype=torch.float64), torch.ones(size, dtype=torch.bool)
    rise, change, score = products.diagonal().clone(), 0.0, 0.0
    whole = float(products.diagonal().sum())
    for _ in range(size):
        unit = size - 1 - int(torch.where(left, rise, torch.inf).flip(0).argmin())
        change += float(rise[unit])
        score = max(change / whole if whole > 0 else 0.0, math.nextafter(score, math.inf))
        scores[unit], left[unit] = score, False
        rise += 2 * products[:, unit]
    return scores
