"""``repeat_interleave`` that is told its size, which may follow the inputs."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

import fxprune
from tests.masking import alive, random_plan, traced


class Repeated(nn.Module):
    """Repeats h: [batch, length, 8] between two linear layers."""

    def __init__(self, repeat: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.repeat = repeat
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.repeat(self.first(x)))


def rewritten(repeat: Callable[[Tensor], Tensor]) -> fx.GraphModule:
    """The pruned graph, which is right for sequences of other lengths."""
    inputs = torch.randn(3, 9, 5, dtype=torch.float64)
    graph, analysis = traced(alive(Repeated(repeat)), inputs[:2, :4])
    assert graph.meta["fxprune"].dynamic == {"x": (0, 1)}
    plan = random_plan(analysis)
    pruned = fxprune.rewrite(graph, plan)
    assert pruned.first.out_features < 8
    for length in (4, 9, 3):
        report = fxprune.verify(graph, plan, pruned, inputs[:, :length])
        assert report.ok, str(report)
    return pruned


def test_channels_folded_into_time_that_are_repeated() -> None:
    # The size that the example had was written into the pruned graph.
    def repeat(h: Tensor) -> Tensor:
        flat = h.flatten(1)
        wide = flat.repeat_interleave(2, 1, output_size=2 * flat.shape[1])
        return wide.reshape(h.shape[0], -1, 8, 2).sum(3)

    rewritten(repeat)


def test_channels_that_are_repeated_once_for_each_step() -> None:
    # The rewrite broke off.
    def repeat(h: Tensor) -> Tensor:
        wide = h.repeat_interleave(h.shape[1], 2)
        return wide.reshape(h.shape[0], h.shape[1], 8, -1).mean(3)

    rewritten(repeat)


def test_a_flattened_tensor_that_is_repeated() -> None:
    # The pruned graph asked for the size that the original had, and did not run.
    scale = nn.Parameter(torch.randn(2, 2, dtype=torch.float64))
    rewritten(lambda h: h * scale.repeat_interleave(2, output_size=8))


def test_the_size_of_repeated_steps_is_left_as_it_is() -> None:
    pruned = rewritten(lambda h: h.repeat_interleave(2, 1, output_size=2 * h.shape[1]))
    assert operator.floordiv not in {node.target for node in pruned.graph.nodes}
