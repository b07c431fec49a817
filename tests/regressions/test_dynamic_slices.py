"""Slices and indices that follow a size of the inputs, of dimensions that lose units."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from tests.masking import alive, as_written, random_plan, traced

Read = Callable[[Tensor, Tensor], Tensor]


class Net(nn.Module):
    """Reads channels h: [batch, length, 8] of inputs x: [batch, length, 5] in some way."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.read = read
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.read(self.first(x), x))


def _whole(h: Tensor, x: Tensor) -> Tensor:
    flat = h.flatten(1)
    return flat[..., 0 : flat.shape[1]].view(h.shape)


def _leading(h: Tensor, x: Tensor) -> Tensor:
    return h + h[:, :, : 2 * x.shape[1]].sum(-1, keepdim=True)


def _leading_of_the_last(h: Tensor, x: Tensor) -> Tensor:
    return h + h[..., : 2 * x.shape[1]].sum(-1, keepdim=True)


def _narrowed(h: Tensor, x: Tensor) -> Tensor:
    return h + h.narrow(2, 0, 2 * x.size(1)).sum(-1, keepdim=True)


def _split(h: Tensor, x: Tensor) -> Tensor:
    return h + h.split(2 * x.size(1), -1)[0].sum(-1, keepdim=True)


def _rolled(h: Tensor, x: Tensor) -> Tensor:
    return h + h.roll(x.size(1), -1)


def _rolled_along_the_length(h: Tensor, x: Tensor) -> Tensor:
    return h + h.roll(x.size(1) // 2, 1)


def _last(h: Tensor, x: Tensor) -> Tensor:
    flat = h.flatten(1)
    return h + flat[:, flat.shape[1] - 1][:, None, None]


def pruned_at_lengths(read: Read) -> fx.GraphModule:
    """The pruned network, whose channels are one group, seen to be right at two lengths."""
    inputs = torch.randn(3, 4, 5, dtype=torch.float64)
    graph, analysis = traced(alive(Net(read)), inputs[:2])
    assert [group.size for group in analysis.groups] == [8]
    plan = random_plan(analysis)
    pruned = fxprune.rewrite(graph, plan)
    for length in (4, 3):
        report = fxprune.verify(graph, plan, pruned, inputs[:, :length])
        assert report.ok, str(report)
    return pruned


def test_a_slice_of_as_many_as_there_are_stays_whole() -> None:
    # `rewrite` failed: it took the size for a number.
    pruned_at_lengths(_whole)


@pytest.mark.parametrize("capture", [traced, as_written])
@pytest.mark.parametrize(
    "read",
    [_leading, _leading_of_the_last, _split, _rolled, _last],
    ids=["slice", "ellipsis", "split", "roll", "index"],
)
def test_channels_chosen_by_a_size_are_frozen(
    read: Read, capture: Callable[[nn.Module, Tensor], tuple[fx.GraphModule, fxprune.Analysis]]
) -> None:
    # At length 4 the slice is the whole, so that torch slices nothing; `rewrite` failed. What was
    # split was another part at other lengths.
    inputs = torch.randn(2, 4, 5, dtype=torch.float64)
    _, analysis = capture(alive(Net(read)), inputs)
    assert not analysis.groups
    assert "follows the inputs" in analysis.explain("first")


def test_a_part_as_long_as_the_input_is_no_channels() -> None:
    # `trace` makes a number of the length; in other graphs it is a node.
    _, analysis = as_written(alive(Net(_narrowed)), torch.randn(2, 4, 5, dtype=torch.float64))
    assert not analysis.groups


def test_channels_repeated_as_often_as_the_input_says() -> None:
    # A count of the traced length would fail at others.
    def repeated(h: Tensor, x: Tensor) -> Tensor:
        return h.repeat(1, 1, x.size(1)).unflatten(-1, (x.size(1), 8)).sum(2)

    pruned_at_lengths(repeated)


def test_positions_are_rolled_by_a_size_that_follows_the_inputs() -> None:
    # `rewrite` failed: it took the size for a sequence of them.
    pruned = pruned_at_lengths(_rolled_along_the_length)
    assert pruned.first.out_features < 8


class LikeAnother(nn.Module):
    """A weight in the shape of another, which no input has a part in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.like = (nn.Parameter(torch.randn(6, 5)) for _ in range(2))
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.linear(x, self.weight.view(self.like.size())))


def test_the_shape_of_a_weight_follows_no_input() -> None:
    # It is a node in the graphs of other tracers.
    inputs = torch.randn(2, 5, dtype=torch.float64)
    graph, analysis = as_written(alive(LikeAnother()), inputs)
    plan = random_plan(analysis, groups=lambda group: group.name == "weight:0")
    assert list(plan.kept_units) == ["weight:0"]
    assert fxprune.verify(graph, plan, fxprune.rewrite(graph, plan), inputs).ok
