"""Bases for a weight, and how much each of its coordinates matters in them.

A weight is [outputs, inputs, taps] here: a linear layer has one tap. In bases Q_S of the outputs
and Q_A of the inputs it is the core Q_Sᵀ W Q_A, tap by tap.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SWEEPS = 20
_SETTLED = 1e-6


@dataclass(frozen=True, eq=False)
class Rotated:
    """A weight in a basis of its inputs and one of its outputs, the most important first.

    inputs    [inputs, columns] float64, orthonormal columns
    outputs   [outputs, rows] float64, orthonormal columns
    saliency  [rows, columns] float64: the loss when an entry of the core becomes zero, all taps
              together; that of a set of rows and columns is the sum over their union
    both      whether the inputs and the outputs may lose directions at once
    """

    inputs: Tensor
    outputs: Tensor
    saliency: Tensor
    both: bool = True

    def ordered(self) -> Rotated:
        """The same with rows and columns in descending order of their sums."""
        rows = self.saliency.sum(1).argsort(descending=True, stable=True)
        columns = self.saliency.sum(0).argsort(descending=True, stable=True)
        saliency = self.saliency[rows][:, columns]
        return Rotated(self.inputs[:, columns], self.outputs[:, rows], saliency, self.both)


def core(weight: Tensor, inputs: Tensor | None, outputs: Tensor | None) -> Tensor:
    """Q_Sᵀ W Q_A, tap by tap: [rows, columns, taps]; None for a side that stays as it is."""
    if inputs is not None:
        weight = torch.einsum("oit,ib->obt", weight, inputs)
    if outputs is not None:
        weight = torch.einsum("oit,oa->ait", weight, outputs)
    return weight


def squared_error(weight: Tensor, both: bool) -> Rotated:
    """The bases of the higher-order SVD, in which the saliency is a share of ‖W‖².

    Without `both` these are the two truncated SVDs of the weight as a matrix: outputs × (inputs,
    taps), and inputs × (outputs, taps). A weight of zeros has saliencies of zero.
    """
    outputs = _left_vectors(weight.flatten(1))
    inputs = _left_vectors(weight.transpose(0, 1).flatten(1))
    entries = core(weight, inputs, outputs).square().sum(2)
    total = entries.sum()
    saliency = entries / total if total > 0 else entries
    return Rotated(inputs, outputs, saliency, both).ordered()


def refined(weight: Tensor, rotated: Rotated, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """(inputs, outputs) of these ranks by higher-order orthogonal iteration (HOOI).

    The error of the Tucker-2 approximation falls with every sweep, from that of the leading
    directions of `rotated`.
    """
    inputs, outputs = rotated.inputs[:, :columns], rotated.outputs[:, :rows]
    kept = core(weight, inputs, outputs).square().sum()
    for _ in range(_SWEEPS):
        outputs = _left_vectors(core(weight, inputs, None).flatten(1))[:, :rows]
        read = core(weight, None, outputs).transpose(0, 1)
        inputs = _left_vectors(read.flatten(1))[:, :columns]
        before, kept = kept, core(weight, inputs, outputs).square().sum()
        if kept - before <= _SETTLED * kept:
            break
    return inputs, outputs


def _left_vectors(matrix: Tensor) -> Tensor:
    """The left singular vectors, the largest singular value first; they span the whole space.

    From the eigenvectors of the Gram matrix, much faster for wide matrices. What that loses are
    directions of singular values below 1e-8 of the largest, whose squares vanish in the error.
    """
    vectors: Tensor = torch.linalg.eigh(matrix @ matrix.T).eigenvectors
    return vectors.flip(1)
