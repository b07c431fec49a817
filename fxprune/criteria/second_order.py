"""Criteria from the curvature of the loss: optimal brain damage and optimal brain surgeon.

All of them look at one side of a group (see `fxprune.criteria.sides`) and sum over its layers. The
Fisher information stands for the Hessian; labels are drawn from the model, as its definition says,
unless `labels="empirical"` asks for those of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxprune.criteria.quadratic import (
    Fold,
    Quadratic,
    damped,
    inverse,
    matrix,
    quadratics,
)
from fxprune.criteria.removal import (
    by_slot,
    greedy_obd_costs,
    greedy_obs_costs,
    obd_costs,
    obs_costs,
)
from fxprune.criteria.sides import Side, SideName, Slice, find_side
from fxprune.errors import NotApplicableError
from fxprune.groups import Group
from fxprune.statistics import KroneckerFactors, Labels, Statistics
from fxprune.statistics.layers import Layer

_KRONECKER = frozenset({"kronecker"})


@dataclass(frozen=True)
class Obd:
    """½ Σ θ² F_θθ over the weights of each unit, with the exact diagonal of the Fisher information.

    On the consumer side the weights that read the unit; on the producer side (C-OBD) those that
    make it, with its bias.
    """

    side: SideName = "consumer"
    labels: ClassVar[Labels] = "model"
    requires: ClassVar[Set[str]] = frozenset({"fisher_diag"})

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape."""
        side = find_side(group, statistics.analysis, statistics.layers, self.side)
        return _by_entries(group, side, lambda piece: obd_saliency(piece.layer, statistics))


@dataclass(frozen=True)
class Obs:
    """½ Σ w²_ij / ([S⁻¹]_ii [A⁻¹]_jj) over the weights of each unit: OBS of single weights.

    On the producer side it is C-OBS. `damping` is a share, see `Damping`.
    """

    side: SideName = "consumer"
    damping: float = 1e-3
    labels: ClassVar[Labels] = "model"
    requires: ClassVar[Set[str]] = _KRONECKER

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape."""
        side = find_side(group, statistics.analysis, statistics.layers, self.side)
        found = statistics.kronecker(fold=True)

        def entries(piece: Slice) -> Tensor:
            return obs_saliency(found[piece.layer.name], statistics, self.damping)

        return _by_entries(group, side, entries)


@dataclass(frozen=True)
class _Kron:
    """What the loss loses with a group's rows or columns, by the Kronecker factors of their layers.

    side     which of them; the other one where that will not do, see `find_side`
    damping  a share, see `Damping`
    """

    side: SideName = "producer"
    damping: float = 0.0
    labels: ClassVar[Labels] = "model"
    requires: ClassVar[Set[str]] = _KRONECKER

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape, float64; NotApplicableError if neither side will do."""
        side = find_side(group, statistics.analysis, statistics.layers, self.side)
        forms = tuple(forms_of(side, statistics, self.damping))
        return self._costs(forms, group.slots).reshape(group.shape) / side.share

    def _costs(self, forms: Sequence[Quadratic], count: int) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class KronObd(_Kron):
    """½ Σ_ij S_ij w_iᵀ A w_j over the rows of each unit: what the loss loses with them.

    On the consumer side the same with its columns. `damping` is a share, see `Damping`.
    """

    _costs = staticmethod(obd_costs)


@dataclass(frozen=True)
class KronObs(_Kron):
    """½ tr([(S⁻¹)_PP]⁻¹ W_P A W_Pᵀ) over the rows P of each unit: what the loss loses with them
    once all other rows of the layer have made up for them.

    On the consumer side the same with columns, S and A exchanged. `damping` is a share, see
    `Damping`.
    """

    damping: float = 1e-3
    _costs = staticmethod(obs_costs)


@dataclass(frozen=True)
class KronObdSets(_Kron):
    """Kron-OBD of sets: units go one by one, each time the one that adds least to the loss.

    A unit's score is what it adds when it goes (at least that of those before it), so that the
    lowest scores are the set that was chosen. Everything is in closed form: no new pass.
    """

    _costs = staticmethod(greedy_obd_costs)


@dataclass(frozen=True)
class KronObsSets(_Kron):
    """Kron-OBS of sets: like `KronObdSets`, each time after the rest has made up for the unit."""

    damping: float = 1e-3
    _costs = staticmethod(greedy_obs_costs)


def forms_of(side: Side, statistics: Statistics, damping: float) -> Iterator[Quadratic]:
    """The quadratic forms of one side of a group."""
    found = statistics.kronecker(fold=True)
    for piece in side.slices:
        factors = found[piece.layer.name]
        weight = matrix(factors, statistics)
        yield from quadratics(piece, damped(factors, damping), weight)


def obs_saliency(factors: KroneckerFactors, statistics: Statistics, damping: float) -> Tensor:
    """½ w²_ij / ([S⁻¹]_ii [A⁻¹]_jj) of every single weight: [groups, d_S, d_A]."""
    regular = damped(factors, damping)
    inputs, outputs = (
        torch.cat([torch.stack([inverse(m).diagonal() for m in b]) for b in blocks], -1)
        for blocks in (regular.input_blocks, regular.output_blocks)
    )
    squares = matrix(factors, statistics).square()
    return 0.5 * squares / outputs[:, :, None] / inputs[:, None, :]


def obd_saliency(layer: Layer, statistics: Statistics) -> Tensor:
    """½ θ² F_θθ of every single weight, the bias in the last column: [groups, d_S, d_A].

    Of a layer with its batch normalisation folded into it: the weights' are the same.
    NotApplicableError if a parameter has no gradient.
    """
    first, last = layer.rows
    fisher, parameters = statistics.fisher_diag(), statistics.parameters

    def own(name: str) -> Tensor:
        if name not in fisher:  # frozen parameters have no gradient
            raise NotApplicableError(f"{name} has no gradient")
        return fisher[name][first:last]

    squares = parameters[layer.weight][first:last].double().square() * own(layer.weight)
    table = squares.flatten(1)
    bias = None if layer.bias is None else parameters[layer.bias][first:last].double()
    if layer.norm is not None:
        fold = Fold.of(statistics.analysis.traced, layer.norm)
        shifted = fold.shift if bias is None else fold.scale * bias + fold.shift
        ones = statistics.analysis.traced.get_submodule(layer.norm).bias
        if isinstance(ones, Tensor):
            table = torch.cat([table, (shifted.square() * own(f"{layer.norm}.bias"))[:, None]], 1)
    elif layer.bias is not None and bias is not None:
        table = torch.cat([table, (bias.square() * own(layer.bias))[:, None]], 1)
    return 0.5 * table.reshape(layer.groups, layer.outputs, -1)


def _by_entries(group: Group, side: Side, entries: Callable[[Slice], Tensor]) -> Tensor:
    """Sums of a table [groups, d_S, d_A] of each slice over what each unit owns in it."""
    parts = []
    for piece in side.slices:
        table = entries(piece)
        sums = table.sum(2 if piece.rows else 1)[:, : piece.slots.shape[1]]
        parts.append(by_slot(sums.reshape(-1), piece.slots.reshape(-1), group.slots))
    return torch.stack(parts).sum(0).reshape(group.shape) / side.share
