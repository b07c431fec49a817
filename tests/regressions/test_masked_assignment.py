"""`x[mask] = value`: features are followed through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.masking import random_plan

Assign: TypeAlias = Callable[["Masked", Tensor, Tensor], None]


class Masked(nn.Module):
    """Tokens that a mask picks are overwritten between two layers."""

    def __init__(self, assign: Assign) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.token = nn.Parameter(torch.randn(16))
        self.assign = assign

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = self.first(x).clone()
        self.assign(self, hidden, mask)
        result: Tensor = self.last(hidden)
        return result


def zero(model: Masked, hidden: Tensor, mask: Tensor) -> None:
    hidden[mask] = 0.0


def learned(model: Masked, hidden: Tensor, mask: Tensor) -> None:
    hidden[~mask] = model.token


def of_its_own(model: Masked, hidden: Tensor, mask: Tensor) -> None:
    hidden[hidden > 0.5] = 0.5


def of_a_part(model: Masked, hidden: Tensor, mask: Tensor) -> None:
    hidden[:, 1:][mask[:, 1:]] = 1.0


@pytest.mark.parametrize("assign", [zero, learned, of_its_own, of_a_part])
def test_features_are_prunable(assign: Assign) -> None:
    torch.manual_seed(0)
    model = Masked(assign).double().eval()
    mask = torch.rand(3, 7) > 0.5
    traced = fxprune.trace(model, (torch.randn(2, 5, 8, dtype=torch.float64), mask[:2, :5]))
    analysis = fxprune.analyze(traced)
    assert {row.reason for row in analysis.coverage().frozen} <= {"model input", "model output"}
    inputs = torch.randn(3, 7, 8, dtype=torch.float64), mask
    assert torch.equal(traced(*inputs), model(*inputs))
    for seed in range(3):
        plan = random_plan(analysis, seed)
        pruned = fxprune.rewrite(traced, plan)
        assert fxprune.verify(traced, plan, pruned, inputs).ok
