"""Tokens of the model's own beside those of its inputs: how many follow them is not known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.axes import leaves
from tests.masking import alive, assert_random_plans_hold, random_plan, traced

Read = Callable[[Tensor], Tensor]


class Registers(nn.Module):
    """Four tokens of the model's own before those of the input x: [batch, length, 8]."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.read = read
        self.registers = nn.Parameter(torch.randn(1, 4, 8))
        self.first, self.query, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.registers.expand(len(x), -1, -1), self.first(x)], 1)
        attention = torch.softmax(self.query(h) @ h.transpose(1, 2), -1)
        return self.last(self.read(attention @ h))


def _rest(h: Tensor) -> Tensor:
    return h[:, 4:].mean(1)


def _last(h: Tensor) -> Tensor:
    return h[:, -1]


def _split(h: Tensor) -> Tensor:
    return h.split([4, h.shape[1] - 4], 1)[1].mean(1)


def _viewed(h: Tensor) -> Tensor:
    return h.reshape(h.shape[0], h.shape[1], 2, 4).mean(1).flatten(1)


READS = {"rest": _rest, "last": _last, "split": _split, "viewed": _viewed}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_tokens_beside_a_sequence_of_any_length_stay(read: Read) -> None:
    # At other lengths the pruned graph dropped the end of the sequence, without a word, or failed.
    inputs = torch.randn(3, 9, 8, dtype=torch.float64)
    graph, analysis = traced(alive(Registers(read)), inputs[:2, :5])
    assert graph.meta["fxprune"].dynamic == {"x": (0, 1)}
    assert "registers:1" not in {group.name for group in analysis.groups}
    plan = random_plan(analysis)
    pruned = fxprune.rewrite(graph, plan)
    for length in (5, 9, 3):
        report = fxprune.verify(graph, plan, pruned, inputs[:, :length])
        assert report.ok, str(report)


def test_the_reason_is_given() -> None:
    _, analysis = traced(alive(Registers(_rest)), torch.randn(2, 5, 8, dtype=torch.float64))
    reason = "beside a part whose size follows the inputs"
    assert reason in analysis.explain("registers")
    assert reason in str(analysis.coverage())


def test_tokens_beside_a_sequence_of_one_length_are_prunable() -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    graph = fxprune.trace(alive(Registers(_rest)), x, dynamic={"x": {0}})
    analysis = fxprune.analyze(graph)
    assert "registers:1" in {group.name for group in analysis.groups}


class BesideOnes(nn.Module):
    """Four tokens of the model's own before as many ones as there are tokens: both are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.registers, self.last = nn.Parameter(torch.randn(1, 4, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(len(x), x.shape[1], 8, dtype=x.dtype)
        h = self.last(torch.cat([self.registers.expand(len(x), -1, -1), ones], 1))
        return h.sum(1) * h[:, 4:].sum(1)


def test_tokens_beside_ones_of_any_length_stay() -> None:
    inputs = torch.randn(3, 9, 8, dtype=torch.float64)
    graph, analysis = traced(alive(BesideOnes()), inputs[:2, :5])
    assert 1 in graph.meta["fxprune"].dynamic["x"]
    assert "registers:1" not in {group.name for group in analysis.groups}
    plan = random_plan(analysis)
    assert fxprune.verify(graph, plan, fxprune.rewrite(graph, plan), inputs).ok


class Skip(nn.Module):
    """Channels beside those of an image of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.cat([x, self.down(x)], 1))


def test_channels_beside_those_of_an_image_are_prunable() -> None:
    inputs = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    graph, analysis = traced(alive(Skip()), inputs[:1, :, :8])
    assert graph.meta["fxprune"].dynamic == {"x": (0, 2, 3)}
    assert [group.size for group in analysis.groups] == [6]


