"""Infinities can be compared; where the original itself computes NaN, it is said so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.discrepancy import max_error


class Overflowing(nn.Module):
    """A penalty that is 0 times infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.first(x))
        seen = torch.ones_like(y)
        return y + (1.0 - seen) * (2.0 * torch.finfo(y.dtype).min)


class Masked(Overflowing):
    """One of the outputs is minus infinity."""

    def forward(self, x: Tensor) -> Tensor:
        masked = torch.tensor([0.0, float("-inf"), 0.0], dtype=x.dtype)
        return self.last(self.first(x)) + masked


class Undone(Overflowing):
    """A NaN on the way that no output shows."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(torch.where(y > 0, y, torch.log(y - 1e3)).nan_to_num(0.5))


def made(model: nn.Module) -> tuple[fx.GraphModule, fxprune.PruningPlan, fx.GraphModule]:
    torch.manual_seed(0)
    traced = fxprune.trace(model.double().eval(), torch.randn(2, 5, dtype=torch.float64))
    analysis = fxprune.analyze(traced, strict=True)
    plan = fxprune.plan(analysis, criterion="random", sparsity=0.5)
    assert not plan.is_empty
    return traced, plan, fxprune.rewrite(traced, plan)


def test_nan_of_the_original_is_named() -> None:
    # The report blamed the pruned network, which was right.
    report = fxprune.verify(*made(Overflowing()), torch.randn(4, 5, dtype=torch.float64))
    assert not report.ok
    assert str(report.first_mismatch).startswith("node 'mul': the original itself computes NaN")


def test_infinities_are_compared() -> None:
    # Infinity minus infinity is NaN: a right network FAILED.
    traced, plan, pruned = made(Masked())
    inputs = torch.randn(4, 5, dtype=torch.float64)
    assert fxprune.verify(traced, plan, pruned, inputs).ok
    with torch.no_grad():
        pruned.last.bias[0] += 1e-6
    report = fxprune.verify(traced, plan, pruned, inputs)
    assert not report.ok
    assert "node 'last'" in str(report.first_mismatch)


def test_nan_that_no_output_shows_is_no_mismatch() -> None:
    traced, plan, pruned = made(Undone())
    inputs = torch.randn(4, 5, dtype=torch.float64)
    assert fxprune.verify(traced, plan, pruned, inputs).ok
    with torch.no_grad():
        pruned.last.bias[0] += 1e-6
    report = fxprune.verify(traced, plan, pruned, inputs)
    assert str(report.first_mismatch).startswith("node 'last': relative error")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_the_largest_error(dtype: torch.dtype) -> None:
    infinity, nan = float("inf"), float("nan")
    expected = [torch.tensor([1.0, infinity, -4.0], dtype=dtype)]
    assert max_error([torch.tensor([1.5, infinity, -4.0], dtype=dtype)], expected) == 0.125
    for wrong in ([1.0, -infinity, -4.0], [1.0, 2.0, -4.0], [infinity, infinity, -4.0]):
        assert max_error([torch.tensor(wrong, dtype=dtype)], expected) == infinity
    for value in (torch.tensor([1.0, nan, -4.0], dtype=dtype), expected[0]):
        assert max_error([torch.tensor([1.0, nan, -4.0], dtype=dtype)], [value]) == infinity
