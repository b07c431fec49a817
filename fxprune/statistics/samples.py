"""Which sample of a batch each index of a tensor belongs to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fxprune.axes import Axis, find, leaves
from fxprune.propagate import Propagation, TensorAxes
from fxprune.rules.base import Layout
from fxprune.unit_maps import UnitMaps


class SampleMaps:
    """The samples in the tensors of a graph that was propagated at the sizes of a batch.

    count  how many samples the inputs hold, along dimension `batch_dim` of each
    """

    def __init__(
        self, propagation: Propagation, count: int, batch_dim: int, maps: UnitMaps | None = None
    ) -> None:
        self.count, self.maps = count, UnitMaps() if maps is None else maps
        self.batches = self._batch_axes(propagation, batch_dim)

    def _batch_axes(self, propagation: Propagation, dim: int) -> list[Axis]:
        """The axes of the samples; inputs that never meet have one each."""
        found: dict[int, Axis] = {}
        for node, stated in propagation.nodes.items():
            if node.op == "placeholder" and self.count > 1:
                for leaf in tree_leaves(stated):
                    if isinstance(leaf, TensorAxes) and len(leaf.axes) > dim:
                        axis = find(leaf.axes[dim])
                        if axis.size == self.count:
                            found[id(axis)] = axis
        return list(found.values())

    def of(self, layout: Layout) -> Tensor | None:
        """Which sample each index belongs to; None if nothing says so."""
        if self.count == 1:
            return same_sample(layout)
        for batch in self.batches:
            found = self._by(layout, batch)
            if found is not None:
                return found
        return None

    def _by(self, layout: Layout, batch: Axis) -> Tensor | None:
        total = same_sample(layout)
        stride = batch.size
        for atom in leaves(batch):
            if atom.size == 1:
                continue
            stride //= atom.size
            places = [d for d, axis in enumerate(layout) if atom in leaves(axis)]
            maps = [self.maps.of(layout[d], {atom.key: 0}) for d in places]
            if len(maps) != 1 or len(maps[0]) != 1:
                return None
            shape = [1] * len(layout)
            shape[places[0]] = -1
            index = maps[0][0].reshape(shape)
            total = torch.where((total < 0) | (index < 0), -1, total + index * stride)
        return total if bool((total >= 0).all()) else None


def same_sample(layout: Layout) -> Tensor:
    """All indices belong to sample 0: int64, broadcasts against the tensor."""
    return torch.zeros([1] * len(layout), dtype=torch.int64)