class Limited(nn.Module):
    """A table as long as the longest sequence: twice the example's length is too much for it."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(33, 8)
        self.registers = nn.Parameter(torch.randn(1, 4, 8))
        self.mix, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        table = self.positions.weight[: x.shape[1]]
        h = torch.cat([self.registers.expand(len(x), -1, -1), x + table], 1)
        return self.last(torch.softmax(self.mix(h), 1))[:, 4:]


def test_a_length_that_may_only_shrink_varies_too() -> None:
    inputs = torch.randn(2, 20, 8, dtype=torch.float64)
    graph, analysis = traced(alive(Limited()), inputs)
    assert graph.meta["fxprune"].dynamic == {"x": (0, 1)}
    assert "registers:1" not in {group.name for group in analysis.groups}


class Folded(nn.Module):
    """Reads channels h: [batch, length, 8] folded into the time steps: [batch, length * 8]."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.read = read
        self.first = nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.first(x)).sum(-1)


def _from_second(h: Tensor) -> Tensor:
    return h.flatten(1)[:, 8:].reshape(h.shape[0], -1, 8)


def _to_last(h: Tensor) -> Tensor:
    return h.flatten(1)[:, :-8].reshape(h.shape[0], -1, 8)


def _every_other(h: Tensor) -> Tensor:
    return h.flatten(1)[:, ::2].reshape(h.shape[0], -1, 4).repeat(1, 1, 2)


def _rolled(h: Tensor) -> Tensor:
    return h.flatten(1).roll(8, 1).reshape(h.shape)


def _first_of_chunks(h: Tensor) -> Tensor:
    return h.flatten(1).chunk(h.shape[1], 1)[0]


def _end_of_joined(h: Tensor) -> Tensor:
    return torch.cat([h.flatten(1), h.mean(1)], 1)[:, -8:]


def _joined_in_front(h: Tensor) -> Tensor:
    return torch.cat([h.mean(1), h.flatten(1)], 1)[:, 8:].reshape(h.shape)


def _joined_twice(h: Tensor) -> Tensor:
    return torch.cat([h.flatten(1), h.flatten(1)], 1)[:, 8:].mean(1, keepdim=True)


def _written(h: Tensor) -> Tensor:
    flat = h.flatten(1) * 1.0
    flat[:, :8] = 0.0
    return flat.reshape(h.shape)


def _selected(h: Tensor) -> Tensor:
    return h.flatten(1).select(1, 9)


def _split(h: Tensor) -> Tensor:
    return h.flatten(1).split([8, 8 * h.shape[1] - 8], 1)[0]


def _split_at(h: Tensor) -> Tensor:
    return torch.hsplit(h.flatten(1), [8])[0]


def _indexed(h: Tensor) -> Tensor:
    return h.flatten(1)[:, [3, 9, 10]]


def _chosen(h: Tensor) -> Tensor:
    return h.flatten(1).index_select(1, torch.tensor([3, 9, 10]))


def _halves(h: Tensor) -> Tensor:
    return F.glu(h.flatten(1), 1)


def _differences(h: Tensor) -> Tensor:
    return h.flatten(1).diff(dim=1)


def _first_by_number(h: Tensor) -> Tensor:
    flat = h.flatten(1)
    return flat[:, :32]


def _indexed_by_number(h: Tensor) -> Tensor:
    return h.flatten(1)[:, list(range(32))]


def _selected_by_number(h: Tensor) -> Tensor:
    return h.flatten(1).index_select(1, torch.arange(32))


ALL = (_first_by_number, _indexed_by_number, _selected_by_number)
"""Reads that take all there is at the example's length."""

READ_BY_POSITION = "read by position, and its size follows the inputs"
SPLIT_BY_SIZES = {
    _first_of_chunks: "split by a size that follows the inputs (aten::split)",
    _split: "split by a size that follows the inputs (aten::split_with_sizes)",
}

FOLDED = (_from_second, _to_last, _every_other, _rolled, _first_of_chunks, _end_of_joined)
MORE = (_joined_in_front, _joined_twice, _written, _selected, _split, _split_at, _indexed)
OTHERS = (_chosen, _halves, _differences)


@pytest.mark.parametrize("read", [*FOLDED, *MORE, *OTHERS, *ALL], ids=lambda read: read.__name__)
def test_channels_folded_into_time_that_are_read_by_position_stay(read: Read) -> None:
    # Other lengths gave other time steps, without a word, or failed.
    inputs = torch.randn(2, 4, 5, dtype=torch.float64)
    graph, analysis = traced(alive(Folded(read)), inputs)
    assert graph.meta["fxprune"].dynamic == {"x": (0, 1)}
    reasons = {atom.reason for atom in leaves(analysis.propagation.layouts["first.weight"][0])}
    assert None not in reasons
    assert SPLIT_BY_SIZES.get(read, READ_BY_POSITION) in reasons


