"""Neighbouring features that rotate as pairs, written with slices and a stack."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune
from fxprune.algebra import Algebra
from fxprune.axes import Atom, find


class Rotation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.register_buffer("angles", torch.rand(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        angles = self.angles.repeat_interleave(2, dim=-1)
        turned = torch.stack((-y[..., 1::2], y[..., ::2]), dim=-1).flatten(-2)
        return self.head(y * angles.cos() + turned * angles.sin())


def test_pairs_go_together() -> None:
    # A unit that a unit of its own size conditions was frozen with the condition.
    analysis = fxprune.analyze(fxprune.trace(Rotation(), torch.randn(2, 7, 5)), strict=True)
    (group,) = [g for g in analysis.groups if any(m.parameter == "head.weight" for m in g.members)]
    assert group.size == 3
    (member,) = [m for m in group.members if m.parameter == "features.weight"]
    assert member.unit.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_conditioned_unit_stays_free() -> None:
    algebra = Algebra()
    unit, condition = algebra.atom(1), algebra.atom(1)
    algebra.unify(unit, algebra.product([condition, unit]))
    found = find(unit)
    assert isinstance(found, Atom)
    assert found.reason is None
    assert condition.reason is not None
