"""Kronecker factors of the Fisher information of layers: one forward and backward pass.

For a layer whose sample n has patches a at positions t and gradients ds by its outputs,

    A = E_n[mean_t a aᵀ]        S = E_n[Σ_t ds dsᵀ]        Fisher ≈ S ⊗ A

(K-FAC "expanded"; "reduced" takes the outer products of mean_t a and Σ_t ds instead). A layer that
is used several times has all its uses as positions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fxprune.errors import AnalysisError
from fxprune.statistics import distributed
from fxprune.statistics.layer_passes import PerSample, Watcher, accumulate
from fxprune.statistics.layers import Layer, find_layers
from fxprune.statistics.passes import Passes

Positions: TypeAlias = Literal["expanded", "reduced"]
Bases: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]

_CHUNK = 1 << 22  # entries of patches that are in memory at once


class BlockDiagonalWarning(UserWarning):
    """A Kronecker factor would take more memory than it may: only blocks of it are kept."""


@dataclass(frozen=True)
class KroneckerFactors:
    """The factors of one layer, per group of a grouped convolution; float64.

    layer          what they belong to: names of the parameters, shape, groups, kernel
    has_bias       the last coordinate of a patch is a constant 1. True for a layer with a bias, and
                   for one whose batch normalisation is folded.
    folded         `outputs` are of the layer with its batch normalisation folded into it
    input_blocks   the blocks on the diagonal of A, each [groups, b, b]; a single one if it is whole
    output_blocks  the same of S
    """

    layer: Layer
    has_bias: bool
    folded: bool
    input_blocks: tuple[Tensor, ...]
    output_blocks: tuple[Tensor, ...]

    @cached_property
    def inputs(self) -> Tensor:
        """A, [groups, d_A, d_A]: channel by channel its kernel positions, then the constant."""
        return _dense(self.input_blocks)

    @cached_property
    def outputs(self) -> Tensor:
        """S, [groups, d_S, d_S]."""
        return _dense(self.output_blocks)

    @property
    def groups(self) -> int:
        """The groups of a grouped convolution, else 1."""
        return self.layer.groups

    @property
    def kernel(self) -> int:
        """How many positions the kernel has: 1 for a linear layer."""
        return self.layer.kernel

    @property
    def is_whole(self) -> bool:
        """False if a factor is block-diagonal, because all of it would take too much memory."""
        return len(self.input_blocks) == len(self.output_blocks) == 1

    @cached_property
    def channels(self) -> Tensor:
        """A of the channels alone, averaged over kernel positions: [groups, c, c], no constant."""
        size = self.layer.inputs
        own = self.inputs[:, :size, :size]
        shape = self.groups, size // self.kernel, self.kernel, size // self.kernel, self.kernel
        return own.reshape(shape).diagonal(dim1=2, dim2=4).mean(-1)


def kronecker_factors(
    passes: Passes, positions: Positions, fold: bool, memory: int
) -> Mapping[str, KroneckerFactors]:
    """The factors of all layers that `find_layers` finds, by name; see `Statistics.kronecker`."""
    if positions not in _KINDS:
        raise AnalysisError(f"positions are 'expanded' or 'reduced', not {positions!r}.")
    layers = find_layers(passes.analysis.traced)
    factors = {layer.name: _Factors(layer, fold, memory, passes.device) for layer in layers}
    watched = {layer.name: _KINDS[positions](layer, factors[layer.name]) for layer in layers}
    count = accumulate(passes, layers, fold, "Kronecker factors", watched)
    found = {layer.name: factors[layer.name].finished(count) for layer in layers}
    cut = [name for name, one in found.items() if not one.is_whole]
    if cut:
        warnings.warn(
            f"{len(cut)} of {len(found)} layers have Kronecker factors of more than {memory:,} "
            f"bytes; blocks on their diagonals are kept. They are {', '.join(cut[:5])}"
            f"{' ...' if len(cut) > 5 else ''}.",
            BlockDiagonalWarning,
            stacklevel=3,
        )
    return found


def kronecker_moments(passes: Passes, bases: Bases, fold: bool) -> Mapping[str, Tensor]:
    """E_n[(Q_Sᵀ ∂L_n/∂W Q_A)²] per layer; see `Statistics.kronecker_moments`."""
    layers = [layer for layer in find_layers(passes.analysis.traced) if layer.name in bases]
    unknown = bases.keys() - {layer.name for layer in layers}
    if unknown:
        raise AnalysisError(f"the graph has no linear layer or convolution {min(unknown)!r}.")
    watched = {
        layer.name: _Moments(layer, has_constant(layer, fold), bases[layer.name], passes.device)
        for layer in layers
    }
    count = accumulate(passes, layers, fold, "second moments", watched)
    return {name: distributed.summed(one.total) / count for name, one in watched.items()}


def has_constant(layer: Layer, fold: bool) -> bool:
    """Whether a layer's patches end with a constant 1."""
    return layer.bias is not None or (fold and layer.norm is not None)


