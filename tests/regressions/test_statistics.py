"""Statistics over pruned dimensions are taken over what stays, whichever op takes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxprune
from tests.zoo import checks


class StandardisedConvolution(nn.Conv2d):
    """Weight standardisation written with `batch_norm` in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(rows, None, None, training=True, momentum=0.0)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


@pytest.mark.parametrize("groups", [1, 2])
def test_weight_standardisation(groups: int) -> None:
    # Masked interpretation let batch_norm average over removed input channels.
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), StandardisedConvolution(8, 6, 3, groups=groups), nn.Flatten()
    )
    inputs = {"input": torch.randn(3, 3, 9, 9, dtype=torch.float64)}
    traced = fxprune.trace(model.double(), {"input": inputs["input"][:2]})
    analysis = fxprune.analyze(traced, strict=True)
    assert analysis.groups
    assert not all(group.maskable for group in analysis.groups)
    plan = checks.random_plan(analysis, lambda group: True)
    pruned = fxprune.rewrite(traced, plan)
    report = checks.verify_all(traced, plan, pruned, inputs)
    assert report.ok, str(report)
