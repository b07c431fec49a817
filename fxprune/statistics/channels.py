"""Kronecker factors by channel: what a change of basis of a layer's inputs and outputs needs.

They are those of `fxprune.statistics.kronecker` with A averaged over kernel positions, and take a
kernel's square less memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.statistics import distributed
from fxprune.statistics.layer_passes import accumulate
from fxprune.statistics.layers import Layer, find_layers
from fxprune.statistics.passes import Passes

_CHUNK = 1 << 22  # entries of patches that are in memory at once


@dataclass(frozen=True, eq=False)
class ChannelFactors:
    """The two factors of one layer, per group of a grouped convolution; float64, symmetric.

    inputs   [groups, channels, channels]: E[x_i x_j] over samples, positions and kernel positions;
             what a convolution pads counts
    outputs  [groups, channels, channels]: Σ_t ∂L/∂y_it ∂L/∂y_jt over positions t, the mean over
             samples
    """

    inputs: Tensor
    outputs: Tensor


def channel_factors(passes: Passes) -> Mapping[str, ChannelFactors]:
    """The factors of all layers that `find_layers` finds: one forward and backward pass."""
    layers = find_layers(passes.analysis.traced)
    sums = {layer.name: _Sums(layer, passes.device) for layer in layers}
    count = accumulate(passes, layers, False, "channel factors", sums)
    return {name: one.finished(count) for name, one in sums.items()}


class _Sums:
    """Adds up outer products of channels as they pass."""

    def __init__(self, layer: Layer, device: torch.device) -> None:
        self.layer, self.scale = layer, 0.0
        channels = layer.inputs // layer.kernel
        self.inputs, self.outputs = (
            torch.zeros(layer.groups, size, size, dtype=torch.float64, device=device)
            for size in (channels, layer.outputs)
        )

    def reset(self) -> None:
        """Forget all."""
        self.inputs.zero_()
        self.outputs.zero_()

    def begin(self, samples: int, positions: int) -> None:
        """A part with so many samples and, over all uses, positions comes."""
        self.scale = samples / max(positions * self.layer.kernel, 1)

    def forward(self, call: object, x: Tensor, known: Tensor) -> None:
        """A use reads `x`."""
        for chunk in self.layer.chunks(x, _CHUNK):
            patches = self.layer.columns(chunk).double()
            columns = patches.reshape(self.layer.groups, len(self.inputs[0]), -1)
            self.inputs.baddbmm_(columns, columns.mT, alpha=self.scale)

    def backward(self, call: object, gradient: Tensor) -> None:
        """The gradient by what a use returned."""
        columns = self.layer.gradients(gradient).double()
        self.outputs.baddbmm_(columns, columns.mT)

    def end(self) -> None:
        """The part is over."""

    def finished(self, count: float) -> ChannelFactors:
        """The means over the samples of all ranks."""
        found = (distributed.summed(total) / count for total in (self.inputs, self.outputs))
        return ChannelFactors(*((factor + factor.mT) / 2 for factor in found))
