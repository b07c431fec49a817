"""`x[mask] = value`: features are followed through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.masking import assert_random_plans_hold

Assign: TypeAlias = Callable[["Masked", Tensor, Tensor], None]


class Masked(nn.Module):
    """Tokens that a mask picks are overwritten between two layers."""

    def __init__(self, assign: Assign) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.token, self.part = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(12))
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


def of_features(model: Masked, hidden: Tensor, mask: Tensor) -> None:
    """The mask loses what the features lose."""
    hidden[:, :, model.token > 0] = 1.5


def of_one_token(model: Masked, hidden: Tensor, mask: Tensor) -> None:
    hidden[:, 0, model.token > 0] = 1.5


def of_columns(model: Masked, hidden: Tensor, mask: Tensor) -> None:
    hidden.transpose(0, 2)[model.token > 0] = 1.5


def of_entries(model: Masked, hidden: Tensor, mask: Tensor) -> None:
    hidden.view(-1)[hidden.view(-1) > 0.2] = 1.0


def of_the_last_features(model: Masked, hidden: Tensor, mask: Tensor) -> None:
    """The mask takes two dimensions, so that the slice is of the third."""
    hidden[mask, 4:] = model.part


def of_the_first_features(model: Masked, hidden: Tensor, mask: Tensor) -> None:
    hidden[mask, ..., :4] = 1.0


ASSIGNMENTS = (
    zero, learned, of_its_own, of_a_part, of_features, of_one_token, of_columns, of_entries,
    of_the_last_features, of_the_first_features,
)  # fmt: skip


@pytest.mark.parametrize("assign", ASSIGNMENTS)
def test_features_are_prunable(assign: Assign) -> None:
    torch.manual_seed(0)
    model = Masked(assign).double().eval()
    mask = torch.rand(3, 7) > 0.5
    traced = fxprune.trace(model, (torch.randn(2, 5, 8, dtype=torch.float64), mask[:2, :5]))
    analysis = fxprune.analyze(traced)
    assert {row.reason for row in analysis.coverage().frozen} <= {"model input", "model output"}
    inputs = torch.randn(3, 7, 8, dtype=torch.float64), mask
    assert torch.equal(traced(*inputs), model(*inputs))
    assert_random_plans_hold(traced, analysis, inputs)