def _unfolded(h: Tensor) -> Tensor:
    return h.flatten(1).relu().reshape(h.shape[0], -1, 8)


def _sliced_beside(h: Tensor) -> Tensor:
    return h.flatten(1)[:-1].unflatten(1, (-1, 8)).sum(0)


def _stacked(h: Tensor) -> Tensor:
    return torch.cat([h.flatten(1), h.flatten(1).relu()], 1)


@pytest.mark.parametrize("read", [_unfolded, _sliced_beside, _stacked], ids=lambda r: r.__name__)
def test_channels_folded_into_time_that_keep_their_place_are_prunable(read: Read) -> None:
    inputs = torch.randn(3, 9, 5, dtype=torch.float64)
    graph, analysis = traced(alive(Folded(read)), inputs[:2, :4])
    assert [group.size for group in analysis.groups] == [8]
    plan = random_plan(analysis)
    pruned = fxprune.rewrite(graph, plan)
    assert fxprune.verify(graph, plan, pruned, inputs).ok


class Reshaped(nn.Module):
    """Views the channels of an image, and its pixels, as other channels."""

    def __init__(self, view: Read, channels: int) -> None:
        super().__init__()
        self.view = view
        self.first, self.last = nn.Conv2d(2, 5, 1), nn.Conv2d(channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.view(self.first(x)))


def _flat_first(h: Tensor) -> Tensor:
    return h.flatten(1).view(-1, 30, 1, 2)


def _at_once(h: Tensor) -> Tensor:
    return h.reshape(-1, 30, 2, 1)


def _all_flat(h: Tensor) -> Tensor:
    return h.flatten().view(-1, 30, 1, 2)


@pytest.mark.parametrize("view", [_flat_first, _at_once, _all_flat], ids=lambda v: v.__name__)
def test_channels_that_a_view_mixes_with_images_at_other_sizes_stay(view: Read) -> None:
    # At the example's size, 5 * 12 = 30 * 2; elsewhere the channels of one image are another's.
    inputs = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    graph, analysis = traced(alive(Reshaped(view, 30)), inputs)
    assert graph.meta["fxprune"].dynamic == {"x": (0, 2, 3)}
    reasons = {atom.reason for atom in leaves(analysis.propagation.layouts["first.weight"][0])}
    assert None not in reasons
    assert "viewed in another way at other sizes of the inputs" in reasons


def test_channels_that_a_view_never_mixes_are_prunable() -> None:
    def view(h: Tensor) -> Tensor:
        return h.flatten(1).reshape(h.shape[0], 5, -1, 2)

    inputs = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    graph, analysis = traced(alive(Reshaped(view, 5)), inputs)
    assert [group.size for group in analysis.groups] == [5]
    plan = random_plan(analysis)
    pruned = fxprune.rewrite(graph, plan)
    assert fxprune.verify(graph, plan, pruned, torch.cat([inputs, inputs], 2)).ok


class Paired(nn.Module):
    """Views channels h: [batch, 4, length, 5] as rows of other lengths."""

    def __init__(self, view: Read) -> None:
        super().__init__()
        self.view = view
        self.first, self.last = nn.Conv2d(2, 4, 1), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.view(self.first(x))).sum(1)


def _reshaped(h: Tensor) -> Tensor:
    return h.reshape(h.shape[0], -1, 10)


def _viewed_in_pairs(h: Tensor) -> Tensor:
    return h.view(h.shape[0], -1, 10)


def _unflattened(h: Tensor) -> Tensor:
    return h.flatten(1).unflatten(1, (-1, 10))


def _like_another(h: Tensor) -> Tensor:
    return h.reshape_as(h.new_zeros(h.shape[0], 2 * h.shape[2], 10))


def _viewed_as_another(h: Tensor) -> Tensor:
    return h.view_as(h.new_zeros(h.shape[0], 2 * h.shape[2], 10))


PAIRS = (_reshaped, _viewed_in_pairs, _unflattened, _like_another, _viewed_as_another)


