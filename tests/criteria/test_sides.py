"""Which side of a group a curvature criterion looks at, and what it makes of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxprune
from fxprune.criteria.sides import Side, SideName, find_side
from tests.statistics.layers import statistics_of
from tests.statistics.networks import randomized

NAMES = ("obd", "c_obd", "obs", "c_obs", "kron_obd", "kron_obs", "kron_obd_sets", "kron_obs_sets")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.inner_norm = nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.outer, self.outer_norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        y = self.inner_norm(self.inner(x)).relu()
        return self.head((x + self.outer_norm(self.outer(y))).relu().mean((2, 3)))


class Inverted(nn.Module):
    """Expansion, depthwise convolution, gate, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.depth, self.depth_norm = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)
        self.project, self.head = nn.Conv2d(4, 3, 1), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.softplus(self.norm(self.expand(x)))
        x = functional.softplus(self.depth_norm(self.depth(x)))
        return self.head(torch.tanh(self.project(x)).mean((2, 3)))


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x).relu()))
        return self.head(x.mean((2, 3)))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1, groups=2)
        self.head = nn.Linear(4 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))).flatten(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean(1))


IMAGES, TOKENS, ROWS = (2, 3, 3), (4, 8), (4,)
Expected = dict[str, tuple[str, set[str], int]]
# Per group: the side, the layers, and the share, where producers are preferred.
MODELS: dict[Callable[[], nn.Module], tuple[tuple[int, ...], Expected]] = {
    Residual: (
        IMAGES,
        {
            "stem.weight:0": ("rows", {"stem", "outer"}, 1),
            "inner.weight:0": ("rows", {"inner"}, 1),
        },
    ),
    Inverted: (
        IMAGES,
        {"expand.weight:0": ("rows", {"depth"}, 1), "project.weight:0": ("rows", {"project"}, 1)},
    ),
    PreActivation: (
        IMAGES,
        {"first.weight:0": ("columns", {"second"}, 1), "second.weight:0": ("rows", {"second"}, 1)},
    ),
    Gated: (ROWS, {"gate.weight:0": ("columns", {"down"}, 1)}),
    Attention: (
        TOKENS,
        {
            "block.self_attn.in_proj_weight:0": ("columns", {"block.self_attn.out_proj"}, 1),
            "block.self_attn.in_proj_weight:0#1": (
                "rows",
                {f"block.self_attn.in_proj_weight[{a}:{a + 8}]" for a in (0, 8)},
                2,
            ),
            "block.self_attn.in_proj_weight:0#2": (
                "rows",
                {"block.self_attn.in_proj_weight[16:24]"},
                1,
            ),
            "block.linear1.weight:0": ("rows", {"block.linear1"}, 1),
        },
    ),
}
each_model = pytest.mark.parametrize(
    ("make", "shape", "expected"),
    [(make, *rest) for make, rest in MODELS.items()],
    ids=[make.__name__ for make in MODELS],
)


def statistics(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> fxprune.Statistics:
    torch.manual_seed(0)
    model = randomized(make())
    x, y = torch.randn(12, *shape).double(), torch.randint(3, (12,))
    return statistics_of(model, [(x, y)], x)


def side_of(found: fxprune.Statistics, name: str, prefer: SideName) -> Side:
    groups = {group.name: group for group in found.analysis.groups}
    return find_side(groups[name], found.analysis, found.layers, prefer)


@each_model
def test_the_side_is_one(
    make: Callable[[], nn.Module], shape: tuple[int, ...], expected: Expected
) -> None:
    found = statistics(make, shape)
    for name, (side, layers, share) in expected.items():
        mine = side_of(found, name, "producer")
        assert {piece.layer.name for piece in mine.slices} == layers, name
        assert {piece.rows for piece in mine.slices} == {side == "rows"}, name
        assert mine.share == share, name


@each_model
def test_consumers_are_what_reads_the_group(
    make: Callable[[], nn.Module], shape: tuple[int, ...], expected: Expected
) -> None:
    found = statistics(make, shape)
    for group in found.analysis.groups:
        reading = {m.parameter for m in group.members if m.role == "consumer"}
        side = side_of(found, group.name, "consumer")
        if reading:
            assert {piece.layer.weight for piece in side.slices} == reading
            assert not any(piece.rows for piece in side.slices)
        else:
            assert all(piece.rows for piece in side.slices)


@each_model
@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_scores_every_group(
    make: Callable[[], nn.Module], shape: tuple[int, ...], expected: Expected, name: str
) -> None:
    found = statistics(make, shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxprune.LeftWholeWarning)
        scores = fxprune.score(found.analysis, name, found)
    for group in found.analysis.groups:
        assert bool((scores[group.name] >= 0).all())
        assert bool((scores[group.name] > 0).any())
    plan = fxprune.plan(found.analysis, name, 0.4, data=found)
    assert not plan.is_empty


def test_columns_of_a_grouped_convolution_belong_to_units_of_each_group() -> None:
    found = statistics(Grouped, IMAGES)
    inner = next(g for g in found.analysis.groups if g.name == "a.weight:0#1")
    assert inner.shape == (2, 3)
    (piece,) = side_of(found, inner.name, "consumer").slices
    expected = torch.arange(6).reshape(2, 3).repeat_interleave(9, 1)
    assert torch.equal(piece.slots, expected)
    (rows,) = side_of(found, inner.name, "producer").slices
    assert rows.layer.name == "a"
    assert torch.equal(rows.slots, torch.arange(6)[None])


def test_a_channel_that_was_flattened_owns_all_its_columns() -> None:
    found = statistics(Grouped, IMAGES)
    group = next(g for g in found.analysis.groups if g.name == "b.weight:0")
    (piece,) = side_of(found, group.name, "consumer").slices
    assert torch.equal(piece.slots, torch.arange(4).repeat_interleave(9)[None])


def test_what_no_layer_makes_or_reads_is_left_whole() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 4, 3)
            self.down, self.last = nn.ConvTranspose2d(4, 3, 3), nn.Conv2d(3, 2, 3)
            self.head = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.down(torch.tanh(self.up(x)))
            return self.head(torch.tanh(self.last(torch.tanh(x))).mean((2, 3)))

    found = statistics(Transposed, IMAGES)
    with pytest.warns(fxprune.LeftWholeWarning, match="neither are its units rows"):
        scores = fxprune.score(found.analysis, "kron_obs", found)
    assert set(scores) == {"down.weight:1", "last.weight:0"}
