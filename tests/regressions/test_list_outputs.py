"""Models that return a list, as feature extractors do: every tensor in it is an output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 6, 1),
            nn.Conv2d(6, 4, 1),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.first(x)
        return [first, self.third(self.second(first))]


def test_the_channels_of_tensors_in_a_list_are_frozen() -> None:
    # The list in a graph has attributes of its own, and was taken for an object that holds tensors.
    analysis = fxprune.analyze(fxprune.trace(Pyramid().eval(), torch.randn(2, 3, 4, 4)))
    assert [group.name for group in analysis.groups] == ["second.weight:0"]
    reasons = {m.parameter: g.reason for g in analysis.frozen for m in g.members if m.dim == 0}
    assert reasons["first.weight"] == reasons["third.weight"] == "model output"
