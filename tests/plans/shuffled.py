"""A network whose shuffles couple channels one by one: groups are others when some are gone."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxprune
from tests import torchvision_shim  # noqa: F401  (before torchvision)


@functools.cache
def shuffled() -> GraphModule:
    """ShuffleNetV2 x0.5 in float64, with batch norms that let every channel through."""
    from torchvision.models import shufflenet_v2_x0_5

    torch.manual_seed(0)
    model = shufflenet_v2_x0_5(num_classes=5).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor.detach(), 0.5, 1.5)
    return fxprune.trace(model.eval(), torch.randn(2, 3, 32, 32).double())


def by_first_norm(group: fxprune.Group, parameters: Any) -> Tensor:
    """A score that units keep when others go: their weight in the first batch norm."""
    norms = [m for m in group.members if parameters[m.parameter].dim() == 1]
    first = min((m for m in norms if m.parameter.endswith("weight")), key=lambda m: m.parameter)
    return first.entries(parameters[first.parameter], group).sum(-1)
