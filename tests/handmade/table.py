"""What a row of the table of hand-written models says, and how inputs are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Any]
VOCABULARY = 40
NODES = 7  # graphs' node features are [NODES or more, features]


@dataclass(frozen=True)
class Handmade:
    """A hand-written model and the groups that it must have.

    example  what it is traced with; `inputs` are of other sizes, and what it is checked with
    groups   the sizes of all its prunable groups in order of size: "24 4x6" stands for one of 24
             units and one that chooses among 6 units in each of 4 contexts
    at       for "parameter:dim", the sizes of the prunable groups that this dimension is in
    share    of the entries of its weights, what groups must reach; less where weights map
             positions to positions, or make a matrix that is more than its rows
    limit    why its groups are coarser than these; the test then expects that they are
    """

    build: Callable[[], nn.Module]
    example: Callable[[], Inputs]
    inputs: Callable[[], Inputs]
    groups: str
    at: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    share: float = 0.95
    limit: str = ""


def floats(**shapes: tuple[int, ...]) -> Callable[[], Inputs]:
    """Random inputs whose samples (along the first dimension) differ in their means, too."""

    def make() -> Inputs:
        return {name: _floats(shape) for name, shape in shapes.items()}

    return make


def _floats(shape: tuple[int, ...]) -> Tensor:
    noise = torch.randn(shape, dtype=torch.float64)
    offset = torch.randn(*shape[:2], *(1 for _ in shape[2:]), dtype=torch.float64)
    return noise + 2 * offset


def tokens(**shapes: tuple[int, ...]) -> Callable[[], Inputs]:
    """Random token ids."""
    return lambda: {n: torch.randint(0, VOCABULARY, shape) for n, shape in shapes.items()}


def joined(*makers: Callable[[], Inputs]) -> Callable[[], Inputs]:
    """The inputs of several makers together."""
    return lambda: {name: value for make in makers for name, value in make().items()}


def padding(**shapes: tuple[int, int]) -> Callable[[], Inputs]:
    """Boolean masks that are true on the last two positions of the first sample."""

    def make() -> Inputs:
        masks = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
        for mask in masks.values():
            mask[0, -2:] = True
        return masks

    return make
