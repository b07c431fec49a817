"""The parts of `fxprune.growing`: where factors lie in views, and which other sizes are tried."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.algebra import Algebra
from fxprune.axes import Axis
from fxprune.capture.records import TraceInfo
from fxprune.growing import _places, _runs, _sized, is_cut, other_sizes

factors = st.lists(st.tuples(st.integers(2, 4), st.booleans()), min_size=1, max_size=4)


def _lies_in(sizes: list[int], place: int, shape: list[int], dim: int) -> bool:
    """Whether the factor's index follows from the dimension's, element by element."""
    of_dim: dict[int, set[int]] = {}
    for element in range(math.prod(shape)):
        factor = element // math.prod(sizes[place + 1 :]) % sizes[place]
        index = element // math.prod(shape[dim + 1 :]) % shape[dim]
        of_dim.setdefault(index, set()).add(factor)
    return all(len(found) == 1 for found in of_dim.values())


@st.composite
def views(draw: st.DrawFn) -> tuple[list[tuple[int, bool]], list[int]]:
    """Factors, and the sizes of a view of as many elements."""
    parts = draw(factors)
    rest, shape = math.prod(size for size, _ in parts), []
    for _ in range(draw(st.integers(0, 3))):
        shape.append(draw(st.sampled_from([d for d in range(1, rest + 1) if rest % d == 0])))
        rest //= shape[-1]
    return parts, [*shape, rest]


@given(views())
def test_a_factor_lies_in_the_dimension_that_tells_its_index(
    view: tuple[list[tuple[int, bool]], list[int]],
) -> None:
    parts, shape = view
    sizes = [size for size, _ in parts]
    expected: list[tuple[int | None, ...]] = []
    for place in reversed([p for p, (_, free) in enumerate(parts) if free]):
        dims = [d for d in range(len(shape)) if _lies_in(sizes, place, shape, d)]
        strides = math.prod(sizes[place + 1 :]), math.prod(sizes[place:])
        expected.append((len(shape) - 1 - dims[0],) if dims else (None, *strides))
    assert _places(parts, shape) == expected


def _atoms(algebra: Algebra, sizes: str) -> list[Axis]:
    """Atoms of these sizes, frozen where "!" follows."""
    return [
        algebra.constant(int(size[:-1]), "fixed") if size.endswith("!") else algebra.atom(int(size))
        for size in sizes.split()
    ]


def test_frozen_neighbours_are_one_run_and_free_ones_are_not() -> None:
    algebra = Algebra()
    a, b, c, d, e = atoms = _atoms(algebra, "2! 3! 4 5 6!")
    assert _runs(algebra.product(atoms)) == [
        ((a, b), False),
        ((c,), True),
        ((d,), True),
        ((e,), False),
    ]
    assert _runs(a) == [((a,), False)]


def test_the_size_of_one_unknown_run_follows_from_the_others() -> None:
    algebra = Algebra()
    a, b, c, d = atoms = _atoms(algebra, "2! 3! 4 5!")
    runs = _runs(algebra.product(atoms))
    known = {id(a): 7, id(b): 3, id(d): 11}
    assert _sized(runs, 7 * 3 * 4 * 11, known) == [(21, False), (4, True), (11, False)]
    del known[id(b)]
    assert _sized(runs, 21 * 4 * 11, known) == [(21, False), (4, True), (11, False)]
    del known[id(d)]
    assert _sized(runs, 21 * 4 * 11, known) == [(0, False), (0, True), (0, False)]
    assert c.size == 4


def test_sizes_that_are_looked_up_must_make_up_the_dimension() -> None:
    # A dimension of one position lies beside the axis here and grows: 5 is its size without that.
    algebra = Algebra()
    atoms = _atoms(algebra, "2! 4 5!")
    runs, known = _runs(algebra.product(atoms)), {id(atoms[0]): 5, id(atoms[2]): 5}
    assert _sized(runs, 3 * 5 * 4 * 5, known) == [(0, False), (0, True), (0, False)]
    assert _sized(runs, 5 * 4 * 5, known) == [(5, False), (4, True), (5, False)]
    assert _sized(_runs(atoms[0]), 15, known) == [(15, False)]


def test_the_size_of_a_free_run_that_grows_follows_too() -> None:
    algebra = Algebra()
    channels, steps, rest = _atoms(algebra, "4 3! 5!")
    folded = algebra.product([channels, steps])
    joined = algebra.concat([folded, folded])
    runs = _runs(algebra.product([joined, rest]))
    assert _sized(runs, 2 * 4 * 7 * 5, {id(rest): 5}) == [(2 * 4 * 7, True), (5, False)]


def test_a_view_is_cut_where_a_free_factor_gets_into_another_dimension() -> None:
    algebra = Algebra()
    time, channels = _atoms(algebra, "6! 4")
    flat = (algebra.product([time, channels]),)
    halves = (*_atoms(algebra, "3!"), algebra.atom(8))  # two steps side by side
    assert not is_cut(flat, [40], halves, [5, 8], {id(time): 10})
    assert is_cut(flat, [36], (*_atoms(algebra, "2!"), algebra.atom(12)), [6, 6], {id(time): 9})
    two = _atoms(algebra, "6! 5!")
    both = (algebra.product([two[0], channels, two[1]]),)
    assert is_cut(both, [4 * 66], both, [4 * 66], {})  # neither of two sizes is known
    beside = (algebra.atom(3), *both)
    assert is_cut(beside, [3, 4 * 66], beside, [3, 4 * 66], {})
    assert not is_cut(both, [4 * 66], both, [4 * 66], {id(two[1]): 11})


def test_other_sizes_are_far_and_keep_to_the_steps() -> None:
    info = TraceInfo(dynamic={"x": (0, 2, 3), "y[1]": (1,)}, steps={"x": {2: 4, 3: 32}})
    values = (torch.empty(2, 3, 6, 32), [torch.empty(2), torch.empty(1, 7)])
    doubled = {("x", 0): 5, ("x", 2): 6 + 3 * 4, ("x", 3): 32 + 2 * 32, ("y[1]", 1): 15}
    assert other_sizes(info, ["x", "y"], values, doubled=True) == doubled
    halved = {("x", 0): 1, ("x", 2): 6, ("x", 3): 32, ("y[1]", 1): 4}
    assert other_sizes(info, ["x", "y"], values, doubled=False) == halved
