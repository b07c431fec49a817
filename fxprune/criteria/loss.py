"""Criteria from mask gradients: what the loss loses with a unit.

All of them read G[n, k] = ∂L_n/∂m_k, the derivative of sample n's loss by a mask on unit k. It is
the consumer side alone: summing the producers' θ∂θ as well would count a unit twice. A unit that
nothing comes out of scores zero.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fxprune.groups import Group
from fxprune.statistics import Statistics

_MASK_GRADS = frozenset({"mask_grads"})


@dataclass(frozen=True)
class Skeletonization:
    """-mean_n G: how much the loss rises without the unit, to first order. It can be negative."""

    requires: ClassVar[Set[str]] = _MASK_GRADS

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape."""
        return -statistics.mask_grads(group).mean(0)


@dataclass(frozen=True)
class Taylor:
    """|mean_n G|: how much the loss changes without the unit, to first order (SNIP on units)."""

    requires: ClassVar[Set[str]] = _MASK_GRADS

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape."""
        return statistics.mask_grads(group).mean(0).abs()


@dataclass(frozen=True)
class Molchanov2017:
    """mean_n |G|, divided by its ℓ2 norm over the group.

    The paper's division by the number of positions is the same for all units of a group: it
    cancels. Scores of different groups are comparable in rank only, not as changes of the loss.
    """

    requires: ClassVar[Set[str]] = _MASK_GRADS

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape; zeros where all units score zero."""
        scores = statistics.mask_grads(group).abs().mean(0)
        norm = scores.norm()
        return scores / norm if norm > 0 else scores


@dataclass(frozen=True)
class Molchanov2019:
    """(mean_n G)²: the squared change of the loss without the unit, to first order."""

    requires: ClassVar[Set[str]] = _MASK_GRADS

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape."""
        return statistics.mask_grads(group).mean(0).square()


@dataclass(frozen=True)
class Fisher:
    """½ mean_n G²: how much the loss rises without the unit at a minimum, to second order.

    It equals ½ θᵀFθ with the empirical Fisher information F of all that reads the unit.
    """

    requires: ClassVar[Set[str]] = _MASK_GRADS

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape."""
        return 0.5 * statistics.mask_grads(group).square().mean(0)
