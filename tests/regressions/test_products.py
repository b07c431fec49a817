"""An index that depends on several units of one group stays only if all of them do."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.zoo import checks


class OuterProduct(nn.Module):
    """Bilinear pooling: the features' outer product with themselves, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(5, 6)
        self.head = nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.head((y.unsqueeze(2) * y.unsqueeze(1)).flatten(1))


class ShuffledTransform(nn.Module):
    """A two-dimensional transform by one shared matrix, its coefficients in a fixed order."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Linear(6, 6, bias=False)
        self.head = nn.Linear(36, 4)
        self.order = [(7 * i) % 36 for i in range(36)]

    def forward(self, x: Tensor) -> Tensor:
        y = self.transform(self.transform(x).transpose(-1, -2)).transpose(-1, -2)
        return self.head(y.reshape(-1, 36)[:, self.order])


CASES = [(OuterProduct, (5,)), (ShuffledTransform, (6, 6))]


@pytest.mark.parametrize(("build", "shape"), CASES)
def test_squares_of_a_group(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    # One unit map per dimension forgot the first factor of D*D: sizes came out wrong.
    model = build().double()
    traced = fxprune.trace(model, torch.randn(2, *shape, dtype=torch.float64))
    analysis = fxprune.analyze(traced, strict=True)
    plan = checks.random_plan(analysis, lambda group: group.maskable)
    pruned = fxprune.rewrite(traced, plan)
    assert 0 < pruned.head.in_features < 36
    masked = copy.deepcopy(model)
    checks.apply_masks(masked, plan)
    inputs = {"x": torch.randn(3, *shape, dtype=torch.float64)}
    expected = checks.run(masked, inputs)
    assert checks.relative_error(checks.run(pruned, inputs), expected) <= checks.TOLERANCE


class PartlySquare(nn.Module):
    """The outer product of some features with themselves and with others."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.others = nn.Linear(5, 6), nn.Linear(5, 3)
        self.head = nn.Linear(54, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.head(
            torch.einsum("bi,bj->bij", torch.cat([y, self.others(x)], 1), y).flatten(1)
        )


def test_an_index_that_has_one_unit_less_than_others_depends_on_no_further_one() -> None:
    traced = fxprune.trace(PartlySquare(), torch.randn(2, 5))
    analysis = fxprune.analyze(traced, strict=True)
    plan = fxprune.PruningPlan.build(analysis, {"features.weight:0": [1, 3, 4, 5]})
    pruned = fxprune.rewrite(traced, plan)
    assert pruned.head.in_features == (4 + 3) * 4
    assert fxprune.verify(traced, plan, pruned, torch.randn(3, 5)).ok
