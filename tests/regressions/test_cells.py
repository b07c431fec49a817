"""Recurrent cells that start at their own zeros."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.masking import TOLERANCE, alive, masked_error, random_plan, traced


class Step(nn.Module):
    """One step of a cell that is given no state."""

    def __init__(self, cell: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(5, 6), cell(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(self.embed(x))
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_cell_makes_its_first_state_at_the_new_size(cell: type[nn.RNNCellBase]) -> None:
    # The rewritten cell kept its old hidden_size, and its zeros did not fit its weights.
    model, inputs = alive(Step(cell)), torch.randn(3, 5, dtype=torch.float64)
    graph, analysis = traced(model, inputs[:2])
    plan = random_plan(analysis)
    pruned = fxprune.rewrite(graph, plan)
    assert (pruned.cell.input_size, pruned.cell.hidden_size) == (3, 2)
    assert masked_error(model, plan, pruned, inputs) <= TOLERANCE
