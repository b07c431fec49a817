"""Tensors read by their strides; masked interpretation where strides differ from the capture."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
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


class SlidingChunks(nn.Module):
    """Queries and keys in chunks that overlap by half, as attention in windows has them."""

    def __init__(self, heads: int = 3, overlap: int = 2) -> None:
        super().__init__()
        self.heads, self.overlap = heads, overlap
        self.query, self.key, self.last = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(heads, 3)

    def chunks(self, x: Tensor) -> Tensor:
        batch, length = x.shape[:2]
        x = x.view(batch, length, self.heads, -1).transpose(1, 2)
        x = x.reshape(batch * self.heads, length, -1)
        x = x.view(x.size(0), x.size(1) // (2 * self.overlap), 2 * self.overlap, x.size(2))
        size, stride = list(x.size()), list(x.stride())
        size[1], stride[1] = size[1] * 2 - 1, stride[1] // 2
        return x.as_strided(size=size, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.chunks(self.query(x)) @ self.chunks(self.key(x)).transpose(-1, -2)
        scores = scores.view(x.shape[0], self.heads, *scores.shape[1:])
        return self.last(scores.permute(0, 2, 3, 4, 1))


@pytest.mark.parametrize("length", [4, 12], ids=["one_chunk", "chunks_overlap"])
def test_overlapping_chunks_lose_heads_and_head_dimensions(length: int) -> None:
    # With one chunk the rule followed the head dimension, and rewrite left the sizes as they were.
    model, inputs = alive(SlidingChunks()), torch.randn(3, length, 5, dtype=torch.float64)
    graph, analysis = traced(model, inputs[:2])
    assert sorted(group.size for group in analysis.groups) == [3, 4]
    for seed in range(3):
        plan = random_plan(analysis, seed)
        pruned = fxprune.rewrite(graph, plan)
        assert pruned.query.out_features == 4
        report = fxprune.verify(graph, plan, pruned, inputs)
        assert report.ok, str(report)


class BeyondASlice(nn.Module):
    """The strides of the first rows of a weight reach all of its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 6))
        self.head, self.last = nn.Linear(5, 6), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, first = self.head(x), self.weight[:4]
        return (
            self.last(F.linear(h, self.weight))
            + F.linear(h, first.as_strided((8, 6), (6, 1)))[:, :1]
        )