@pytest.mark.parametrize("view", PAIRS, ids=lambda view: view.__name__)
@pytest.mark.parametrize("length", [6, 5])
def test_channels_that_a_view_cuts_at_odd_lengths_stay(view: Read, length: int) -> None:
    # Six steps are three pairs in each channel; of five, one pair lies in two channels.
    inputs = torch.randn(2, 2, length, 5, dtype=torch.float64)
    graph, analysis = traced(alive(Paired(view)), inputs)
    assert 2 in graph.meta["fxprune"].dynamic["x"]
    reasons = {atom.reason for atom in leaves(analysis.propagation.layouts["first.weight"][0])}
    assert "viewed in another way at other sizes of the inputs" in reasons
    assert None not in reasons


def _in_pairs_of_pixels(h: Tensor) -> Tensor:
    return h.reshape(h.shape[0], -1, 2).repeat(1, 1, 5)


def _joined_and_viewed(h: Tensor) -> Tensor:
    flat = h.flatten(1)
    return torch.cat([flat, flat.relu()], 1).reshape(h.shape[0], -1, 10)


@pytest.mark.parametrize(
    ("view", "size"),
    [(_in_pairs_of_pixels, (4, 3)), (_joined_and_viewed, (6, 5))],
    ids=["by units", "joined"],
)
def test_channels_whose_units_make_whole_rows_at_the_examples_size_alone_stay(
    view: Read, size: tuple[int, int]
) -> None:
    # Nothing but units was seen of a channel's rows: six of each, and at other sizes halves of one.
    inputs = torch.randn(2, 2, *size, dtype=torch.float64)
    graph, analysis = traced(alive(Paired(view)), inputs)
    assert 2 in graph.meta["fxprune"].dynamic["x"]
    reasons = {atom.reason for atom in leaves(analysis.propagation.layouts["first.weight"][0])}
    assert reasons == {"viewed in another way at other sizes of the inputs"}


class Narrow(nn.Module):
    """Reads h: [batch, length, 8] of lengths from 15 to 33: neither twice the example's nor half.

    The example's is 20.
    """

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.read = read
        self.table = nn.Parameter(torch.randn(33, 8))
        self.first, self.last = nn.Linear(5, 8), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.read(self.first(x) + self.table[: x.shape[1]])
        return self.last(h).sum(1) + F.max_pool1d(x.transpose(1, 2), 15).sum()


def _in_fours(h: Tensor) -> Tensor:
    return h.transpose(1, 2).reshape(h.shape[0], -1, 4)


def test_where_no_other_sizes_can_be_tried_views_of_growing_channels_stay() -> None:
    inputs = torch.randn(2, 20, 5, dtype=torch.float64)
    graph, analysis = traced(alive(Narrow(_in_fours)), inputs)
    assert graph.meta["fxprune"].dynamic == {"x": (0, 1)}
    reasons = {atom.reason for atom in leaves(analysis.propagation.layouts["first.weight"][0])}
    assert None not in reasons


def _in_as_many_as_channels(h: Tensor) -> Tensor:
    pooled = F.avg_pool1d(h[..., 1:6].transpose(1, 2), 4)
    return pooled.reshape(h.shape[0], -1, 5)[..., :4]


def test_where_no_other_sizes_can_be_tried_views_that_were_seen_to_move_channels_fix_them() -> None:
    # Five channels of five steps each are rows of five; of four steps each, one of them is in two.
    inputs = torch.randn(2, 20, 5, dtype=torch.float64)
    graph, analysis = traced(alive(Narrow(_in_as_many_as_channels)), inputs)
    assert graph.meta["fxprune"].dynamic == {"x": (0, 1)}
    reason = "because: viewed in another way at other sizes of the inputs"
    assert f"dim 0: frozen, 5 indices\n  {reason}" in analysis.explain("first.weight")


def _heads(h: Tensor) -> Tensor:
    return h.reshape(h.shape[0], h.shape[1], 2, 4).sum(2)


def _dense(h: Tensor) -> Tensor:
    halves = h.chunk(2, -1)
    return torch.cat([halves[0].relu(), halves[1]], -1)[..., 2:6]


