"""Lone units in slices: a plan can remove all units of a slice."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.errors import RewriteError
from fxprune.plans import PruningPlan


class Slices(nn.Module):
    """Features in another order: each is a unit of its own, and two of them are one slice."""

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features, self.head, self.op = nn.Linear(5, 6), nn.Linear(6, 3), op

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        parts = [self.op(y[:, [0, 3]]), y[:, [4]], y[:, [2]], y[:, [5]], y[:, [1]]]
        return self.head(torch.cat(parts, -1))


def pruned_and_masked(op: Callable[[Tensor], Tensor]) -> tuple[nn.Module, nn.Module]:
    """Without the units of the slice."""
    model = Slices(op).double().eval()
    traced = fxprune.trace(model, torch.randn(4, 5, dtype=torch.float64))
    analysis = fxprune.analyze(traced)
    (group,) = analysis.groups
    plan = PruningPlan.build(analysis, {group.name: [1, 2, 4, 5]})
    masked = copy.deepcopy(traced)
    tensors = dict(masked.named_parameters())
    with torch.no_grad():
        for name, mask in plan.masks().items():
            tensors[name].masked_fill_(~mask, 0)
    return fxprune.rewrite(traced, plan), masked


OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "repeat": lambda y: y.repeat(2, 1)[: y.size(0)],
    "tile": lambda y: y.tile(3, 1)[: y.size(0)],
    "repeat_interleave": lambda y: y.repeat_interleave(2).view(y.size(0), 2, 2)[:, :, 0],
    "group_norm": lambda y: F.group_norm(y[..., None].expand(-1, -1, 3), 1).mean(-1),
    "one_channel_a_group": lambda y: F.group_norm(y[..., None].expand(-1, -1, 3), 2).mean(-1),
    "softmax": lambda y: y.softmax(-1),
    "size": lambda y: y / y.size(-1),
}


@pytest.mark.parametrize("name", OPS)
def test_it_computes_what_the_masked_one_does(name: str) -> None:
    # New ratios of sizes were made by a division by 0.
    pruned, masked = pruned_and_masked(OPS[name])
    x = torch.randn(3, 5, dtype=torch.float64)
    assert (pruned(x) - masked(x)).abs().max() < 1e-12


def test_an_op_that_cannot_take_it_is_refused() -> None:
    message = (
        r"the graph does not run at its new sizes: .*zero-size dimension.*\. The plan removes "
        r"every unit of a dimension of node '\w+', which not every op can take: keep one of them\."
    )
    with pytest.raises(RewriteError, match=message):
        pruned_and_masked(lambda y: y - y.amax(-1, keepdim=True))
