"""Random plans: any number of units of any groups."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import strategies as st

from fxprune import Analysis, Group, PruningPlan


def kept_units(group: Group, count: int, chance: random.Random) -> Any:
    """Kept indices of a group that keeps `count` units in each context."""
    rows = [sorted(chance.sample(range(group.size), count)) for _ in range(group.contexts)]
    return rows if group.contexts > 1 else rows[0]


@st.composite
def plans(draw: st.DrawFn, analysis: Analysis) -> PruningPlan:
    """A plan for the graph. Every group keeps two units, if it has two.

    With one, torch's einsum would multiply instead of calling a matrix product, and FlopCounterMode
    counts no multiplications.
    """
    chance = random.Random(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from([0.1, 0.5, 1.0]))
    kept = {
        group.name: kept_units(group, chance.randint(2, group.size), chance)
        for group in analysis.groups
        if chance.random() < share
    }
    return PruningPlan.build(analysis, kept)
