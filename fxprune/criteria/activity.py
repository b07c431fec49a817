"""Criteria from activations: forward passes only, no loss.

They look at a unit where it is read. Where several ops read it, those that average do so over the
reads, those that measure what the consumers get add up.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxprune.errors import NotApplicableError
from fxprune.groups import Group
from fxprune.statistics import Activations, Statistics

_ACTIVATIONS = frozenset({"activations"})


@dataclass(frozen=True)
class Apoz:
    """The share of activations that are not zero: 1 - the average percentage of zeros."""

    requires: ClassVar[Set[str]] = _ACTIVATIONS

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape, in [0, 1]."""
        reads = statistics.activations(group)
        return torch.stack([1 - read.per_unit(read.zeros) for read in reads]).mean(0)


@dataclass(frozen=True)
class MeanActivation:
    """The mean of |h|."""

    requires: ClassVar[Set[str]] = _ACTIVATIONS

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape."""
        reads = statistics.activations(group)
        return torch.stack([read.per_unit(read.absolute) for read in reads]).mean(0)


@dataclass(frozen=True)
class HRank:
    """The mean rank of a unit's feature maps. Ties are frequent."""

    requires: ClassVar[Set[str]] = frozenset({"activations", "ranks"})

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape; NotApplicableError where no read has feature maps."""
        reads = statistics.activations(group, ranks=True)
        ranks = [read.per_unit(read.rank) for read in reads if read.rank is not None]
        if not ranks:
            raise NotApplicableError("its units have no feature maps with two dimensions of space")
        return torch.stack(ranks).mean(0)


@dataclass(frozen=True)
class WandaSp:
    """Σ_i |W_ik| √E h_k², over all weights W_ik that read the unit."""

    requires: ClassVar[Set[str]] = _ACTIVATIONS

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape; NotApplicableError where no weights read the group."""
        return _by_weights(
            group, statistics, lambda read: read.weighted(read.second.sqrt(), power=1)
        )


@dataclass(frozen=True)
class Flap:
    """Var(h_k) Σ_i W_ik², standardised over the group to mean 0 and variance 1.

    A unit that is constant costs nothing: its consumers' biases can take its place.
    """

    standardise: bool = True
    requires: ClassVar[Set[str]] = _ACTIVATIONS

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape; NotApplicableError where no weights read the group."""
        scores = _by_weights(group, statistics, lambda read: read.weighted(read.variance, power=2))
        if not self.standardise:
            return scores
        deviation = scores.std(correction=0)
        apart = scores - scores.mean()
        return apart / deviation if deviation > 0 else torch.zeros_like(scores)


def _by_weights(
    group: Group, statistics: Statistics, part: Callable[[Activations], Tensor | None]
) -> Tensor:
    """The sum over the reads by weights."""
    parts = [scores for read in statistics.activations(group) if (scores := part(read)) is not None]
    if not parts:
        raise NotApplicableError("its units meet other activations, and no weights")
    return torch.stack(parts).sum(0)
