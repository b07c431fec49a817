"""Models that were called before: what they keep of a call ties the graph to no sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capture import TraceInfo, trace


class Anchored(nn.Module):
    """Adds coordinates, which it keeps until the sizes change: class defaults hold none."""

    shape: torch.Size | None = None
    grid = torch.empty(0)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.stride = torch.tensor([8.0])

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.first(x).relu())
        if self.shape != y.shape:
            self.grid = self.coordinates(y)
            self.shape = y.shape
        return y * self.stride + self.grid

    @staticmethod
    def coordinates(y: Tensor) -> Tensor:
        rows = torch.arange(y.shape[2], device=y.device, dtype=y.dtype)
        columns = torch.arange(y.shape[3]).type_as(y)
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij")) + y.new_full((1,), 0.5)


class Listed(Anchored):
    """Keeps a grid per level in a list, and compares its last two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.grids = [torch.empty(0)]

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.first(x).relu())
        if self.grids[0].shape[-2:] != y.shape[-2:]:
            self.grids[0] = self.coordinates(y)
        return y + self.grids[0]


class Rotary(nn.Module):
    """Keeps tables for a sequence length, by which the length alone is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(4, 6), nn.Linear(6, 4)
        self.length: int | None = None
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        if length != self.length or self.table is None:
            self.length = length
            self.table = torch.arange(length, device=x.device)[:, None].cos()
        return self.last(self.inner(x) * self.table)


def image(*sizes: int) -> Tensor:
    return torch.randn(sizes[0], 3, *sizes[1:])


def tokens(batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, 4)


CASES = [
    pytest.param(Anchored, image, [(2, 8, 10), (5, 3, 10), (42, 8, 2)], (0, 2, 3), id="anchors"),
    pytest.param(Listed, image, [(2, 8, 10), (2, 3, 7), (3, 8, 10)], (0, 2, 3), id="list"),
    pytest.param(Rotary, tokens, [(2, 9), (5, 9), (42, 9), (3, 25), (1, 1)], (0, 1), id="rotary"),
]


@pytest.mark.parametrize(("build", "data", "sizes", "dynamic"), CASES)
def test_a_call_before_the_trace_ties_no_sizes(
    build: Callable[[], nn.Module],
    data: Callable[..., Tensor],
    sizes: list[tuple[int, ...]],
    dynamic: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    model = build().eval()
    example = data(*sizes[0])
    model(example)
    kept = {name: value for name, value in vars(model).items() if not name.startswith("_")}
    graph = trace(model, example)
    info: TraceInfo = graph.meta["fxprune"]
    assert (info.dynamic, info.steps) == ({"x": dynamic}, {})
    assert all(vars(model)[name] is value for name, value in kept.items())
    plan = fxprune.plan(fxprune.analyze(graph), criterion="random", sparsity=0.5)
    pruned = fxprune.rewrite(graph, plan)
    for size in sizes:
        x = data(*size)
        torch.testing.assert_close(graph(x), model(x))
        assert fxprune.verify(graph, plan, pruned, x.double(), dtype=torch.float64).ok


class Streaming(nn.Module):
    """What it keeps depends on its inputs: a call before changes what the next one computes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        if self.state is not None and self.state.shape == y.shape:
            y = y + self.state
        self.state = y.detach()
        return y


def test_state_that_is_more_than_a_function_of_the_sizes_stays() -> None:
    torch.manual_seed(0)
    model = Streaming().eval()
    model(tokens(2, 5))
    graph = trace(model, example := tokens(2, 5))
    assert graph.meta["fxprune"].dynamic == {"x": ()}
    torch.testing.assert_close(graph(example), model(example))


def test_tables_that_were_changed_since_stay() -> None:
    torch.manual_seed(0)
    model = Rotary().eval()
    model(tokens(2, 5))
    assert model.table is not None
    model.table += 1
    graph = trace(model, example := tokens(2, 5))
    assert graph.meta["fxprune"].dynamic == {"x": (0,)}
    torch.testing.assert_close(graph(example), model(example))
