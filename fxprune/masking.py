"""A copy of a graph in which units are switched off, one after the other, and nothing changes size.

Where rewriting would have to remove a layer's last unit, a mask can: this is what shows whether a
criterion empties layers. For maskable groups the copy computes what the pruned graph would.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from fxprune.analysis import Analysis, analyze
from fxprune.groups import Group


class MaskedCopy:
    """Holds an analysed copy of a graph, and which units of it are left.

    analysis  of the copy; its groups are those of the original, and scoring it scores what is left
    alive     per group, the units that are left: bool, of the group's shape
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analyze(copy.deepcopy(analysis.traced))
        self.alive = {g.name: torch.ones(g.shape, dtype=torch.bool) for g in self.analysis.groups}
        self._groups = {group.name: group for group in self.analysis.groups}
        self._left = {
            name: torch.ones(parameter.shape, dtype=torch.bool)
            for name, parameter in self.analysis.traced.named_parameters()
        }

    @property
    def widths(self) -> Mapping[str, int]:
        """How many units are left of each group, in each context."""
        return {name: int(mask.sum(-1).max()) for name, mask in self.alive.items()}

    @property
    def parameters_left(self) -> int:
        """The parameter entries that belong to no unit that is gone."""
        return sum(int(mask.sum()) for mask in self._left.values())

    def remove(self, name: str, gone: Tensor) -> None:
        """Switch off the units of a group where `gone` (bool, of its shape) is true, for good."""
        group = self._groups[name]
        self.alive[name] = self.alive[name] & ~gone
        tensors = self.analysis.parameters
        for member in group.members:
            tensor = tensors[member.parameter]
            mask = member.spread(self.alive[name], group, fill=True, rank=tensor.dim())
            if tensor.is_floating_point() or tensor.is_complex():
                tensor.mul_(mask.to(tensor.device))
            if member.parameter in self._left:
                self._left[member.parameter] &= mask

    def groups_left(self) -> tuple[Group, ...]:
        """The groups that have units left."""
        return tuple(g for g in self.analysis.groups if bool(self.alive[g.name].any()))
