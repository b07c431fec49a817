"""EigenDamage: the eigenbasis of a layer's Kronecker-factored Fisher information.

In the eigenbases of A and S the curvature is nearly diagonal, and the loss that a coordinate w' of
the core costs is ½ w'² λ_S λ_A; or, measured in that basis, ½ w'² E[(∂L/∂w')²] (EKFAC).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fxprune.errors import PlanError
from fxprune.factorization.bases import Rotated, core
from fxprune.factorization.layers import FactorLayer
from fxprune.plans import Bases
from fxprune.statistics import Statistics

Layers = Mapping[str, FactorLayer]


def eigenbases(
    layers: Layers, statistics: Statistics, current: Mapping[str, Bases]
) -> dict[str, Rotated]:
    """The layers' weights in their eigenbases, inside of what the current bases leave.

    `statistics` are those of the network as the current bases leave it. The factors are restricted
    to the directions that are left, and their eigenvectors are merged with those: Q_old Q_new.
    """
    factors = statistics.channel_factors
    return {
        name: in_eigenbasis(
            layer.weight, factors[name].inputs[0], factors[name].outputs[0], current.get(name)
        )
        for name, layer in layers.items()
    }


def with_moments(
    layers: Layers, statistics: Statistics, current: Mapping[str, Bases]
) -> dict[str, Rotated]:
    """The same bases, with second moments of the gradients in place of products of eigenvalues.

    They take another pass over the data.
    """
    found = eigenbases(layers, statistics, current)
    bases = {name: (rotated.outputs, rotated.inputs) for name, rotated in found.items()}
    moments = statistics.kronecker_moments(bases)
    result = {}
    for name, rotated in found.items():
        entries = core(layers[name].weight, rotated.inputs, rotated.outputs)
        saliency = 0.5 * (entries.square() * moments[name][0].reshape(entries.shape)).sum(2)
        result[name] = replace(rotated, saliency=saliency).ordered()
    return result


def in_eigenbasis(
    weight: Tensor, inputs: Tensor, outputs: Tensor, current: Bases | None = None
) -> Rotated:
    """A weight [outputs, inputs, taps] in the eigenbases of its factors A and S."""
    values_in, basis_in = _eigen(inputs, None if current is None else current.inputs)
    values_out, basis_out = _eigen(outputs, None if current is None else current.outputs)
    squares = core(weight, basis_in, basis_out).square().sum(2)
    saliency = 0.5 * squares * values_out[:, None] * values_in[None, :]
    return Rotated(basis_in, basis_out, saliency).ordered()


def _eigen(factor: Tensor, within: Tensor | None) -> tuple[Tensor, Tensor]:
    """Eigenvalues [rank], none negative, and eigenvectors [size, rank] within a basis."""
    if not bool(factor.isfinite().all()):
        raise PlanError("A Kronecker factor is not finite: the data or the loss hold NaN or inf.")
    if within is not None:
        factor = within.T @ factor @ within
    values, vectors = torch.linalg.eigh((factor + factor.T) / 2)
    return values.clamp_min(0), vectors if within is None else within @ vectors
