"""The units of a group along a tensor that is read, told apart by sample."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fxprune.groups import Group, Member


@dataclass(frozen=True)
class Part:
    """The units of one group along a read.

    group    the group
    member   which index of the operand belongs to which unit
    samples  which sample each index belongs to: int64, broadcasts against the operand
    """

    group: Group
    member: Member
    samples: Tensor

    @cached_property
    def slots(self) -> Tensor:
        """The slot of each index, -1 where it has none: int64, broadcasts against the operand."""
        numbers = torch.arange(self.group.slots).reshape(self.group.shape)
        return self.member.spread(numbers, self.group, fill=-1, rank=self.samples.dim())

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """The dimensions that tell samples and slots apart."""
        shapes = zip(self.samples.shape, self.slots.shape, strict=True)
        return tuple(d for d, sizes in enumerate(shapes) if max(sizes) > 1)

    def collect(self, sums: Tensor, into: Tensor) -> None:
        """Add sums over all dimensions but `dims` (kept, of size 1) to a [samples, slots] table."""
        target, chosen = self._targets(into.device)
        flat = sums.reshape(-1)
        flat = flat if chosen is None else flat[chosen]
        into.view(-1).index_add_(0, target, flat.to(into.dtype))

    def _targets(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The flat places in the table, and which entries go there (None for all)."""
        if device not in self._placed:
            own = (self.slots >= 0) & (self.samples >= 0)
            place = torch.where(own, self.samples * self.group.slots + self.slots, -1).reshape(-1)
            chosen = None if bool(own.all()) else (place >= 0).nonzero()[:, 0].to(device)
            target = place.to(device)
            self._placed[device] = (target if chosen is None else target[chosen], chosen)
        return self._placed[device]

    @cached_property
    def _placed(self) -> dict[torch.device, tuple[Tensor, Tensor | None]]:
        return {}
