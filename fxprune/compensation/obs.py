"""Optimal brain surgeon: the rows of a layer that stay make up for those that go, by K-FAC."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from fxprune.compensation.edits import note
from fxprune.criteria.quadratic import Fold, damped, inverse, matrix
from fxprune.criteria.sides import find_side
from fxprune.errors import NotApplicableError
from fxprune.plans import PruningPlan
from fxprune.statistics import KroneckerFactors, Statistics
from fxprune.walks import named_tensors


def obs(plan: PruningPlan, statistics: Statistics, damping: float = 1e-3) -> PruningPlan:
    """ΔW = -S⁻¹[:, P] (S⁻¹[P, P])⁻¹ W[P] for the rows P of a layer that go.

    Where a group is scored by what reads it (see `fxprune.criteria.sides`), the columns that stay
    change. `damping` is a share, see `fxprune.criteria.quadratic.Damping`.
    """
    gone: dict[tuple[str, bool], Tensor] = {}
    left = []
    for name in plan.kept_units:
        group = plan.group(name)
        try:
            side = find_side(group, statistics.analysis, statistics.layers, "producer")
        except NotApplicableError:
            left.append(name)
            continue
        out = torch.cat([~plan.kept_mask(group).reshape(-1), torch.zeros(1, dtype=torch.bool)])
        for piece in side.slices:
            key = piece.layer.name, piece.rows
            gone[key] = gone.get(key, torch.tensor(False)) | out[piece.slots]
    found = statistics.kronecker(fold=True)
    edits = _Edits(statistics.analysis.traced)
    for layer in statistics.layers:
        mine = {
            rows: gone[layer.name, rows] for rows in (True, False) if (layer.name, rows) in gone
        }
        if mine:
            factors = damped(found[layer.name], damping)
            weight = matrix(factors, statistics)
            edits.add(factors, obs_update(factors, weight, mine) - weight)
    return plan.with_values(edits.values, note("OBS", edits.layers, left))


def obs_update(factors: KroneckerFactors, weight: Tensor, gone: Mapping[bool, Tensor]) -> Tensor:
    """The weight [groups, d_S, d_A] after its rows (True) and columns (False) in `gone`, bool
    [groups, n], went and the rest made up for them. What went is zero.
    """
    result = weight.clone()
    for number in range(factors.groups):
        for rows, out in gone.items():
            blocks = factors.output_blocks if rows else factors.input_blocks
            target = result[number] if rows else result[number].mT
            low = 0
            for block in blocks:
                high = low + block.shape[-1]
                p = out[number, low:high].nonzero()[:, 0].to(weight.device)
                if len(p):
                    m = inverse(block[number])
                    part = target[low:high]
                    part -= m[:, p] @ torch.linalg.solve(m[p[:, None], p], part[p])
                    part[p] = 0
                low = high
    return result


class _Edits:
    """New values of the original's parameters."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.layers: list[str] = []
        self.values: dict[str, Tensor] = {}
        self.originals = dict(named_tensors(traced))

    def add(self, factors: KroneckerFactors, change: Tensor) -> None:
        """Change a layer's parameters by what its weight, as the factors see it, changes by.

        change  [groups, d_S, d_A]
        """
        layer = factors.layer
        rows, flat = slice(*layer.rows), change.flatten(0, 1)
        weight, constant = flat[:, : layer.inputs], flat[:, layer.inputs :].sum(1)
        if factors.folded:
            assert layer.norm is not None
            scale = Fold.of(self.traced, layer.norm).scale
            weight = torch.where(scale[:, None] == 0, 0.0, weight / scale[:, None])
            if f"{layer.norm}.bias" in self.originals:
                self._add(f"{layer.norm}.bias", constant, rows)
            else:
                self._add(f"{layer.norm}.running_mean", -constant / scale, rows)
        elif layer.bias is not None:
            self._add(layer.bias, constant, rows)
        self._add(layer.weight, weight, rows)
        self.layers.append(layer.name)

    def _add(self, name: str, change: Tensor, rows: slice) -> None:
        value = self.values.setdefault(name, self.originals[name].detach().clone())
        part = value[rows]
        part.copy_((part.double() + change.reshape(part.shape)).to(part.dtype))
