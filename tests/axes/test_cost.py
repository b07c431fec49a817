"""Long programs: near-linear, and no deeper than Python's stack.

Limits are CPU seconds, about ten times what a slow machine takes: they catch a wrong order of
growth, not a slow afternoon.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fxprune.algebra import Algebra
from fxprune.axes import Axis, factors_of, find, is_frozen, leaves, segments_of


@contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.process_time()
    yield
    taken = time.process_time() - start
    assert taken < seconds, f"{taken:.2f} s of CPU time"


@pytest.mark.parametrize("turn", [False, True])
def test_a_chain_of_residuals(turn: bool) -> None:
    """100,000 links, each new axis unified with the one before it."""
    with within(4):
        algebra = Algebra()
        first = x = algebra.atom(64)
        for _ in range(100_000):
            y = algebra.atom(64)
            algebra.unify(*((y, x) if turn else (x, y)))
            x = y
        assert find(x) is find(first)


def test_a_stream_that_is_found_late() -> None:
    """The links are unified from the end: each new root is the older atom, a path of 100,000."""
    with within(4):
        algebra = Algebra()
        atoms = [algebra.atom(64) for _ in range(100_000)]
        for older, newer in zip(atoms[-2::-1], atoms[:0:-1], strict=True):
            algebra.unify(newer, older)
        assert all(find(atom) is atoms[0] for atom in atoms)


def test_a_dense_block() -> None:
    """800 layers, each reading the concatenation of all before it."""
    with within(10):
        algebra = Algebra()
        parts: list[Axis] = [algebra.atom(64)]
        for _ in range(800):
            algebra.unify(algebra.concat(parts), algebra.atom(sum(p.size for p in parts)))
            parts.append(algebra.atom(32))
        assert len(segments_of(algebra.concat(parts))) == 801


def test_nested_concatenations() -> None:
    """cat(cat(cat(…), x), y), 1,600 deep, each read by a layer and each summed with a fresh one."""
    with within(20):
        algebra = Algebra()
        x: Axis = algebra.atom(4)
        for _ in range(1600):
            x = algebra.concat([x, algebra.atom(4)])
            reader = algebra.atom(x.size)
            algebra.unify(reader, x)
            x = reader
        assert len(segments_of(x)) == 1601
        assert sum(1 for _ in leaves(x)) == 1601


def test_atoms_refined_one_into_the_next() -> None:
    """Halves of halves, and units cut off one by one: deep bindings, read without recursion."""
    with within(10):
        algebra = Algebra()
        whole = rest = algebra.atom(4000)
        for _ in range(3999):
            _, rest = algebra.segment(rest, [1, rest.size - 1])
        assert len(segments_of(whole)) == 4000
        assert not is_frozen(whole)


def test_misaligned_cuts() -> None:
    """One axis of 4,096 cut at 800 places, one at a time, and unified with itself cut elsewhere."""
    with within(20):
        algebra = Algebra()
        x, y = algebra.atom(4096), algebra.atom(4096)
        for i in range(1, 800):
            algebra.segment(x, [5 * i, 4096 - 5 * i])
            algebra.segment(y, [4096 - 3 * i, 3 * i])
        algebra.unify(x, y)
        assert segments_of(x) == segments_of(y)


def test_shuffles() -> None:
    """200 shuffled residual blocks of 1,024 channels: units, merged over and over."""
    with within(40):
        algebra = Algebra()
        x: Axis = algebra.atom(1024)
        order = [j * 2 + i for i in range(2) for j in range(512)]
        for _ in range(200):
            x = algebra.unify(algebra.gather(x, order), algebra.atom(1024))
        assert x.size == 1024


def test_units_that_condition_one_after_the_other() -> None:
    """x = u1*y1, y1 = u2*y2, …: products nested 3,000 deep."""
    with within(10):
        algebra = Algebra()
        x = y = algebra.atom(8)
        for _ in range(3000):
            rest = algebra.atom(8)
            algebra.unify(y, algebra.product([algebra.atom(1), rest]))
            y = rest
        assert len(factors_of(x)) == 3001


def test_a_frozen_stream() -> None:
    """Freezing and asking whether all is frozen do not walk a long concatenation each time."""
    with within(4):
        algebra = Algebra()
        x = algebra.concat([algebra.atom(2) for _ in range(5000)])
        for _ in range(5000):
            algebra.freeze(x, "model output")
            assert is_frozen(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda a: [a.atom(2), a.atom(3 * 64), a.atom(3), a.atom(2 * 64)],
        lambda a: [a.atom(4), a.atom(9 * 64), a.atom(9), a.atom(4 * 64)],
    ],
)
def test_an_explosion(make: Callable[[Algebra], list[Axis]]) -> None:
    """Thousands of indices unified one by one."""
    with within(20):
        algebra = Algebra()
        a, b, c, d = make(algebra)
        algebra.unify(algebra.product([a, b]), algebra.product([c, d]))
        assert not is_frozen(a)
