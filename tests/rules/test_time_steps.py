"""Recurrent layers mix time steps, which may not be pruned, whichever dimension they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Steps(nn.Module):
    """A vector, scaled anew at every time step; the states are summed over time."""

    def __init__(self, kind: type[nn.RNNBase], batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.steps = nn.Parameter(torch.randn(5, 1, 1))
        self.layer = kind(3, 4, batch_first=batch_first)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * self.steps  # time, batch, features
        if self.batch_first:
            return self.last(self.layer(scaled.transpose(0, 1))[0].sum(1))
        return self.last(self.layer(scaled)[0].sum(0))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_time_steps_are_frozen(kind: type[nn.RNNBase], batch_first: bool) -> None:
    analysis = fxprune.analyze(fxprune.trace(Steps(kind, batch_first), torch.randn(2, 3)))
    assert not any(m.parameter == "steps" for g in analysis.groups for m in g.members)
    (steps,) = (g for g in analysis.frozen if any(m.parameter == "steps" for m in g.members))
    assert "time steps" in str(steps.reason)
