"""Single units that stay: an index that depends on one depends on nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune
from fxprune.algebra import Algebra
from fxprune.axes import Product
from fxprune.unit_maps import UnitMaps


def test_a_product_of_frozen_units_has_unit_maps() -> None:
    # The rows of a relative position table are such indices.
    # Frozen units of size 1 are no factors: the product was left without any, and the map failed.
    algebra = Algebra()
    units, rest = [algebra.atom(1), algebra.atom(1)], algebra.atom(3)
    axis = algebra.concat([Product(units), rest])
    for unit in units:
        algebra.freeze(unit, "indexed by data")
    (units_of_rest,) = UnitMaps().of(axis, {rest.key: 5})
    assert units_of_rest.tolist() == [-1, 5, 6, 7]


class FirstHead(nn.Module):
    """The first of five heads is added to channels of another make, and broadcast by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.left, self.right = nn.Linear(7, 60), nn.Linear(7, 6), nn.Linear(7, 6)
        self.out = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.heads(x).unflatten(-1, (5, 12))
        alone = heads[:, :1].expand(-1, 3, -1)
        pairs = torch.cat([part(x).unflatten(-1, (2, 3)) for part in (self.left, self.right)], 1)
        return self.out(heads.flatten(1)[:, :12] + pairs.flatten(1)), self.out(alone)


def test_a_head_that_is_broadcast_leaves_its_channels_free() -> None:
    # Conditioned on that head, the channels had no refinement in common with pairs of triples.
    graph = fxprune.trace(FirstHead(), torch.randn(2, 7))
    groups = fxprune.analyze(graph, strict=True).groups
    assert sorted(group.size for group in groups) == [2, 2, 3, 4]  # left, right, triples, heads
