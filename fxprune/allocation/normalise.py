"""Make scores of different groups comparable, before they are ranked together.

A normaliser changes no order within a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from fxprune.errors import PlanError

Normaliser: TypeAlias = Callable[[Tensor], Tensor]


def unchanged(scores: Tensor) -> Tensor:
    """The scores as they are."""
    return scores


def by_mean(scores: Tensor) -> Tensor:
    """Scores as multiples of the group's mean absolute score."""
    return scores / _positive(scores.abs().mean())


def by_max(scores: Tensor) -> Tensor:
    """Scores as multiples of the group's largest absolute score."""
    return scores / _positive(scores.abs().max())


def standardised(scores: Tensor) -> Tensor:
    """Scores in standard deviations from the group's mean."""
    return (scores - scores.mean()) / _positive(scores.std(correction=0))


def _positive(scale: Tensor) -> Tensor:
    """A scale to divide by; 1 where all scores are 0 or equal."""
    return torch.where(scale > 0, scale, 1.0)


NORMALISERS: Mapping[str, Normaliser] = MappingProxyType(
    {"none": unchanged, "mean": by_mean, "max": by_max, "standardise": standardised}
)


def find_normaliser(name: object) -> Normaliser:
    """The normaliser of that name; raises PlanError for another one."""
    found = NORMALISERS.get(name) if isinstance(name, str) else None
    if found is None:
        raise PlanError(
            f"There is no normaliser {name!r}; use one of {', '.join(sorted(NORMALISERS))}."
        )
    return found
