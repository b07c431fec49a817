"""Masked interpretation of tensors whose strides differ from those of the captured run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune
from tests.masking import alive, random_plan, traced


class NormalisedLSTM(nn.Module):
    """Batch first: torch's kernels return the transpose of what they computed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.norm(self.embed(x)))[0])


def test_what_was_viewed_may_need_a_copy() -> None:
    # The recorded `view` of the linear layer failed on the transposed output of the real LSTM.
    model, inputs = alive(NormalisedLSTM()), torch.randn(3, 5, 3, dtype=torch.float64)
    graph, analysis = traced(model, inputs[:2])
    plan = random_plan(analysis)
    report = fxprune.verify(graph, plan, fxprune.rewrite(graph, plan), inputs)
    assert report.ok, str(report)
    assert report.law == "masked interpretation"
