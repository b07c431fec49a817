"""Random programs on axes against brute force: what is unified loses the same indices."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.axes import Axis, is_frozen
from tests.axes.oracle import Classes, Program, Unit, expand

SIZES = (1, 2, 3, 4, 6, 8, 12)
LIMIT = 60


def divisors(rng: random.Random, size: int) -> list[int]:
    """Random factors of a size, some of them 1."""
    found: list[int] = []
    while size > 1 and len(found) < 3:
        found.append(rng.choice([d for d in range(1, size + 1) if size % d == 0]))
        size //= found[-1]
    return [*found, size]


def parts(rng: random.Random, size: int) -> list[int]:
    """Random lengths that add up to a size, some of them 0."""
    cuts = sorted(rng.randint(0, size) for _ in range(rng.randint(1, 3)))
    return [end - start for start, end in zip([0, *cuts], [*cuts, size], strict=True)]


def step(program: Program, rng: random.Random, choices: str) -> None:
    """One random operation on axes that the program has."""
    pick = rng.choice(choices.split())
    axis = rng.choice(program.axes)
    if pick == "atom":
        program.atom(rng.choice(SIZES))
    elif pick == "constant":
        program.atom(rng.choice(SIZES), "constant")
    elif pick in ("product", "concat"):
        chosen = [rng.choice(program.axes) for _ in range(rng.randint(1, 3))]
        size = (math.prod if pick == "product" else sum)(a.size for a in chosen)
        if 0 < size <= LIMIT:
            (program.product if pick == "product" else program.concat)(chosen)
    elif pick == "segment":
        program.segment(axis, parts(rng, axis.size))
    elif pick == "gather" and axis.size:
        count = rng.randint(1, min(2 * axis.size, LIMIT))
        program.gather(axis, [rng.randrange(axis.size) for _ in range(count)])
    elif pick == "factor" and axis.size:
        program.factor(axis, divisors(rng, axis.size))
    elif pick == "view":
        axes = [rng.choice(program.axes) for _ in range(rng.randint(1, 3))]
        total = math.prod(a.size for a in axes)
        if 0 < total <= LIMIT:
            program.view(axes, divisors(rng, total))
    elif pick == "freeze" and rng.random() < 0.3:
        program.freeze(axis)
    elif pick == "unify":
        equal = [other for other in program.axes if other.size == axis.size]
        program.unify(axis, rng.choice(equal))


def run(seed: int, length: int, choices: str) -> Program:
    rng, program = random.Random(seed), Program()
    for _ in range(4):
        program.atom(rng.choice(SIZES))
    for _ in range(length):
        step(program, rng, choices)
    return program


EVERYTHING = "atom constant product concat segment gather factor view freeze unify unify unify"


@settings(max_examples=700)
@given(st.integers(0, 1 << 40), st.integers(1, 25))
def test_programs_are_sound(seed: int, length: int) -> None:
    """Removing any units, every operation means what it means on single indices."""
    run(seed, length, EVERYTHING).check(seed)


@settings(max_examples=300)
@given(st.integers(0, 1 << 40), st.integers(1, 25))
def test_products_and_unifications_alone(seed: int, length: int) -> None:
    """Dense in conflicts: views with different factors are computed on together."""
    run(seed, length, "product product factor unify unify").check(seed)


@settings(max_examples=300)
@given(st.integers(0, 1 << 40), st.integers(1, 30))
def test_refinement_couples_nothing(seed: int, length: int) -> None:
    """Without unify and factor every index of every atom stays a free unit of its own."""
    program = run(seed, length, "atom product concat segment gather")
    program.check(seed, 4)
    owners: Counter[Unit] = Counter()
    for atom in program.atoms:
        indices = expand(atom)
        assert [len(index) for index in indices] == [1] * atom.size
        owners.update(unit for index in indices for unit in index)
    assert set(owners.values()) <= {1}


@settings(max_examples=400)
@given(st.integers(0, 1 << 40), st.integers(1, 25))
def test_without_products_the_coupling_is_exact(seed: int, length: int) -> None:
    """Two indices are coupled iff a chain of unified indices joins them: never more, never less."""
    rng, program = random.Random(seed), Program()
    classes = Classes()
    meaning: dict[int, list[Unit]] = {}

    def meant(axis: Axis, indices: list[Unit]) -> None:
        meaning[id(axis)] = indices

    for number in range(5):
        atom = program.atom(rng.choice(SIZES))
        meant(atom, [(number, i) for i in range(atom.size)])
    named = list(program.atoms)
    for _ in range(length):
        axis = rng.choice([a for a in program.axes if a.size])
        own = meaning[id(axis)]
        pick = rng.choice(("concat", "segment", "gather", "unify", "unify"))
        if pick == "concat":
            other = rng.choice([a for a in program.axes if a.size])
            if axis.size + other.size <= LIMIT:
                meant(program.concat([axis, other]), own + meaning[id(other)])
        elif pick == "segment":
            position = 0
            for part in program.segment(axis, parts(rng, axis.size)):
                # A part may be the very axis that was cut, which then means the same already.
                meaning.setdefault(id(part), own[position : position + part.size])
                position += part.size
        elif pick == "gather":
            indices = [rng.randrange(axis.size) for _ in range(rng.randint(1, axis.size))]
            meaning.setdefault(id(program.gather(axis, indices)), [own[i] for i in indices])
        else:
            other = rng.choice([a for a in program.axes if a.size == axis.size])
            program.unify(axis, other)
            for left, right in zip(own, meaning[id(other)], strict=True):
                classes.union(left, right)
    program.check(seed, 4)
    found: dict[frozenset[Unit], Unit] = {}
    wanted: dict[Unit, frozenset[Unit]] = {}
    for number, atom in enumerate(named):
        for i, index in enumerate(expand(atom)):
            root = classes.find((number, i))
            assert found.setdefault(index, root) == root  # not more coupled than that
            assert wanted.setdefault(root, index) == index  # not less


@settings(max_examples=200)
@given(st.integers(0, 1 << 40), st.integers(1, 25))
def test_freezing_is_exact(seed: int, length: int) -> None:
    """`is_frozen` says that no unit is free, and it never goes back."""
    rng, program = random.Random(seed), run(seed, length, EVERYTHING)
    frozen = [axis for axis in program.axes if is_frozen(axis)]
    for axis in program.axes:
        assert is_frozen(axis) == all(not index for index in expand(axis))
    for _ in range(10):
        step(program, rng, EVERYTHING)
    assert all(is_frozen(axis) for axis in frozen)


def test_sizes_that_do_not_fit_are_refused() -> None:
    program = Program()
    axis = program.atom(12)
    with pytest.raises(ValueError, match="do not add up to 12"):
        program.algebra.segment(axis, [4, 4])
    with pytest.raises(ValueError, match="do not multiply to 12"):
        program.algebra.factor(axis, [5, 2])
    with pytest.raises(ValueError, match="cannot unify axes of sizes 12 and 6"):
        program.algebra.unify(axis, program.atom(6))
