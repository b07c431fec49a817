"""Numbers of groups, and normalised shapes, that follow the inputs do so in the result, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from tests.masking import assert_random_plans_hold


class Between(nn.Module):
    """Something between two layers, with a weight of its own."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(shape[0], 4, 1)
        self.style = nn.Linear(16, 16)
        self.weight = nn.Parameter(torch.randn(*shape))

    def forward(self, x: Tensor) -> Any:
        return self.last(self.between(self.first(x)))

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class NormPerItem(Between):
    def between(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return F.group_norm(x.reshape(1, b * c, h, w), b * 4).view(b, c, h, w)


class KernelPerItem(Between):
    """A depthwise kernel, repeated for each item."""

    def between(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        kernel = self.weight.repeat(b, 1, 1, 1)
        result = F.conv2d(x.reshape(1, b * c, h, w), kernel, padding=1, groups=b * c)
        return result.reshape(b, c, h, w)


class Modulated(Between):
    """As in StyleGAN 2: a convolution whose weight depends on the item."""

    def between(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        style = self.style(x.mean((2, 3))).view(b, 1, c, 1, 1)
        kernel = (self.weight * style).view(b * 12, c, 3, 3)
        result = F.conv2d(x.reshape(1, b * c, h, w), kernel, padding=1, groups=b)
        return result.view(b, 12, h, w)


class NormOfSizes(Between):
    """Normalises over the rows, which follow the inputs, and the channels."""

    def between(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 2, 1)
        return F.layer_norm(x, x.shape[2:]).permute(0, 3, 2, 1)


MODELS = {
    "norm": (NormPerItem, (16,)),
    "kernel": (KernelPerItem, (16, 1, 3, 3)),
    "modulated": (Modulated, (12, 16, 3, 3)),
    "sizes": (NormOfSizes, (16,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_they_follow_the_inputs(name: str) -> None:
    torch.manual_seed(0)
    kind, shape = MODELS[name]
    model = kind(*shape).double().eval()
    traced = fxprune.trace(model, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    other = torch.randn(3, 3, 12, 8, dtype=torch.float64)
    torch.testing.assert_close(traced(other), model(other), rtol=0, atol=1e-12)
    analysis = fxprune.analyze(traced)
    assert analysis.groups
    assert_random_plans_hold(traced, analysis, other, other[:1], other[:, :, :5])
