"""Units that stand alone, in slices: no slice may lose all of its units."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.algebra import Algebra
from fxprune.axes import Atom, Axis
from fxprune.last_units import last_units
from fxprune.plans import PruningPlan


def spread(x: Tensor) -> Tensor:
    part = x[:, 2::5]
    return part.amax(1, keepdim=True) - part.amin(1, keepdim=True)


@pytest.fixture(scope="module", autouse=True)
def library() -> torch.library.Library:
    """The library object owns its operators, which torch takes once: not where this is imported."""
    library = torch.library.Library("fxprune_slices", "FRAGMENT")
    library.define("spread(Tensor x) -> Tensor")
    library.impl("spread", spread, "CompositeImplicitAutograd")
    return library


class Slices(nn.Module):
    """Pairs of channels, of which a layer reads two channels of two pairs."""

    def __init__(self, taken: list[int]) -> None:
        super().__init__()
        self.features, self.paired = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1, groups=4)
        self.taken, self.reads = taken, nn.Conv2d(len(taken), 3, 1)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.features(x).tanh()
        part = y[:, self.taken]
        return self.head(self.paired(y)), self.reads(part) - part.amax(1, keepdim=True)


class Heads(nn.Module):
    """The first two of three heads are read by one layer, the second and third by another."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(5, 12)
        self.first, self.second = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.project(x).unflatten(-1, (3, 4))
        front, back = heads[..., [0, 1], :], heads[..., [1, 2], :]
        return self.first(front.flatten(-2)), self.second(back.amax(-2).repeat(1, 2))


@pytest.mark.parametrize(
    "model",
    [Slices([2, 7]), Slices([2, 7, 0]), Slices([3, 2]), Slices([6]), Heads()],
    ids=["diagonal", "three", "one_pair", "one", "heads"],
)
def test_a_slice_keeps_a_unit(model: nn.Module) -> None:
    # A convolution of no channels has no output, a maximum over none is an error.
    torch.manual_seed(0)
    model = model.double().eval()
    shape = (2, 3, 5, 5) if isinstance(model, Slices) else (2, 5)
    traced = fxprune.trace(model, torch.randn(shape, dtype=torch.float64))
    analysis = fxprune.analyze(traced)
    x = torch.randn((3, *shape[1:]), dtype=torch.float64)
    ones = [[[unit] for unit in range(group.size)] for group in analysis.groups]
    for rows in itertools.product(*ones):
        kept = {group.name: row for group, row in zip(analysis.groups, rows, strict=True)}
        plan = PruningPlan.build(analysis, kept)
        report = fxprune.verify(traced, plan, fxprune.rewrite(traced, plan), x)
        assert report.ok, report


def test_units_that_are_left_may_go() -> None:
    """Of the pairs and of the places in a pair, one each is pinned by the diagonal slice."""
    sizes = {}
    for taken in ([2, 7], [0, 1, 2, 3, 4, 5, 6, 7]):
        graph = fxprune.trace(Slices(taken).eval(), torch.randn(2, 3, 5, 5))
        sizes[len(taken)] = sorted(group.size for group in fxprune.analyze(graph).groups)
    assert sizes == {2: [2], 8: [2, 4]}


class Spread(Slices):
    """An op of several steps takes the slice."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.features(x).tanh()
        return self.head(self.paired(y)), torch.ops.fxprune_slices.spread(y)


def test_a_slice_inside_an_op_keeps_a_unit() -> None:
    graph = fxprune.trace(Spread([2, 7]).eval(), torch.randn(2, 3, 5, 5))
    analysis = fxprune.analyze(graph, strict=True)
    for group in analysis.groups:
        for unit in range(group.size):
            kept = PruningPlan.build(analysis, {group.name: [unit]}).masks()["features.bias"]
            assert kept[2] or kept[7]


def pinned(*axes: Axis, families: list[list[Atom]]) -> frozenset[Atom]:
    """The last units of a program whose parameters have these dimensions."""
    layouts = {str(number): (axis,) for number, axis in enumerate(axes)}
    return last_units(SimpleNamespace(layouts=layouts, records=[]), families)


def test_few_units_are_pinned() -> None:
    algebra = Algebra()
    a, b = families = [[algebra.atom(1) for _ in range(2)] for _ in range(2)]
    pair = algebra.concat([b[0], a[0]])
    assert pinned(pair, families=families) == {b[0]}
    assert pinned(pair, a[0], families=families) == {a[0]}  # which serves the pair, too
    both = algebra.concat([algebra.product([a[0], b[0]]), b[1]])
    assert pinned(both, families=families) == {b[1]}
    assert not pinned(algebra.concat([*a, b[0]]), families=families)  # of a, one stays anyway
    corners = algebra.concat([algebra.product([x, y]) for x in a for y in b])
    assert not pinned(corners, families=families)


def test_a_dimension_without_indices_pins_none() -> None:
    algebra = Algebra()
    unit, other = algebra.atom(1), algebra.atom(1)
    empty, _ = algebra.segment(algebra.atom(3), [0, 3])
    assert not pinned(algebra.product([unit, empty]), families=[[unit, other]])
