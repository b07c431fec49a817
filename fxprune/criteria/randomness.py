"""The control that every other criterion has to beat."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.groups import Group


@dataclass(frozen=True)
class Random:
    """Uniform scores in [0, 1), float64: the same for the same seed and group name, on any device.

    Torch's global random state is neither read nor advanced.
    """

    seed: int = 0

    def __call__(self, group: Group, parameters: Mapping[str, Tensor]) -> Tensor:
        """Scores of the group's shape."""
        # Seeded per group, so that a group's scores do not depend on which others are scored.
        digest = hashlib.sha256(f"{self.seed}:{group.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.rand(group.shape, generator=generator, dtype=torch.float64)
