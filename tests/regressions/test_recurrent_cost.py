"""The cost of pruning a recurrent network does not grow with the length of its sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxprune
from tests.zoo import checks


class Counter(TorchDispatchMode):
    """Counts the ops that run."""

    ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops += 1
        return func(*args, **(kwargs or {}))


class Classifier(nn.Module):
    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = cell(5, 6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_rewritten_graph_is_checked_on_one_step(cell: type[nn.RNNBase]) -> None:
    # Seconds went into every step of a sequence of 256.
    counts = []
    for length in (4, 256):
        traced = fxprune.trace(Classifier(cell), torch.randn(2, length, 5))
        plan = checks.random_plan(fxprune.analyze(traced), lambda group: True)
        with Counter() as counter:
            pruned = fxprune.rewrite(traced, plan)
        assert pruned.rnn.hidden_size == 3
        counts.append(counter.ops)
    assert counts[0] == counts[1]


def test_weights_that_do_not_fit_are_still_found(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = fxprune.trace(Classifier(nn.GRU), torch.randn(2, 4, 5))
    plan = checks.random_plan(fxprune.analyze(traced), lambda group: True)
    monkeypatch.setattr("fxprune.rewriter.FIXES", {})
    with pytest.raises(fxprune.RewriteError, match="does not run at its new sizes"):
        fxprune.rewrite(traced, plan)
