"""EigenDamage: the eigenbasis of a layer's Kronecker-factored Fisher information.

In the eigenbases of A and S the curvature is nearly diagonal, and the loss that a coordinate w' of
the core costs is ½ w'² λ_S λ_A; or, measured in that basis, ½ w'² E[(∂L/∂w')²] (EKFAC).

Damping adds to A and S a share of their mean eigenvalue: A + π√δ and S + √δ/π with
π² = (tr A / d_A) / (tr S / d_S) and δ = damping · (tr A / d_A) (tr S / d_S). Directions that too
few samples show no curvature in are then not taken for free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.errors import PlanError
from fxprune.factorization.bases import Rotated, core
from fxprune.factorization.layers import FactorLayer
from fxprune.plans import Bases
from fxprune.statistics import Statistics
from fxprune.statistics.channels import ChannelFactors

Layers = Mapping[str, FactorLayer]


def eigenbases(
    layers: Layers, statistics: Statistics, current: Mapping[str, Bases], damping: float
) -> dict[str, Rotated]:
    """The layers' weights in their eigenbases, inside of what the current bases leave.

    `statistics` are those of the network as the current bases leave it. The factors are restricted
    to the directions that are left, and their eigenvectors are merged with those: Q_old Q_new.
    """
    factors = statistics.channel_factors
    return {
        name: in_eigenbasis(layer.weight, factors[name], current.get(name), damping)
        for name, layer in layers.items()
    }


def with_moments(
    layers: Layers, statistics: Statistics, current: Mapping[str, Bases], damping: float
) -> dict[str, Rotated]:
    """The same bases, with second moments of the gradients in place of products of eigenvalues.

    They take another pass over the data. Damping adds to them what it adds to the products.
    """
    factors = statistics.channel_factors
    spectra = {name: _spectrum(factors[name], current.get(name)) for name in layers}
    moments = statistics.kronecker_moments({n: (s.outputs, s.inputs) for n, s in spectra.items()})
    found = {}
    for name, spectrum in spectra.items():
        entries = core(layers[name].weight, spectrum.inputs, spectrum.outputs)
        added = spectrum.curvature(damping) - spectrum.curvature(0.0)
        curvature = moments[name][0].reshape(entries.shape) + added[:, :, None]
        saliency = 0.5 * (entries.square() * curvature).sum(2)
        found[name] = Rotated(spectrum.inputs, spectrum.outputs, saliency).ordered()
    return found


def in_eigenbasis(
    weight: Tensor, factors: ChannelFactors, current: Bases | None = None, damping: float = 0.0
) -> Rotated:
    """A weight [outputs, inputs, taps] in the eigenbases of its factors A and S."""
    spectrum = _spectrum(factors, current)
    squares = core(weight, spectrum.inputs, spectrum.outputs).square().sum(2)
    saliency = 0.5 * squares * spectrum.curvature(damping)
    return Rotated(spectrum.inputs, spectrum.outputs, saliency).ordered()


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """Eigenvectors of A and S, [size, rank], and their eigenvalues, none of them negative."""

    inputs: Tensor
    outputs: Tensor
    input_values: Tensor
    output_values: Tensor

    def curvature(self, damping: float) -> Tensor:
        """λ_S λ_Aᵀ of the damped factors, [rows, columns]."""
        share = math.sqrt(damping)  # π√δ is this share of the mean eigenvalue of A, √δ/π that of S
        damped = (v + share * v.mean() for v in (self.output_values, self.input_values))
        return torch.outer(*damped)


def _spectrum(factors: ChannelFactors, current: Bases | None) -> _Spectrum:
    """Of one layer; within the current bases, where there are any."""
    inputs, values = _eigen(factors.inputs[0], None if current is None else current.inputs)
    outputs, others = _eigen(factors.outputs[0], None if current is None else current.outputs)
    return _Spectrum(inputs, outputs, values, others)


def _eigen(factor: Tensor, within: Tensor | None) -> tuple[Tensor, Tensor]:
    """Eigenvectors [size, rank] within a basis, and eigenvalues [rank]."""
    if not bool(factor.isfinite().all()):
        raise PlanError("A Kronecker factor is not finite: the data or the loss hold NaN or inf.")
    if within is not None:
        factor = within.T @ factor @ within
    values, vectors = torch.linalg.eigh((factor + factor.T) / 2)
    return vectors if within is None else within @ vectors, values.clamp_min(0)