class _Factors:
    """Sums that become the factors of one layer."""

    def __init__(self, layer: Layer, fold: bool, memory: int, device: torch.device) -> None:
        self.layer, self.folded = layer, fold and layer.norm is not None
        self.has_bias = has_constant(layer, fold)
        sizes = layer.inputs + self.has_bias, layer.outputs
        steps = layer.kernel, 1
        self.spans = [
            _spans(size, step, layer.groups, memory)
            for size, step in zip(sizes, steps, strict=True)
        ]
        self.sums = [
            [
                torch.zeros(layer.groups, hi - lo, hi - lo, dtype=torch.float64, device=device)
                for lo, hi in spans
            ]
            for spans in self.spans
        ]

    def reset(self) -> None:
        for side in self.sums:
            for block in side:
                block.zero_()

    def add(self, side: int, columns: Tensor, scale: float) -> None:
        """Add scale · c cᵀ of each column c: [groups, d, columns]; side 0 is A, 1 is S."""
        for (lo, hi), block in zip(self.spans[side], self.sums[side], strict=True):
            part = columns[:, lo:hi]
            block.baddbmm_(part, part.mT, alpha=scale)

    def finished(self, count: float) -> KroneckerFactors:
        """The means over the samples of all ranks, symmetric to the last bit."""
        blocks = [
            tuple(_symmetric(distributed.summed(block) / count) for block in side)
            for side in self.sums
        ]
        return KroneckerFactors(self.layer, self.has_bias, self.folded, *blocks)


class _Expanded:
    """Adds up the outer products of all positions as they pass."""

    def __init__(self, layer: Layer, factors: _Factors) -> None:
        self.layer, self.factors = layer, factors

    def reset(self) -> None:
        """Forget all."""
        self.factors.reset()

    def begin(self, samples: int, positions: int) -> None:
        """A part with so many samples and, over all uses, positions comes."""
        self.scale = samples / max(positions, 1)

    def forward(self, call: object, x: Tensor, known: Tensor) -> None:
        """A use reads `x`."""
        for chunk in self.layer.chunks(x, _CHUNK):
            columns = with_constant(self.layer.columns(chunk), self.factors.has_bias)
            self.factors.add(0, columns.double(), self.scale)

    def backward(self, call: object, gradient: Tensor) -> None:
        """The gradient by what a use returned."""
        self.factors.add(1, self.layer.gradients(gradient).double(), 1.0)

    def end(self) -> None:
        """The part is over."""


class _Reduced(PerSample):
    """Adds up the outer products of the mean patch and the summed gradient of each sample."""

    def __init__(self, layer: Layer, factors: _Factors) -> None:
        super().__init__(layer, factors.has_bias, _CHUNK)
        self.factors = factors

    def reset(self) -> None:
        """Forget all."""
        self.factors.reset()

    def add(self, columns: Tensor, gradients: Tensor) -> None:
        self.factors.add(0, columns.mean(-1), 1.0)
        self.factors.add(1, gradients.sum(-1), 1.0)


_KINDS: Mapping[str, Callable[[Layer, _Factors], Watcher]] = MappingProxyType(
    {"expanded": _Expanded, "reduced": _Reduced}
)


class _Moments(PerSample):
    """Adds up the squared entries of each sample's gradient by the weight in other bases."""

    def __init__(
        self, layer: Layer, has_bias: bool, bases: tuple[Tensor, Tensor], device: torch.device
    ) -> None:
        outputs, inputs = (_batched(q).to(device, torch.float64) for q in bases)
        channels = layer.inputs // layer.kernel
        self.apart = inputs.shape[-2] == channels and layer.kernel > 1
        whole = layer.inputs + has_bias
        if inputs.shape[-2] not in (channels, layer.inputs, whole) or (
            outputs.shape[-2] != layer.outputs
        ):
            raise AnalysisError(
                f"layer {layer.name!r} has {layer.outputs} outputs and {whole} inputs per group "
                f"({channels} channels); the bases have {outputs.shape[-2]} and "
                f"{inputs.shape[-2]} rows."
            )
        super().__init__(layer, inputs.shape[-2] == layer.inputs + 1, _CHUNK)
        self.q_outputs, self.q_inputs = outputs, inputs
        width = inputs.shape[-1] * (layer.kernel if self.apart else 1)
        self.total = torch.zeros(
            layer.groups, outputs.shape[-1], width, dtype=torch.float64, device=device
        )

    def reset(self) -> None:
        """Forget all."""
        self.total.zero_()

    def add(self, columns: Tensor, gradients: Tensor) -> None:
        outer = torch.einsum("gint,gjnt->ngij", gradients, columns)
        if self.apart:
            outer = outer.unflatten(-1, (-1, self.layer.kernel))
            turned = torch.einsum("gia,ngijk,gjb->ngabk", self.q_outputs, outer, self.q_inputs)
            turned = turned.flatten(-2)
        else:
            turned = self.q_outputs.mT @ outer @ self.q_inputs
        self.total += turned.square().sum(0)


def with_constant(columns: Tensor, constant: bool) -> Tensor:
    """[groups, d, ...] with a row of ones below, if so asked."""
    return torch.cat([columns, torch.ones_like(columns[:, :1])], 1) if constant else columns


def _batched(basis: Tensor) -> Tensor:
    return basis[None] if basis.dim() == 2 else basis


def _spans(size: int, step: int, groups: int, memory: int) -> list[tuple[int, int]]:
    """Blocks on the diagonal of [groups, size, size] float64 that together fit into memory.

    They end after whole channels of `step` entries, if one channel fits.
    """
    if 8 * groups * size * size <= memory:
        return [(0, size)]
    width = max(1, memory // (8 * groups * size))
    width = width // step * step or width
    return [(low, min(low + width, size)) for low in range(0, size, width)]


def _symmetric(factor: Tensor) -> Tensor:
    return (factor + factor.mT) / 2


def _dense(blocks: tuple[Tensor, ...]) -> Tensor:
    if len(blocks) == 1:
        return blocks[0]
    return torch.stack([torch.block_diag(*parts) for parts in zip(*blocks, strict=True)])
