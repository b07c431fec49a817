"""The order in which units go."""

from __future__ import annotations

import torch
from torch import Tensor


def removal_order(scores: Tensor) -> Tensor:
    """Units of each context in the order in which they go: lowest score, then highest index."""
    ranked = scores.to("cpu", torch.float64).flip(-1).argsort(dim=-1, stable=True)
    return scores.shape[-1] - 1 - ranked


def mean_slots(scores: Tensor) -> Tensor:
    """Ascending scores of a group's rank slots: means over contexts of sorted scores."""
    return scores.to("cpu", torch.float64).reshape(-1, scores.shape[-1]).sort(-1).values.mean(0)
