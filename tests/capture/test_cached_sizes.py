"""Functions that remember their results by sizes return sizes of other captures."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import trace


def merged(shape: torch.Size, scale: int) -> tuple[int, ...]:
    """Images as tokens: einops computes such sizes, and remembers them."""
    batch, channels, *sizes = shape
    tokens = 1
    for size in sizes:
        tokens = tokens * (size // scale)
    return batch, channels * scale ** len(sizes), tokens


class Tokens(nn.Module):
    """Merges pixels; `enlarged` puts a larger image where the other model has its convolution."""

    def __init__(self, remembered: functools._lru_cache_wrapper[tuple[int, ...]], **options: int):
        super().__init__()
        self.remembered, self.options = remembered, options
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.options.get("enlarged"):
            x = F.avg_pool2d(x.repeat(1, 1, 2, 2), 2)
        y: Tensor = self.conv(x)
        return y.reshape(self.remembered(y.shape, self.options.get("scale", 1))).sum(1)


@pytest.mark.parametrize("scale", [1, 2])
def test_sizes_of_one_capture_mean_nothing_in_another(scale: int) -> None:
    # They named the sizes of the other model's nodes, here of an image twice as large.
    torch.manual_seed(0)
    remembered = functools.lru_cache(merged)
    for enlarged in (0, 1, 0):
        model = Tokens(remembered, enlarged=enlarged, scale=scale).eval()
        graph = trace(model, torch.randn(2, 3, 8, 12))
        assert graph.meta["fxprune"].dynamic == {"x": (0, 2, 3)}
        for size in ((2, 3, 8, 12), (3, 3, 8 + 4 * scale, 16), (1, 3, 40, 76)):
            x = torch.randn(size)
            assert torch.equal(graph(x), model(x))


def test_sizes_that_a_call_before_the_trace_computed_stay_free() -> None:
    torch.manual_seed(0)
    model = Tokens(functools.lru_cache(merged)).eval()
    model(torch.randn(2, 3, 8, 12))
    graph = trace(model, torch.randn(2, 3, 8, 12))
    assert graph.meta["fxprune"].dynamic == {"x": (0, 2, 3)}
    x = torch.randn(3, 3, 9, 7)
    assert torch.equal(graph(x), model(x))
