"""The cost of a layer in factors, as a closed form of its two ranks.

A layer with weight [outputs, inputs, *kernel] becomes up to three layers: a 1×1 from the inputs to
`columns` channels, the core, and a 1×1 from `rows` channels to the outputs. A rank of 0 means that
there is no such 1×1, and the core reads all inputs or makes all outputs. Where the kernel has one
tap the core is part of one of the two others, since two factors always cost less than three.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerSizes:
    """The sizes of a linear layer or convolution that cost depends on.

    inputs, outputs  features or channels
    taps             kernel positions; 1 for a linear layer
    before, after    positions of the input and of the output, over the example batch and all calls
    """

    inputs: int
    outputs: int
    taps: int
    before: int
    after: int

    @property
    def pointwise(self) -> bool:
        """True for linear layers and kernels with one tap."""
        return self.taps == 1

    def macs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Multiply-accumulates at these ranks, int64 of their shape, for the example batch."""
        return self._weights(rows, columns, self.after if self.pointwise else self.before)

    def params(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Weight entries at these ranks, int64 of their shape; the bias is the same at all."""
        return self._weights(rows, columns, None)

    def _weights(self, rows: Tensor, columns: Tensor, before: int | None) -> Tensor:
        after = 1 if before is None else self.after
        before = 1 if before is None else before
        dense = self.inputs * self.outputs * self.taps
        if self.pointwise:
            smaller = torch.where((rows > 0) & (columns > 0), torch.minimum(rows, columns), 0)
            rank = torch.where(smaller > 0, smaller, rows + columns)
            return after * torch.where(rank > 0, rank * (self.inputs + self.outputs), dense)
        read = torch.where(columns > 0, columns, self.inputs)
        made = torch.where(rows > 0, rows, self.outputs)
        ends = self.inputs * columns * before + self.outputs * rows * after
        return ends + read * made * self.taps * after


FACTOR_COSTS = MappingProxyType({"macs": LayerSizes.macs, "params": LayerSizes.params})
"""Name of a budget → its closed form."""
