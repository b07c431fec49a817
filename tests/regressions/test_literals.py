"""Tensors that the code of a custom gradient makes of Python numbers, beside those on meta."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.masking import alive, random_plan, traced


class MaskedSoftmax(torch.autograd.Function):
    """Fills with a tensor of no dimension, as masked attention does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        lowest = torch.tensor(torch.finfo(x.dtype).min)
        result = torch.softmax(x.masked_fill(~mask, lowest), -1)
        result.masked_fill_(~mask, torch.tensor(0.0))
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (result,) = ctx.saved_tensors
        return result * (gradient - (gradient * result).sum(-1, keepdim=True)), None


class Weighted(torch.autograd.Function):
    """Calculates with tensors that have dimensions, in lists too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ones = torch.ones(x.shape[-2], 1, dtype=x.dtype)
        return x * torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=x.dtype) + torch.stack(
            [ones, ones]
        ).sum(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Net(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(5, 6) for _ in range(3))
        self.last = nn.Linear(6, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        weights = self.function.apply(scores, x[:, None, :, 0] > -1)
        return self.last(weights @ self.value(x))


@pytest.mark.parametrize("function", [MaskedSoftmax, Weighted])
def test_they_mix_with_tensors_on_meta(function: type[torch.autograd.Function]) -> None:
    # Meta kernels that are Python refuse tensors of data, which those of the CPU take.
    model, inputs = alive(Net(function)), torch.randn(3, 4, 5, dtype=torch.float64)
    graph, analysis = traced(model, inputs[:2])
    assert torch.equal(graph(inputs), model(inputs))
    assert [group.size for group in analysis.groups] == [6, 6]
    plan = random_plan(analysis)
    assert fxprune.verify(graph, plan, fxprune.rewrite(graph, plan), inputs).ok
