"""What a layer loses with some of its rows or columns, to second order: K-FAC in closed form.

The loss rises by ½ tr(S W A Wᵀ) over the rows W_P that go; so on the other side with the columns
and S and A exchanged. One `Quadratic` holds either: a metric (S for rows, A for columns) and a gram
(W A Wᵀ for rows, Wᵀ S W for columns).

    without compensation    ½ Σ_{i,j in P} metric_ij gram_ij
    with it (OBS)           ½ tr([(metric⁻¹)_PP]⁻¹ gram_PP)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from fxprune.criteria.sides import Slice
from fxprune.errors import AnalysisError
from fxprune.statistics import KroneckerFactors, Statistics


@dataclass(frozen=True)
class Damping:
    """Damping of both factors: A + π√δ and S + √δ/π.

    π² = (tr A / d_A) / (tr S / d_S) and δ = share · (tr A / d_A)(tr S / d_S), so that each factor
    gets √share of its mean diagonal.
    """

    pi: float
    delta: float

    @property
    def inputs(self) -> float:
        """What A's diagonal gets."""
        return self.pi * math.sqrt(self.delta)

    @property
    def outputs(self) -> float:
        """What S's diagonal gets."""
        return math.sqrt(self.delta) / self.pi


def damping_of(factors: KroneckerFactors, share: float) -> Damping:
    """The damping of a layer's factors; none for a layer whose loss or inputs are constant zero."""
    inputs, outputs = _mean_diagonal(factors.input_blocks), _mean_diagonal(factors.output_blocks)
    if inputs <= 0 or outputs <= 0:
        return Damping(1.0, 0.0)
    return Damping((inputs / outputs) ** 0.5, share * inputs * outputs)


def damped(factors: KroneckerFactors, share: float) -> KroneckerFactors:
    """The factors with damping, see `Damping`."""
    if share == 0:
        return factors
    damping = damping_of(factors, share)
    return replace(
        factors,
        input_blocks=tuple(_shifted(block, damping.inputs) for block in factors.input_blocks),
        output_blocks=tuple(_shifted(block, damping.outputs) for block in factors.output_blocks),
    )


@dataclass(frozen=True, eq=False)
class Quadratic:
    """One block on the diagonal of a metric.

    metric  [n, n], symmetric and positive semi-definite
    gram    [n, n]
    slots   int64 [n]: the unit slot of each row or column, -1 for none
    """

    metric: Tensor
    gram: Tensor
    slots: Tensor

    @cached_property
    def inverse(self) -> Tensor:
        """The inverse of the metric; AnalysisError if it has none."""
        return inverse(self.metric)

    @cached_property
    def owned(self) -> Sequence[tuple[Tensor, Tensor]]:
        """The slots by how much they own: slots [u] and their indices [u, k]."""
        order = self.slots.argsort(stable=True)
        order = order[self.slots[order] >= 0]
        slots, counts = self.slots[order].unique_consecutive(return_counts=True)
        starts = counts.cumsum(0) - counts
        found = []
        for count in counts.unique().tolist():
            here = counts == count
            index = starts[here][:, None] + torch.arange(count, device=order.device)
            found.append((slots[here], order[index]))
        return found


def quadratics(piece: Slice, factors: KroneckerFactors, weight: Tensor) -> Iterator[Quadratic]:
    """The forms of a layer's part of a group.

    factors  of its layer, damped or not
    weight   [groups, d_S, d_A], see `matrix`
    """
    own, other = factors.output_blocks, factors.input_blocks
    if not piece.rows:
        own, other, weight = other, own, weight.mT
    for number in range(factors.groups):
        slots = piece.slots[number].to(weight.device)
        low = 0
        for block in own:
            high = low + block.shape[-1]
            known = slots[low:high]
            # The constant is no unit's.
            padded = torch.cat([known, known.new_full((high - low - len(known),), -1)])
            gram = gram_of(weight[number, low:high], [b[number] for b in other])
            yield Quadratic(block[number], gram, padded)
            low = high


def gram_of(rows: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    """Rows · M · rowsᵀ for a block-diagonal M."""
    parts = rows.split([block.shape[-1] for block in blocks], -1)
    return sum(
        (part @ block @ part.mT for part, block in zip(parts, blocks, strict=True)),
        rows.new_zeros(len(rows), len(rows)),
    )


def matrix(factors: KroneckerFactors, statistics: Statistics) -> Tensor:
    """The layer's weight as its factors see it: [groups, d_S, d_A], float64.

    The bias is the last column where the factors have a constant; a batch normalisation that is
    folded into the factors is folded into the weight.
    """
    layer, parameters = factors.layer, statistics.parameters
    first, last = layer.rows
    weight = parameters[layer.weight][first:last].double().reshape(last - first, -1)
    if factors.has_bias:
        bias = weight.new_zeros(len(weight))
        if layer.bias is not None:
            bias = parameters[layer.bias][first:last].double()
        if factors.folded:
            assert layer.norm is not None
            fold = Fold.of(statistics.analysis.traced, layer.norm)
            weight, bias = fold.scale[:, None] * weight, fold.scale * bias + fold.shift
        weight = torch.cat([weight, bias[:, None]], 1)
    return weight.reshape(layer.groups, layer.outputs, -1)


@dataclass(frozen=True, eq=False)
class Fold:
    """A batch normalisation in eval mode as x · scale + shift, float64 [channels]."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, traced: fx.GraphModule, name: str) -> Fold:
        """The one of this name; it must keep running statistics."""
        norm = traced.get_submodule(name)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight.detach().double()
        shift = -norm.running_mean.double() * scale
        return cls(scale, shift + norm.bias.detach().double() if norm.affine else shift)


def inverse(metric: Tensor) -> Tensor:
    """The inverse of a symmetric positive definite matrix. AnalysisError if it is singular."""
    if not bool(metric.any()):  # nothing that the layer does changes the loss
        return torch.eye(len(metric), dtype=metric.dtype, device=metric.device) / _NOTHING
    root, failed = torch.linalg.cholesky_ex(metric)
    if int(failed):
        raise AnalysisError(
            f"a Kronecker factor of {len(metric)} rows has no inverse: the samples do not reach "
            "all directions. Use a damping above zero."
        )
    return torch.cholesky_inverse(root)


_NOTHING = 1e-150


def _mean_diagonal(blocks: Sequence[Tensor]) -> float:
    traces = sum(float(block.diagonal(dim1=1, dim2=2).sum()) for block in blocks)
    return traces / sum(block.shape[0] * block.shape[1] for block in blocks)


def _shifted(block: Tensor, amount: float) -> Tensor:
    return block + amount * torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)
