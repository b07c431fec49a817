"""Indices that depend on no input are followed, unless they come from very large tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Reordered(nn.Module):
    """Hidden units in an order that is cut out of `count` computed numbers."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        order = (5 * torch.arange(self.count) % 6)[:6]
        return self.last(self.first(x)[:, order])


@pytest.mark.parametrize(("count", "units"), [(12, [6]), (1 << 22, [6]), ((1 << 22) + 1, [])])
def test_a_computed_order_is_followed_up_to_four_million_numbers(
    count: int, units: list[int]
) -> None:
    traced = fxprune.trace(Reordered(count), torch.randn(2, 4))
    assert [group.size for group in fxprune.analyze(traced).groups] == units
