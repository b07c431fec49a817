"""A single layer is a model too: the root of a graph is traced through, never called."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.masking import TOLERANCE, alive, error

LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "linear": (lambda: nn.Linear(3, 4), lambda: (torch.randn(2, 3),)),
    "convolution": (lambda: nn.Conv2d(3, 4, 3), lambda: (torch.randn(2, 3, 5, 5),)),
    "batch norm": (lambda: nn.BatchNorm2d(3), lambda: (torch.randn(2, 3, 5, 5),)),
    "layer norm": (lambda: nn.LayerNorm(3), lambda: (torch.randn(2, 3),)),
    "embedding": (lambda: nn.Embedding(5, 3), lambda: (torch.randint(0, 5, (2, 4)),)),
    "lstm": (lambda: nn.LSTM(3, 4), lambda: (torch.randn(5, 2, 3),)),
    "attention": (lambda: nn.MultiheadAttention(8, 2), lambda: (torch.randn(5, 2, 8),) * 3),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16),
        lambda: (torch.randn(5, 2, 8),),
    ),
    "activation": (nn.GELU, lambda: (torch.randn(2, 3),)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_single_layer(name: str) -> None:
    make, data = LAYERS[name]
    model = alive(make())
    inputs = tuple(x.double() if x.is_floating_point() else x for x in data())
    graph = fxprune.trace(model, inputs)
    fxprune.analyze(graph)
    missing = set(model.state_dict()) ^ set(graph.state_dict())
    assert missing <= {"num_batches_tracked"}
    with torch.no_grad():
        assert error(graph(*inputs), model(*inputs)) <= TOLERANCE
