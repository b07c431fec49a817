"""Where factors fit, the algebra keeps every choice that brute force finds; known cases by name."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.algebra import Algebra
from fxprune.axes import (
    Atom,
    Axis,
    Concat,
    Product,
    factors_of,
    find,
    is_frozen,
    leaves,
    segments_of,
)
from tests.axes.oracle import Program, Removal, expand, outer

Bits = tuple[bool, ...]
Step = tuple[str, tuple[int, ...]]


def random_steps(rng: random.Random, length: int) -> tuple[list[int], list[Step]]:
    """Sizes of atoms, powers of 2, and products, factors and unifications of what is there."""
    sizes = [rng.choice((2, 4)) for _ in range(rng.randint(2, 4))]
    while sum(sizes) > 10:
        sizes.pop()
    known, steps = list(sizes), []
    for _ in range(length):
        pick, i = rng.choice(("product", "factor", "unify")), rng.randrange(len(known))
        if pick == "product":
            j = rng.randrange(len(known))
            if known[i] * known[j] <= 16:
                steps.append((pick, (i, j)))
                known.append(known[i] * known[j])
        elif pick == "factor" and known[i] > 2:
            major = rng.choice([f for f in (2, 4, 8) if f < known[i]])
            steps.append((pick, (i, major)))
            known += [major, known[i] // major]
        elif pick == "unify":
            j = rng.choice([j for j, size in enumerate(known) if size == known[i]])
            steps.append((pick, (i, j)))
    return sizes, steps


def simulate(steps: Sequence[Step], atoms: Sequence[Bits]) -> bool:
    """Whether what stays of the atoms satisfies every step, with something left of every axis."""
    known = list(atoms)
    for pick, arguments in steps:
        if pick == "product":
            known.append(tuple(outer([known[i] for i in arguments])))
        elif pick == "unify":
            if known[arguments[0]] != known[arguments[1]]:
                return False
        else:
            whole, major = known[arguments[0]], arguments[1]
            minor = len(whole) // major
            rows = tuple(any(whole[r * minor : (r + 1) * minor]) for r in range(major))
            columns = tuple(any(whole[c::minor]) for c in range(minor))
            if tuple(outer([rows, columns])) != whole:
                return False
            known += [rows, columns]
    return all(any(axis) for axis in known)


def subsets(count: int) -> Iterator[Bits]:
    return itertools.product((False, True), repeat=count)


@settings(max_examples=150)
@given(st.integers(0, 1 << 40), st.integers(1, 8))
def test_every_choice_that_is_possible_stays_possible(seed: int, length: int) -> None:
    """Sizes that are powers of 2 always have a common refinement: nothing more is coupled."""
    sizes, steps = random_steps(random.Random(seed), length)
    algebra = Algebra()
    atoms: list[Axis] = [algebra.atom(size) for size in sizes]
    known = list(atoms)
    for pick, (i, j) in steps:
        if pick == "product":
            known.append(algebra.product([known[i], known[j]]))
        elif pick == "factor":
            known += algebra.factor(known[i], [j, known[i].size // j])
        else:
            algebra.unify(known[i], known[j])
    possible = set()
    for bits in subsets(sum(sizes)):
        rest = iter(bits)
        choice = [tuple(next(rest) for _ in range(size)) for size in sizes]
        if simulate(steps, choice):
            possible.add(tuple(choice))
    units = sorted({unit for atom in atoms for index in expand(atom) for unit in index})
    reached = set()
    for bits in subsets(len(units)):
        removal = Removal({unit for unit, stays in zip(units, bits, strict=True) if stays})
        choice = [tuple(removal(atom)) for atom in atoms]
        if simulate(steps, choice):
            reached.add(tuple(choice))
    assert reached == possible


# -- cases by name ---------------------------------------------------------------------------------


def free_units(*axes: Axis) -> set[tuple[int, int]]:
    return {unit for axis in axes for index in expand(axis) for unit in index}


def test_aligned_factors_are_split() -> None:
    """2*6 against 4*3: the common refinement is 2*2*3."""
    program = Program()
    left = program.product([program.atom(2), program.atom(6)])
    right = program.product([program.atom(4), program.atom(3)])
    program.unify(left, right)
    assert [f.size for f in factors_of(left)] == [2, 2, 3]
    assert not any(is_frozen(f) for f in factors_of(left))
    program.check()


def test_factors_are_split_where_the_shorter_side_ends() -> None:
    """4*2 against 2*4 and 2*2*4: the longer factor is the one that is split, on either side."""
    for other in ([2, 4], [2, 2, 2], [2, 2, 1, 2]):
        for turned in (False, True):
            program = Program()
            left = program.product([program.atom(4), program.atom(2)])
            right = program.product([program.atom(size) for size in other])
            program.unify(*((right, left) if turned else (left, right)))
            assert [f.size for f in factors_of(left) if f.size > 1] == [2, 2, 2]
            program.check()


def test_two_views_without_common_refinement_explode() -> None:
    """2*6 against 3*4: only even and odd are left of the choice, which both grids end in."""
    program = Program()
    two, six, three, four = (program.atom(n) for n in (2, 6, 3, 4))
    grid = program.product([two, six])
    program.unify(grid, program.product([three, four]))
    program.check(count=60)
    assert not any(is_frozen(axis) for axis in (two, six, three, four))
    indices = expand(grid)
    assert len(set(indices)) == 2
    assert all(index == indices[i % 2] for i, index in enumerate(indices))


def test_an_explosion_stays_inside_its_conflict() -> None:
    """5*(2*6) against 5*(3*4): the factor 5, which fits, keeps its free choice."""
    program = Program()
    five, other = program.atom(5), program.atom(5)
    left = program.product([five, program.atom(2), program.atom(6)])
    right = program.product([other, program.atom(3), program.atom(4)])
    program.unify(left, right)
    program.check(count=30)
    assert len(free_units(five)) >= 5


def test_a_unit_cannot_condition_itself() -> None:
    """x = u*x: the unit u is frozen, x stays free."""
    program = Program()
    u, x = program.atom(1), program.atom(6)
    program.unify(x, program.product([u, x]))
    program.check()
    assert is_frozen(u)
    assert len(free_units(x)) == 6


def test_units_merge() -> None:
    """u*v = w*z on units: nothing shows which of them goes, so they go together."""
    program = Program()
    units = [program.atom(1) for _ in range(4)]
    program.unify(program.product(units[:2]), program.product(units[2:]))
    program.check()
    assert len(free_units(*units)) == 2


def test_a_concatenation_against_a_product() -> None:
    """A[4]+B[8] against f[3]*g[4]: the cuts are rows, so A is u*g and B is (v+w)*g."""
    program = Program()
    a, b, f, g = (program.atom(n) for n in (4, 8, 3, 4))
    program.unify(program.concat([a, b]), program.product([f, g]))
    program.check(count=30)
    assert len(free_units(f, g)) == 7
    assert free_units(a) | free_units(b) == free_units(f, g)


def test_a_cut_inside_a_row() -> None:
    """A[6]+B[6] against f[3]*g[4]: row 1 is taken apart, g into halves; nothing else is lost."""
    program = Program()
    a, b, f, g = (program.atom(n) for n in (6, 6, 3, 4))
    program.unify(program.concat([a, b]), program.product([f, g]))
    program.check(count=30)
    assert len(free_units(f, g)) == 7


def test_a_unit_stands_before_what_it_conditions() -> None:
    algebra = Algebra()
    grid = algebra.product([algebra.atom(3), algebra.atom(4)])
    first, second = algebra.segment(grid, [6, 6])
    sizes = [[[f.size for f in factors_of(s)] for s in segments_of(a)] for a in (first, second)]
    assert sizes == [[[1, 4], [1, 2]], [[1, 2], [1, 4]]]
    whole = algebra.atom(4)
    unit = algebra.product([algebra.atom(1), algebra.atom(4), algebra.atom(3)])
    algebra.unify(algebra.product([whole, algebra.atom(3)]), unit)
    assert [factor.size for factor in factors_of(whole)] == [1, 4]


def test_misaligned_concatenations_refine_each_other() -> None:
    program = Program()
    left, right = [program.atom(n) for n in (5, 7)], [program.atom(n) for n in (4, 4, 4)]
    joined = program.unify(program.concat(left), program.concat(right))
    program.check()
    assert isinstance(find(joined), Concat)
    assert [atom.size for atom in leaves(joined)] == [4, 1, 3, 4]
    assert len(free_units(*left)) == 12


def test_orbits() -> None:
    """A flip and a residual pair 12 channels into 6 units; rolls by 4 and 1 give 4 and 1."""
    for order, count in (
        (list(range(12))[::-1], 6),
        ([(i - 4) % 12 for i in range(12)], 4),
        ([(i - 1) % 12 for i in range(12)], 1),
    ):
        program = Program()
        x = program.atom(12)
        program.unify(x, program.gather(x, order))
        program.check()
        assert len(free_units(x)) == count


def test_a_round_trip_of_views_changes_nothing() -> None:
    """(H*D) → H, D → H*D: heads and head dimensions are free choices, of a grid."""
    program = Program()
    x = program.atom(12)
    heads, inner = program.view([x], [3, 4])
    (flat,) = program.view([heads, inner], [12])
    program.unify(flat, x)
    program.check()
    assert len(free_units(x)) == 7


def test_a_view_that_drops_a_unit_freezes_it() -> None:
    program = Program()
    unit, x = program.atom(1), program.atom(6)
    (flat,) = program.view([unit, x], [6])
    program.check()
    assert is_frozen(unit)
    assert flat is x


def test_frozen_factors_stay_apart() -> None:
    """A flattened map C*positions: positions are constant, channels stay free."""
    program = Program()
    channels = program.atom(8)
    flat = program.product([channels, program.atom(4, "positions")])
    program.unify(flat, program.atom(32))
    program.check()
    assert len(free_units(flat)) == 8


def test_freezing_one_side_freezes_both() -> None:
    program = Program()
    x, y = program.atom(12), program.product([program.atom(3), program.atom(4)])
    program.freeze(y)
    program.unify(x, y)
    program.check()
    assert is_frozen(x)
    assert {atom.reason for atom in leaves(x)} == {"frozen by the program"}


def test_too_long_to_explode_is_frozen_with_its_reason() -> None:
    algebra = Algebra()
    left = algebra.product([algebra.atom(2), algebra.atom(3 * 7 * 1024)])
    right = algebra.product([algebra.atom(3), algebra.atom(2 * 7 * 1024)])
    algebra.unify(algebra.product([left, algebra.atom(1)]), right)
    assert left.size > 1 << 15
    assert is_frozen(left)
    assert is_frozen(right)
    assert all("no common refinement" in str(atom.reason) for atom in leaves(left))


def test_the_log_names_the_site() -> None:
    algebra = Algebra()
    x, y = algebra.atom(6), algebra.atom(6)
    algebra.site = "add_1"
    algebra.unify(x, y)
    ((site, bound, axis),) = algebra.log
    assert (site, bound, axis) == ("add_1", y, x)


def test_readable_forms() -> None:
    algebra = Algebra()
    heads, inner = algebra.atom(2), algebra.constant(3, "why")
    product = algebra.product([heads, inner])
    assert isinstance(product, Product)
    assert isinstance(heads, Atom)
    assert repr(product) == f"(a{heads.key}[2]*a{inner.key}[3]!)"
    assert repr(algebra.concat([heads, product])) == f"(a{heads.key}[2]+{product!r})"


@pytest.mark.parametrize("turn", [False, True], ids=["frozen first", "frozen second"])
def test_a_frozen_dimension_takes_nothing_apart(turn: bool) -> None:
    """2*3 against 3*2 would explode; where one is frozen, the other is frozen as it is."""
    algebra = Algebra()
    frozen = algebra.product([algebra.constant(2, "fixed"), algebra.constant(3, "fixed")])
    free = algebra.product([algebra.atom(3), algebra.atom(2)])
    algebra.unify(*((free, frozen) if turn else (frozen, free)))
    assert [atom.size for atom in leaves(free)] == [3, 2]
    assert [atom.size for atom in leaves(frozen)] == [2, 3]
    assert is_frozen(free)


def test_a_factor_that_is_split_where_it_first_occurs_is_split_where_it_occurs_again() -> None:
    """D*D against 2*2*2*2: D is 2*2, and nothing explodes."""
    algebra = Algebra()
    inner, halves = algebra.atom(4), [algebra.atom(2) for _ in range(4)]
    algebra.unify(algebra.product([inner, inner]), algebra.product(halves))
    assert [atom.size for atom in leaves(inner)] == [2, 2]
    first, second, *again = map(find, halves)
    assert [first, second] == again == list(leaves(inner))


def test_a_selection_of_a_frozen_axis_says_why_it_is_frozen() -> None:
    algebra = Algebra()
    chosen = algebra.gather(algebra.constant(4, "fixed"), [2, 0])
    assert [(atom.size, atom.reason) for atom in leaves(chosen)] == [(2, "fixed")]
    (nothing,) = leaves(algebra.gather(algebra.atom(4), []))
    assert nothing.reason == "empty selection"


def test_a_concatenation_of_frozen_axes_says_why_it_is_frozen() -> None:
    algebra = Algebra()
    joined = algebra.concat([algebra.constant(4, "fixed"), algebra.constant(2, "another")])
    assert [(atom.size, atom.reason) for atom in leaves(joined)] == [(6, "fixed")]


def test_units_of_a_product_name_the_major_factor_first() -> None:
    algebra = Algebra()
    major, minor = algebra.atom(2), algebra.atom(3)
    units = algebra.units(algebra.product([major, minor]))
    rows, columns = segments_of(major), segments_of(minor)
    assert [factors_of(unit) for unit in units] == [(r, c) for r in rows for c in columns]


def test_units_behind_the_last_factor_keep_their_order() -> None:
    algebra = Algebra()
    channels, first, second = algebra.atom(4), algebra.atom(1), algebra.atom(1)
    axis = algebra.product([channels, first, second])
    algebra.unify(algebra.product(algebra.factor(axis, [2, 2])), axis)
    assert find(first) is not find(second)
    assert not is_frozen(first)
