"""What a pruned module prints about its layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune
from tests.masking import random_plan, traced


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def test_the_output_layer_of_attention_tells_its_new_sizes() -> None:
    # It is a subclass of Linear, which had no row: it printed its old sizes.
    graph, analysis = traced(Attention(), torch.randn(2, 4, 3))
    layer = fxprune.rewrite(graph, random_plan(analysis)).attention.out_proj
    assert tuple(layer.weight.shape) == (layer.out_features, layer.in_features) == (4, 2)
