"""An index that is overwritten picks other positions afterwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.masking import alive, traced


class Reordered(nn.Module):
    """Channels in an order that is turned round in place, before they are read by it again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("order", torch.tensor([2, 0, 1, 5, 3, 4]))

    def forward(self, x: Tensor) -> Tensor:
        order = self.order + 0
        hidden = self.first(x)
        before = hidden[:, order]
        order.mul_(-1).add_(5)
        return self.last(before * hidden[:, order])


def test_what_an_index_held_before_is_forgotten() -> None:
    # Else its first value would be kept, and the channels be free by an order that is not theirs.
    _, analysis = traced(alive(Reordered()), torch.randn(5, 4).double())
    assert not analysis.groups
    assert "indexed by data" in analysis.explain("first.weight")
