"""Networks whose layers have every kind of window, and random bases for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.plans import Bases


@dataclass(frozen=True)
class Case:
    """A layer, and the size of its input behind the batch."""

    layer: Callable[[], nn.Module]
    size: tuple[int, ...]


LAYERS: Mapping[str, Case] = {
    "linear": Case(lambda: nn.Linear(5, 7), (5,)),
    "linear over tokens, no bias": Case(lambda: nn.Linear(6, 4, bias=False), (3, 6)),
    "conv1d": Case(lambda: nn.Conv1d(4, 6, 3, 2, 1), (4, 9)),
    "conv2d": Case(lambda: nn.Conv2d(4, 5, 3), (4, 7, 7)),
    "conv2d padded": Case(lambda: nn.Conv2d(3, 6, 3, padding=1), (3, 6, 6)),
    "conv2d strided": Case(lambda: nn.Conv2d(6, 4, 3, 2, (1, 0), bias=False), (6, 8, 7)),
    "conv2d dilated": Case(lambda: nn.Conv2d(4, 4, (3, 2), 1, 2, (2, 3)), (4, 8, 8)),
    "conv2d same": Case(lambda: nn.Conv2d(4, 6, (3, 4), padding="same"), (4, 6, 6)),
    "conv2d reflected": Case(lambda: nn.Conv2d(4, 6, 3, 1, 1, padding_mode="reflect"), (4, 6, 6)),
    "conv2d circular": Case(
        lambda: nn.Conv2d(4, 5, 3, 2, (2, 1), padding_mode="circular"), (4, 6, 6)
    ),
    "1x1": Case(lambda: nn.Conv2d(6, 4, 1), (6, 5, 5)),
    "1x1 strided and padded": Case(lambda: nn.Conv2d(4, 7, 1, 2, 1), (4, 5, 5)),
    "conv3d": Case(lambda: nn.Conv3d(3, 4, (1, 3, 2), 1, (0, 1, 0)), (3, 3, 4, 4)),
}


class Surrounded(nn.Module):
    """A layer between a convolution by its own and a non-linearity."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.layer = case.layer()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x.sin()))


def network(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The network around a layer, in float64 and frozen, and an input of three samples."""
    torch.manual_seed(seed)
    case = LAYERS[name]
    model = Surrounded(case).double().eval().requires_grad_(False)
    return model, torch.randn(3, *case.size, dtype=torch.float64)


def random_bases(layer: Any, rows: int | None, columns: int | None, seed: int = 0) -> Bases:
    """Random orthonormal directions of a layer's outputs (rows) and inputs (columns)."""
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs = layer.weight.shape[:2]
    made = [
        None if rank is None else orthogonal(size, generator)[:, :rank]
        for size, rank in ((inputs, columns), (outputs, rows))
    ]
    return Bases(*made)


def orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix, float64."""
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q
