"""What captures at several sizes tell of the dimensions that vary, and of views."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune.capture.growth import REGROUPS, VARIES, are_far, regroups

factors = st.lists(
    st.sampled_from([(2, 2), (3, 3), (5, 5), (2, 4), (3, 7)]), min_size=1, max_size=6
)


@given(factors, st.data())
def test_a_view_of_the_same_factors_at_all_sizes_regroups_nothing(
    sizes: list[tuple[int, int]], data: st.DataObject
) -> None:
    shapes = []
    for _ in range(2):
        cuts = sorted(data.draw(st.sets(st.integers(1, len(sizes)), max_size=3)) | {len(sizes)})
        parts = [sizes[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]
        shapes.append(tuple(tuple(map(math.prod, zip(*part, strict=True))) for part in parts))
    assert not regroups(*shapes)


def test_a_view_that_names_as_many_pixels_as_there_are_regroups() -> None:
    before = ((2, 2), (8, 8), (4, 8), (3, 6))
    assert not regroups(before, ((2, 2), (8, 8), (12, 48)))
    assert regroups(before, ((2, 2), (8, 32), (12, 12)))


def test_far_sizes_are_twice_the_examples() -> None:
    assert are_far([((2, 4), (3, 3), (5, 12))])
    assert not are_far([((2, 4), (3, 3)), ((5, 9),)])
    assert are_far([((2, 3, 4),)])


class Rows(nn.Module):
    """Pixels in rows of as many as the example has: 12."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return h.reshape(len(x), -1, 12).sum(1) + h.unflatten(1, (2, 2)).sum((1, 2, 3, 4))[:, None]


def test_notes_stand_on_the_nodes() -> None:
    graph = fxprune.trace(Rows(), torch.randn(2, 2, 4, 3))
    info = graph.meta["fxprune"]
    assert info.far
    notes = {n.name: (n.meta.get(VARIES), n.meta.get(REGROUPS)) for n in graph.graph.nodes}
    varying = info.dynamic["x"]
    assert notes["first"] == (varying, None)
    assert notes["reshape"] == ((0, 1), True)
    assert notes["unflatten"] == (tuple(d + (d > 1) for d in varying), False)
    assert notes["sum_1"][0] == (0,)
