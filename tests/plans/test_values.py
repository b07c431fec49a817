"""New values of parameters in a module."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.plans.values import assign


def test_a_module_does_not_share_the_values_that_it_is_given() -> None:
    layer, value = nn.Sequential(nn.Linear(3, 2, bias=False)), torch.ones(2)
    assign(layer, "0.bias", value)
    assign(layer, "0.weight", torch.zeros(2, 3))
    with torch.no_grad():
        layer[0].bias.mul_(5)
    assert value.tolist() == [1, 1]
    assert layer(torch.ones(1, 3)).tolist() == [[5, 5]]
