"""Schedules: how a cut spreads over rounds.

A schedule is a pure function `(keep, rounds) -> keep ratios after rounds 1 to rounds`. What the
ratio is a share of (units, parameters, MACs) is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fxprune.errors import PlanError

Schedule = Callable[[float, int], tuple[float, ...]]


def linear(keep: float, rounds: int) -> tuple[float, ...]:
    """As 1 - (1 - keep) r/n: every round removes the same share of the original.

    >>> linear(0.2, 4)
    (0.8, 0.6, 0.4, 0.2)
    """
    return _ratios(keep, rounds, lambda t: 1 - (1 - keep) * t)


def exponential(keep: float, rounds: int) -> tuple[float, ...]:
    """As keep^(r/n): every round removes the same share of what is left.

    >>> exponential(0.0625, 4)
    (0.5, 0.25, 0.125, 0.0625)
    """
    return _ratios(keep, rounds, lambda t: float(keep**t))


def cubic(keep: float, rounds: int) -> tuple[float, ...]:
    """As keep + (1 - keep) (1 - r/n)^3: fast at first, while much can be spared, then slowly.

    >>> cubic(0.2, 2)
    (0.3, 0.2)
    """
    return _ratios(keep, rounds, lambda t: keep + (1 - keep) * (1 - t) ** 3)


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {"linear": linear, "exponential": exponential, "cubic": cubic}
)


def find_schedule(schedule: str | Schedule) -> Schedule:
    """The schedule of that name, or the callable itself; raises PlanError for anything else."""
    found = SCHEDULES.get(schedule) if isinstance(schedule, str) else schedule
    if not callable(found):
        raise PlanError(
            f"There is no schedule {schedule!r}. The names are {', '.join(sorted(SCHEDULES))}; or "
            "pass a callable (keep, rounds) -> keep ratio after each round."
        )
    return found


def _ratios(keep: float, rounds: int, ratio: Callable[[float], float]) -> tuple[float, ...]:
    """`ratio` of r/n for r = 1..n; the last one is `keep` itself, free of rounding."""
    if not 0 < keep <= 1:
        raise PlanError(f"keep is the fraction that stays and must lie in (0, 1]; got {keep!r}.")
    if type(rounds) is not int or rounds < 1:
        raise PlanError(f"A schedule needs at least one round, as an integer; got {rounds!r}.")
    return (*(round(ratio(r / rounds), 15) for r in range(1, rounds)), keep)
