"""Zeroing masks the groups that are called maskable exactly, and not those that are flagged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxprune import Group, rewrite, verify
from fxprune.maskable import _probe
from fxprune.propagate import Record
from tests.masking import TOLERANCE, alive, masked_error, random_plan, traced

Middle = Callable[[Tensor], Tensor]
WIDTH = 8


class Sandwich(nn.Module):
    """Linear, something over the channels [batch, tokens, WIDTH], Linear."""

    def __init__(self, middle: Callable[[Tensor], Tensor], width: int | None = WIDTH) -> None:
        super().__init__()
        self.first = nn.Linear(5, WIDTH)
        self.middle = middle
        self.last = nn.Identity() if width is None else nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


class Images(nn.Module):
    """Conv, something over [batch, WIDTH, 6, 6], Conv."""

    def __init__(self, middle: Middle, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(5, WIDTH, 3, bias=bias)
        self.middle = middle
        self.last = nn.Conv2d(WIDTH, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x.unsqueeze(-1).expand(-1, -1, -1, 8))))


class FreeOfScale(nn.Module):
    """x / ‖x‖ per channel, without an epsilon: 0 / 0 where the channel is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=(2, 3), keepdim=True)


class WhereFreeOfScale(nn.Module):
    """The same at some positions, and numbers at others."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("chosen", torch.arange(6) < 3)
        self.register_buffer("offset", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.chosen, x / x.norm(dim=(2, 3), keepdim=True), x + self.offset)


class Gated(nn.Module):
    """Squeeze and excitation: a sigmoid gate per channel, of a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(WIDTH, 4, 1), nn.Conv2d(4, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class GlobalResponse(nn.Module):
    """ConvNeXt V2's response normalisation over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.norm(2, (2, 3), keepdim=True)
        return x + self.weight * (x * (norm / (norm.mean(1, keepdim=True) + 1e-6)))


class BilinearResidual(nn.Module):
    """A product with something that has no channels, added to the stream, summed over them."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Bilinear(WIDTH, 3, WIDTH)
        self.register_buffer("other", torch.rand(8, 3) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        other = self.other.expand(x.shape[0], -1, -1)
        return (x + self.product(x, other)).sum(-1, keepdim=True)


class Residual(nn.Module):
    """A layer beside the stream, whose inputs and outputs are the same channels."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


class ByPositive(nn.Module):
    """A matrix of positive entries beside the stream, whose channels are then summed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return (x + x @ self.weight.exp()).sum(-1, keepdim=True)


class ByDistances(nn.Module):
    """Scales each output of a matrix by how far the inputs' rows are from its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight * torch.cdist(self.weight, self.weight).sum(0)


class Written(nn.Module):
    """Some tokens are ones in every channel."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0
        x[:, torch.tensor([0, 2])] = 1.0
        return x.sum(-1, keepdim=True)


class ToThePower(nn.Module):
    """A channel that is zero is infinite where the token's exponent is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("exponent", torch.linspace(-1, 1, 8)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return x.abs() ** self.exponent


class Inactive(nn.Module):
    """How many channels are zero: one that is removed is, or is not, by the token's offset."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.linspace(-1, 1, 8)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return (torch.relu(x + self.offset) == 0).to(x.dtype).sum(-1, keepdim=True)


class Offset(nn.Module):
    """A sum with a constant before something else."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(x + 1.0)


def added_products(x: Tensor) -> Tensor:
    """Sums of products that are zero where a channel is, added to ones."""
    ones = (x.sum((0, 1)) * 0).exp().unsqueeze(1)
    return torch.addbmm(ones, x.mT, x.new_ones(x.shape[0], 8, 3)).sum(0)


def added_outer_product(x: Tensor) -> Tensor:
    """Products that are zero where a channel is, added to ones."""
    channels = x.sum((0, 1))
    return torch.addr((channels * 0).exp().unsqueeze(1), channels, x.new_ones(3)).sum(0)


def products_added_to_zeros(x: Tensor) -> Tensor:
    """Sums of products that are not zero where a channel is, added to the channel."""
    channels = x.sum((0, 1)).unsqueeze(1)
    return torch.addbmm(channels, x.sigmoid().mT, x.new_ones(x.shape[0], 8, 3)).sum(0)


MASKABLE: dict[str, Callable[[], nn.Module]] = {
    "nothing": lambda: Sandwich(nn.Identity()),
    "relu": lambda: Sandwich(torch.relu),
    "gelu": lambda: Sandwich(F.gelu),
    "sigmoid": lambda: Sandwich(torch.sigmoid),
    "exp": lambda: Sandwich(torch.exp),
    "cos then square": lambda: Sandwich(lambda x: x.cos() ** 2),
    "an offset": lambda: Sandwich(Offset(nn.Identity())),
    "sum": lambda: Sandwich(lambda x: x.sum(-1, keepdim=True).sin(), 1),
    "sum divided by a count": lambda: Sandwich(lambda x: x.sum(-1, keepdim=True) / WIDTH, 1),
    "normalize": lambda: Sandwich(lambda x: F.normalize(x, dim=-1)),
    "norm": lambda: Sandwich(lambda x: x.norm(dim=-1, keepdim=True), 1),
    "softmax over tokens": lambda: Sandwich(lambda x: x.softmax(1)),
    "mean over tokens": lambda: Sandwich(lambda x: x.mean(1)),
    "max over tokens": lambda: Sandwich(lambda x: x.amax(1)),
    "batch norm": lambda: Images(nn.BatchNorm2d(WIDTH)),
    "batch norm without weights": lambda: Images(nn.BatchNorm2d(WIDTH, affine=False)),
    "pooling": lambda: Images(nn.MaxPool2d(2)),
    "padding with zeros": lambda: Images(nn.ZeroPad2d(1)),
    "padding with ones": lambda: Images(nn.ConstantPad2d(1, 1.0)),
    "sigmoid before a padding": lambda: Images(nn.Sequential(nn.Sigmoid(), nn.ZeroPad2d(1))),
    "a gate": lambda: Images(Gated()),
    "depthwise": lambda: Images(nn.Conv2d(WIDTH, WIDTH, 3, groups=WIDTH)),
    "dropout": lambda: Sandwich(nn.Dropout(0.5)),
    "prelu": lambda: Images(nn.PReLU(WIDTH)),
    "a mean over tokens before a sum": lambda: Sandwich(
        lambda x: x.mean(1).sum(-1, keepdim=True), 1
    ),
    "a normalisation of each channel before a sum": lambda: Sandwich(
        lambda x: F.group_norm(x.mT, WIDTH).sum(1, keepdim=True).mT, 1
    ),
    "weight norm": lambda: Sandwich(nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 4)), 4),
    "a sum of what a sigmoid has read": lambda: Sandwich(
        lambda x: x.sigmoid() * x.sum(-1, keepdim=True)
    ),
    "products with a sigmoid over tokens before a sum": lambda: Sandwich(
        lambda x: torch.einsum("btc,btc->bc", x.sigmoid(), x).sum(-1, keepdim=True), 1
    ),
    "a quotient of integers": lambda: Sandwich(
        lambda x: torch.floor_divide((x > 0).long(), torch.arange(1, 9).unsqueeze(1)) * x
    ),
    "a bias that masking zeroes": lambda: Images(nn.Identity(), bias=True),
}

FLAGGED: dict[str, Callable[[], nn.Module]] = {
    "mean": lambda: Sandwich(lambda x: x.mean(-1, keepdim=True), 1),
    "variance": lambda: Sandwich(lambda x: x.var(-1, keepdim=True), 1),
    "standard deviation": lambda: Sandwich(lambda x: x.std(-1, keepdim=True), 1),
    "minimum": lambda: Sandwich(lambda x: (x.abs() + 1).amin(-1, keepdim=True), 1),
    "maximum": lambda: Sandwich(lambda x: -(x.abs() + 1).amax(-1, keepdim=True).neg(), 1),
    "product": lambda: Sandwich(lambda x: (x + 2).prod(-1, keepdim=True), 1),
    "logsumexp": lambda: Sandwich(lambda x: x.logsumexp(-1, keepdim=True), 1),
    "softmax": lambda: Sandwich(lambda x: x.softmax(-1)),
    "log_softmax": lambda: Sandwich(lambda x: x.log_softmax(-1)),
    "layer norm": lambda: Sandwich(nn.LayerNorm(WIDTH)),
    "rms norm": lambda: Sandwich(nn.RMSNorm(WIDTH)),
    "global response norm": lambda: Images(GlobalResponse()),
    "local response norm": lambda: Images(nn.LocalResponseNorm(3)),
    "sigmoid before a sum": lambda: Sandwich(lambda x: x.sigmoid().sum(-1, keepdim=True), 1),
    "an offset before a sum": lambda: Sandwich(Offset(lambda x: x.sum(-1, keepdim=True)), 1),
    "an offset before a norm": lambda: Sandwich(Offset(lambda x: F.normalize(x, dim=-1))),
    "ones like it before a sum": lambda: Sandwich(
        lambda x: (x + torch.ones_like(x)).sum(-1, keepdim=True), 1
    ),
    "ones written to it before a sum": lambda: Sandwich(Written(), 1),
    "an exponent that may be negative": lambda: Sandwich(ToThePower()),
    "a count of zeros": lambda: Sandwich(Inactive(), 1),
    "zero over zero": lambda: Images(FreeOfScale()),
    "zero over zero before a pooling": lambda: Images(
        nn.Sequential(FreeOfScale(), nn.AvgPool2d(2))
    ),
    "zero over zero at some positions": lambda: Images(WhereFreeOfScale()),
    "weight norm of a square matrix": lambda: Sandwich(
        Residual(nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)))
    ),
    "distances between the rows of a square matrix": lambda: Sandwich(Residual(ByDistances())),
    "a logarithm": lambda: Sandwich(lambda x: x.abs().log()),
    "a softmax over tokens of a logarithm": lambda: Sandwich(lambda x: x.abs().log().softmax(1)),
    "a square matrix without zeros before a sum": lambda: Sandwich(ByPositive(), 1),
    "the scale of a normalisation over tokens before a sum": lambda: Sandwich(
        lambda x: torch.native_layer_norm(x.mT, (8,), None, None, 1e-5)[2].sum(1, keepdim=True), 1
    ),
    "a reciprocal": lambda: Sandwich(lambda x: x.reciprocal()),
    "a norm of negative order": lambda: Sandwich(
        lambda x: torch.linalg.vector_norm(x, -1, dim=-1, keepdim=True), 1
    ),
    "the order of zeros before a sum": lambda: Sandwich(
        lambda x: x.sort(dim=1, stable=True).indices.to(x).sum(-1, keepdim=True), 1
    ),
    "buckets before a sum": lambda: Sandwich(
        lambda x: torch.bucketize(x, torch.tensor([-1.0, 1.0])).to(x).sum(-1, keepdim=True), 1
    ),
    "ones added to products before a sum": lambda: Sandwich(added_products, 3),
    "products of a sigmoid added to zeros before a sum": lambda: Sandwich(
        products_added_to_zeros, 3
    ),
    "ones added to an outer product before a sum": lambda: Sandwich(added_outer_product, 3),
}

NEVER_DIFFERS = {"maximum", "local response norm"}
"""Flagged conservatively, or frozen: zeroing may not show."""


def of_first(group: Group) -> bool:
    return any(m.parameter == "first.weight" and m.dim == 0 for m in group.members)


def data(model: nn.Module, batch: int) -> Tensor:
    x = torch.randn(batch, 8, 5).double()
    return x.transpose(1, 2) if isinstance(model, Images) else x


@pytest.mark.parametrize("name", MASKABLE)
def test_maskable_groups_are_masked_exactly(name: str) -> None:
    model = alive(MASKABLE[name]())
    graph, analysis = traced(model, data(model, 2))
    group = next(filter(of_first, analysis.groups))
    assert group.maskable
    for seed in range(3):
        plan = random_plan(analysis, seed, of_first)
        pruned = rewrite(graph, plan)
        assert masked_error(model, plan, pruned, data(model, 3)) <= TOLERANCE


@pytest.mark.parametrize("name", FLAGGED)
def test_flagged_groups_differ_and_equal_the_masked_interpretation(name: str) -> None:
    model = alive(FLAGGED[name]())
    graph, analysis = traced(model, data(model, 2))
    if name == "local response norm":  # a window over channels
        assert not any(map(of_first, analysis.groups))
        return
    group = next(filter(of_first, analysis.groups))
    assert not group.maskable
    plan = random_plan(analysis, 0, of_first)
    pruned, inputs = rewrite(graph, plan), data(model, 3)
    report = verify(graph, plan, pruned, inputs)
    assert report.ok, report
    assert report.law == "masked interpretation"
    if name not in NEVER_DIFFERS:
        assert masked_error(model, plan, pruned, inputs) > 1e-6


def test_an_operand_without_the_channels_does_not_count() -> None:
    model = alive(Sandwich(BilinearResidual(), 1))
    graph, analysis = traced(model, data(model, 2))
    (group,) = filter(of_first, analysis.groups)
    assert group.maskable
    plan = random_plan(analysis, 0, of_first)
    assert masked_error(model, plan, rewrite(graph, plan), data(model, 3)) <= TOLERANCE


@pytest.mark.parametrize(
    ("other", "op"),
    [
        (torch.tensor(-0.3).double(), lambda x, other: torch.relu(x - other)),
        (torch.tensor(-1), torch.minimum),
        (torch.arange(-2, 6)[:, None], torch.minimum),
        (torch.arange(8)[:, None], torch.pow),
        (torch.tensor(0), torch.pow),
    ],
    ids=["threshold", "scalar", "negative", "powers", "power"],
)
def test_what_follows_from_zeros_follows_whatever_the_other_operand_is(
    other: Tensor, op: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Few samples of it, or none that is zero or negative, would make a result look like zero."""

    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("other", torch.empty_like(other))

        def forward(self, x: Tensor) -> Tensor:
            return op(x.abs(), self.other).sum(-1, keepdim=True)

    model = alive(Sandwich(Summed(), 1))
    model.middle.other = other
    graph, analysis = traced(model, data(model, 2))
    (group,) = filter(of_first, analysis.groups)
    assert not group.maskable
    plan = random_plan(analysis, 0, of_first)
    assert masked_error(model, plan, rewrite(graph, plan), data(model, 3)) > 1e-6


def test_dividing_by_a_number_that_may_be_zero_leaves_zeros() -> None:
    """As a mean does that divides by how many entries a mask leaves."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.arange(8)[:, None] < 5)

        def forward(self, x: Tensor) -> Tensor:
            mean = (x * self.mask).sum(1) / self.mask.sum()
            return mean.sum(-1, keepdim=True)

    model = alive(Sandwich(Masked(), 1))
    graph, analysis = traced(model, data(model, 2))
    (group,) = filter(of_first, analysis.groups)
    assert group.maskable
    plan = random_plan(analysis, 0, of_first)
    assert masked_error(model, plan, rewrite(graph, plan), data(model, 3)) <= TOLERANCE


def test_where_a_maximum_is_does_not_follow_from_what_it_is() -> None:
    """Of equal values, it may be any."""

    def middle(x: Tensor) -> Tensor:
        return (x.cos().max(1, keepdim=True).indices.to(x) - 1).sum(-1, keepdim=True)

    model = alive(Sandwich(middle, 1))
    graph, analysis = traced(model, data(model, 2))
    (group,) = filter(of_first, analysis.groups)
    assert not group.maskable
    plan = random_plan(analysis, 0, of_first)
    pruned = rewrite(graph, plan)
    assert masked_error(model, plan, pruned, data(model, 3)) > 1e-6
    assert verify(graph, plan, pruned, data(model, 3)).ok


def test_whole_norm_groups_are_maskable_and_channels_inside_them_are_not() -> None:
    model = alive(Images(nn.GroupNorm(4, WIDTH)))
    graph, analysis = traced(model, data(model, 2))
    groups = {group.size: group for group in analysis.groups if of_first(group)}
    assert sorted(groups) == [2, 4]
    assert (groups[4].maskable, groups[2].maskable) == (True, False)
    assert groups[2].outer == groups[4].name
    plan = random_plan(analysis, 0, lambda g: g.size == 4)
    pruned = rewrite(graph, plan)
    assert (pruned.middle.num_groups, pruned.middle.num_channels) == (2, 4)
    assert masked_error(model, plan, pruned, data(model, 3)) <= TOLERANCE
    plan = random_plan(analysis, 0, lambda g: g.size == 2)
    pruned = rewrite(graph, plan)
    assert (pruned.middle.num_groups, pruned.middle.num_channels) == (4, 4)
    assert masked_error(model, plan, pruned, data(model, 3)) > 1e-6
    assert verify(graph, plan, pruned, data(model, 3)).ok


def test_instance_norm_is_never_a_statistic_over_channels() -> None:
    for norm in (nn.InstanceNorm2d(WIDTH, affine=True), nn.InstanceNorm2d(WIDTH)):
        model = alive(Images(norm))
        graph, analysis = traced(model, data(model, 2))
        plan = random_plan(analysis, 0, of_first)
        pruned = rewrite(graph, plan)
        assert masked_error(model, plan, pruned, data(model, 3)) <= TOLERANCE
        assert all(group.maskable for group in analysis.groups if of_first(group))


def test_the_bias_of_a_layer_norm_stays_where_its_input_goes() -> None:
    """Pre-norm blocks: the stream is normalised, so it is flagged; the hidden layer is maskable."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(5, WIDTH), nn.LayerNorm(WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
            self.last = nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(x + self.down(F.gelu(self.up(self.norm(x)))))

    model = alive(Block())
    graph, analysis = traced(model, torch.randn(2, 4, 5).double())
    maskable = {group.size: group.maskable for group in analysis.groups}
    assert maskable == {WIDTH: False, 12: True}
    plan = random_plan(analysis)
    assert verify(graph, plan, rewrite(graph, plan), torch.randn(3, 4, 5).double()).ok


def test_ops_that_leave_the_same_of_a_channel_are_tried_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[fx.Node] = []

    def probe(record: Record, *given: Any) -> float:
        tried.append(record.site)
        return float(_probe(record, *given))

    monkeypatch.setattr("fxprune.maskable._probe", probe)
    traced(alive(Sandwich(lambda x: x.relu().relu().relu() + 1.0)), torch.randn(2, 8, 5).double())
    assert [node.name for node in tried] == ["relu", "add"]