class ByStrides(nn.Module):
    """Reads a part of a weight [2, 4, 6], or all of it, by strides."""

    def __init__(
        self, part: Callable[[Tensor], Tensor], size: list[int], stride: list[int]
    ) -> None:
        super().__init__()
        self.part, self.size, self.stride = part, size, stride
        self.weight = nn.Parameter(torch.zeros(2, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.part(self.weight).as_strided(self.size, self.stride)
        return rows.sum() * x


@pytest.mark.parametrize(
    ("part", "size", "stride", "sizes"),
    [
        (lambda w: w, [4, 6], [6, 1], [4, 6]),
        (lambda w: w, [4, 7], [6, 1], []),
        (lambda w: w, [4, 5], [6, 1], [4]),
        (lambda w: w[:1], [4, 6], [6, 1], [4, 6]),
        (lambda w: w[..., :3], [4, 3], [6, 1], []),
        (lambda w: w[:, :3], [3, 6], [6, 1], []),
        (lambda w: w, [4, 1, 6], [6, 36, 1], [4, 6]),
        (lambda w: w, [0, 6], [6, 1], [6]),
        (lambda w: w, [], [], []),
    ],
    ids=["rows", "overlap", "shorter", "dense", "columns", "gaps", "one", "none", "scalar"],
)
def test_dimensions_that_strides_follow(
    part: Callable[[Tensor], Tensor], size: list[int], stride: list[int], sizes: list[int]
) -> None:
    inputs = torch.ones(1, dtype=torch.float64)
    graph, analysis = traced(alive(ByStrides(part, size, stride)), inputs)
    assert sorted(group.size for group in analysis.groups) == sizes
    if sizes:
        plan = random_plan(analysis)
        assert fxprune.verify(graph, plan, fxprune.rewrite(graph, plan), inputs).ok


def test_strides_that_leave_a_slice_freeze_what_it_is_a_slice_of() -> None:
    graph, analysis = traced(alive(BeyondASlice()), torch.randn(2, 5, dtype=torch.float64))
    assert not analysis.groups, graph.code
    (reason,) = {group.reason for group in analysis.frozen if group.name == "weight:0"}
    assert reason == "read by strides (aten::as_strided)"


class TurnedInPlace(nn.Module):
    """Writes what x is in its place, by an overload, as exported graphs call it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).contiguous()
        return self.last(torch.ops.aten.as_strided_.default(h, [6, 4], [1, 6]))


def test_new_sizes_in_place_leave_nothing_of_the_old_ones() -> None:
    graph, analysis = traced(alive(TurnedInPlace()), torch.randn(4, 5, dtype=torch.float64))
    assert not analysis.groups, graph.code


class AsLongAsTheInput(nn.Module):
    """Reads as many channels as there are positions, which at the traced length is all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h.as_strided(size=(x.shape[0], 4, x.shape[1]), stride=(h.stride(0), 6, 1))
        return self.last(h.sum(-1))


def test_a_dimension_as_long_as_the_input_is_no_channel() -> None:
    graph, analysis = traced(alive(AsLongAsTheInput()), torch.randn(2, 6, 5, dtype=torch.float64))
    assert not analysis.groups, graph.code


class ChannelsLast(nn.Module):
    """On real tensors, torch lays the convolution's result out as its input is."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.first, self.norm = nn.Linear(3, 8), nn.LayerNorm(8)
        self.conv, self.last = nn.Conv2d(8, 8, 1), nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(self.norm(self.first(x)).permute(0, 3, 1, 2))
        return self.last(self.between(h).flatten(2).transpose(1, 2))


def _normalised(h: Tensor) -> Tensor:
    return F.group_norm(h.flatten(2), 8)


def _complex(h: Tensor) -> Tensor:
    z = torch.view_as_complex(h.unflatten(3, (2, 2)).contiguous())
    return torch.view_as_real(z * z.abs())


def _strided(h: Tensor) -> Tensor:
    b, c, x, y = h.shape
    return h.contiguous().as_strided((b, c, x, y - 1), (c * x * y, x * y, y, 1))


def _bits(h: Tensor) -> Tensor:
    return (h + h.contiguous().view(torch.int32).view(torch.float64)).view(h.dtype)


@pytest.mark.parametrize(
    "between", [_normalised, _complex, _strided, _bits], ids=["norm", "complex", "strided", "bits"]
)
def test_ops_that_read_strides_get_those_of_the_capture(
    between: Callable[[Tensor], Tensor],
) -> None:
    # Two of them failed in masked interpretation, `as_strided` read other elements, and `rewrite`
    # took a dtype for a size.
    inputs = torch.randn(3, 4, 4, 3, dtype=torch.float64)
    model = ChannelsLast(between).double()
    model(inputs)
    graph, analysis = traced(alive(model), inputs[:2])
    plan = random_plan(analysis)
    report = fxprune.verify(graph, plan, fxprune.rewrite(graph, plan), inputs)
    assert report.ok, str(report)
    assert report.law == "masked interpretation"


class ViewOfTheTransposed(nn.Module):
    """Views the result of an op on a transposed tensor, which torch makes contiguous."""

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.op = op
        self.first, self.hidden, self.last = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.op(self.hidden(self.first(x).relu()).transpose(1, 2))
        return self.last(y.view(y.shape[0], -1))


@pytest.mark.parametrize(
    "op",
    [
        nn.Softmax(-1),
        nn.LogSoftmax(-1),
        lambda y: torch.softmax(y, -1),
        lambda y: torch.log_softmax(y, -1),
        lambda y: torch.roll(y, 1, -1),
        lambda y: F.softmax(y, -1),
    ],
    ids=["Softmax", "LogSoftmax", "softmax", "log_softmax", "roll", "F.softmax"],
)
def test_the_results_of_softmax_and_roll_are_contiguous(op: Callable[[Tensor], Tensor]) -> None:
    model, inputs = alive(ViewOfTheTransposed(op)), torch.randn(3, 4, 6, dtype=torch.float64)
    graph, analysis = traced(model, inputs[:2])
    plan = random_plan(analysis)
    report = fxprune.verify(graph, plan, fxprune.rewrite(graph, plan), inputs)
    assert report.ok, str(report)
