"""Functions and modules that are called by keyword alone are captured and resized like the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune

Call = Callable[["Net", Tensor, Tensor], Tensor]


class Net(nn.Module):
    """Two linear layers, a call in between on their results, of width 8, and a last layer."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(4, 8)
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.kernel = nn.Parameter(torch.randn(8, 4, 1))
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.last = nn.Linear(8, 2)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.call(self, self.first(input=x), self.second(x))
        result: Tensor = self.last(hidden.reshape(x.shape[0], -1, 8))
        return result


def halves(hidden: Tensor) -> Tensor:
    return torch.cat(tensors=torch.chunk(input=hidden, chunks=2, dim=-1)[::-1], dim=-1)


ORDER = [1, 0, 2, 3, 7, 6, 5, 4]
CALLS: dict[str, Call] = {
    "flatten": lambda m, h, g: torch.flatten(input=h, start_dim=1),
    "reshape": lambda m, h, g: torch.reshape(input=h, shape=(h.shape[0], 5, 2, 4)).sum(2).tile(2),
    "view": lambda m, h, g: h.view(size=(h.shape[0], 5, 8)),
    "expand": lambda m, h, g: h + m.weight[0].expand(size=(5, 8)),
    "chunk": lambda m, h, g: halves(h),
    "split": lambda m, h, g: torch.split(tensor=h, split_size_or_sections=[8, 0], dim=-1)[0],
    "softmax": lambda m, h, g: F.softmax(input=h, dim=-1),
    "layer_norm": lambda m, h, g: F.layer_norm(input=h, normalized_shape=(8,)),
    "linear": lambda m, h, g: F.linear(input=h, weight=m.weight),
    "permute": lambda m, h, g: torch.permute(input=h, dims=(0, 2, 1)).mT,
    "attention": lambda m, h, g: F.scaled_dot_product_attention(query=h, key=g, value=h),
    "conv1d": lambda m, h, g: F.conv1d(input=h.mT, weight=m.kernel, groups=2).mT,
    "where": lambda m, h, g: torch.where(condition=h[..., :1] > 0, input=h, other=g),
    "roll": lambda m, h, g: torch.roll(input=h, shifts=2, dims=-1),
    "index_select": lambda m, h, g: torch.index_select(input=h, dim=-1, index=torch.tensor(ORDER)),
    "narrow": lambda m, h, g: torch.narrow(input=h, dim=-1, start=2, length=4).repeat(1, 1, 2),
    "squeeze": lambda m, h, g: torch.squeeze(input=torch.unsqueeze(input=h, dim=0), dim=0),
    "unflatten": lambda m, h, g: torch.unflatten(input=h, dim=-1, sizes=(2, 4)).flatten(2),
    "repeat": lambda m, h, g: h.repeat(repeats=(1, 1, 2))[..., :8],
    "tile": lambda m, h, g: torch.tile(input=h, dims=(1, 1, 2))[..., :8],
    "group_norm": lambda m, h, g: F.group_norm(input=h.mT, num_groups=2).mT,
    "select": lambda m, h, g: h * torch.select(input=h, dim=-1, index=3).unsqueeze(-1),
    "add": lambda m, h, g: torch.add(input=h, other=g, alpha=2) + h.mul(other=g),
    "modules": lambda m, h, g: m.norm(input=m.recurrent(input=h, hx=h.new_zeros(1, 2, 8))[0]),
}


def has_first_units(group: fxprune.Group) -> bool:
    return any((m.parameter, m.dim) == ("first.weight", 0) for m in group.members)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_by_keyword(call: Call) -> None:
    torch.manual_seed(0)
    model = Net(call).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    traced = fxprune.trace(model, x)
    assert torch.equal(traced(x), model(x))
    analysis = fxprune.analyze(traced)
    plan = fxprune.plan(analysis, criterion="random", sparsity=0.5, groups=has_first_units)
    pruned = fxprune.rewrite(traced, plan)
    assert pruned.first.out_features < 8
    report = fxprune.verify(traced, plan, pruned, x)
    assert report.ok, report
    assert report.max_error <= 1e-12
