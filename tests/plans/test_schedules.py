"""Schedules: the formulas, their ends and their order."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.errors import PlanError
from fxprune.schedules import SCHEDULES, cubic, exponential, find_schedule, linear

KEEP = st.floats(0.001, 1)
ROUNDS = st.integers(1, 200)


@given(KEEP, ROUNDS)
def test_the_formulas(keep: float, rounds: int) -> None:
    times = [r / rounds for r in range(1, rounds + 1)]
    expected = {
        linear: [1 - (1 - keep) * t for t in times],
        exponential: [keep**t for t in times],
        cubic: [keep + (1 - keep) * (1 - t) ** 3 for t in times],
    }
    for schedule, ratios in expected.items():
        assert schedule(keep, rounds) == pytest.approx(ratios, abs=1e-12)


@given(KEEP, ROUNDS, st.sampled_from(sorted(SCHEDULES)))
def test_they_fall_to_the_ratio_itself(keep: float, rounds: int, name: str) -> None:
    ratios = find_schedule(name)(keep, rounds)
    assert len(ratios) == rounds
    assert ratios[-1] == keep
    assert all(1 >= a >= b - 1e-14 for a, b in pairwise(ratios))


@given(st.floats(0.001, 0.99), st.integers(2, 100))
def test_the_cubic_schedule_removes_the_most_at_first(keep: float, rounds: int) -> None:
    assert cubic(keep, rounds)[0] < linear(keep, rounds)[0]
    assert exponential(keep, rounds)[0] < linear(keep, rounds)[0]


def test_a_function_is_its_own_schedule() -> None:
    assert find_schedule(cubic) is cubic


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, float("nan")])
def test_a_ratio_out_of_range_is_refused(keep: float) -> None:
    with pytest.raises(PlanError, match="must lie in"):
        linear(keep, 3)


def test_no_rounds_are_refused() -> None:
    with pytest.raises(PlanError, match="at least one round"):
        exponential(0.5, 0)


@pytest.mark.parametrize("schedule", ["quadratic", 3])
def test_an_unknown_schedule_is_refused(schedule: str) -> None:
    with pytest.raises(PlanError, match="There is no schedule"):
        find_schedule(schedule)