@pytest.mark.parametrize("read", [_heads, _dense], ids=["heads", "dense"])
def test_where_no_other_sizes_can_be_tried_channels_beside_growing_ones_are_prunable(
    read: Read,
) -> None:
    inputs = torch.randn(2, 33, 5, dtype=torch.float64)
    graph, analysis = traced(alive(Narrow(read)), inputs[:, :20])
    assert graph.meta["fxprune"].dynamic == {"x": (0, 1)}
    plan = random_plan(analysis, groups=lambda group: group.size > 1)
    pruned = fxprune.rewrite(graph, plan)
    assert pruned.first.out_features < 8
    for length in (20, 15, 33):
        assert fxprune.verify(graph, plan, pruned, inputs[:, :length]).ok


class Numbered(nn.Module):
    """Reads as many positions as there are, by number; the view lets sizes vary by steps alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv3d(2, 10, 1), nn.Linear(360, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = self.first(x).flatten(1)
        return self.last(flat[:, list(range(360))]), self.last(flat.view(-1, 1, 360))


def test_sizes_that_halving_does_not_change_show_nothing() -> None:
    # Doubled ones are refused by a guard, and the example's own, once more, showed no growth.
    inputs = torch.randn(2, 2, 3, 4, 3, dtype=torch.float64)
    graph, analysis = traced(alive(Numbered()), inputs)
    assert graph.meta["fxprune"].steps
    assert not analysis.groups


def _in_rows_of_pixels(h: Tensor) -> Tensor:
    return h.reshape(h.shape[0], -1, 12).repeat(1, 1, 2)[:, :, :10]


def _rows_of_pixels_first(h: Tensor) -> Tensor:
    return h.permute(0, 2, 3, 1).reshape(h.shape[0], 12, -1)[:, :, :1].repeat(1, 1, 10)


@pytest.mark.parametrize("view", [_in_rows_of_pixels, _rows_of_pixels_first])
def test_channels_beside_as_many_pixels_as_a_view_names_stay(view: Read) -> None:
    # The view names twelve pixels, all that there are at the example's size: it mixed no channels.
    inputs = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    graph, analysis = traced(alive(Paired(view)), inputs)
    assert 2 in graph.meta["fxprune"].dynamic["x"]
    reasons = {atom.reason for atom in leaves(analysis.propagation.layouts["first.weight"][0])}
    assert reasons == {"viewed in another way at other sizes of the inputs"}


class Pooled(nn.Module):
    """Channels h: [batch, 8, length // 16] of at most 100 steps, in rows of four.

    At lengths near 64, where all lengths are tried that the table bears, a channel is one row.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(100, 8))
        self.first = nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) + self.table[: x.shape[1]]
        h = F.avg_pool1d(h.transpose(1, 2), 16)
        return h.reshape(len(x), -1, 4).amax(-1).sum(-1)


def test_channels_that_a_view_joins_at_lengths_far_from_those_tried_stay() -> None:
    # At half the length, two channels make a row.
    graph, analysis = traced(alive(Pooled()), torch.randn(2, 64, 5, dtype=torch.float64))
    assert graph.meta["fxprune"].dynamic == {"x": (0, 1)}
    assert not graph.meta["fxprune"].far
    assert "viewed in another way at other sizes of the inputs" in analysis.explain("first.weight")


class Joined(nn.Module):
    """Queries, keys and values of two layers side by side, as in attention over several scales."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = nn.Conv2d(2, 12, 1), nn.Conv2d(8, 3, 1)
        self.two = nn.Conv2d(12, 12, 3, padding=1, groups=12)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        h = torch.cat([h, self.two(h)], 1)
        batch, _, height, width = h.shape
        q, k, v = h.reshape(batch, -1, 6, height * width).chunk(3, 2)
        mixed = v @ (k.relu().transpose(-1, -2) @ q.relu())
        return self.last(mixed.reshape(batch, -1, height, width))


def test_heads_of_joined_channels_that_no_size_moves_are_prunable() -> None:
    # They were frozen: the view's own sizes showed no dimension that grows beside them.
    inputs = torch.randn(3, 2, 9, 7, dtype=torch.float64)
    graph, analysis = traced(alive(Joined()), inputs[:2, :, :6, :5])
    assert sorted(group.size for group in analysis.groups) == [2, 2, 2]
    assert_random_plans_hold(graph, analysis, inputs)
