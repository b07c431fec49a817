"""No group couples what brute force can remove alone."""

from __future__ import annotations

from tests.fuzz.maximality import measure

PROGRAMS = range(1000, 1008)


def test_groups_couple_nothing_that_can_go_alone() -> None:
    gap = measure(PROGRAMS, steps=2)
    assert not gap.coupled, "\n\n".join(gap.coupled)
    assert gap.programs >= 4, str(gap)
    assert gap.minimal >= 12, str(gap)
