"""Searching for a program and a plan that break a property, and what was seen on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider

from tests.fuzz.case import Case, Refused, prepare
from tests.fuzz.program import Program
from tests.fuzz.properties import PropertyError, check
from tests.fuzz.strategies import kept_units, programs


class Afresh(HypothesisProvider):
    """Draws every program anew. By itself hypothesis draws one in five and changes a number or two
    of it for the others; a backend of another name is only used to draw, not to shrink.
    """


AVAILABLE_PROVIDERS["afresh"] = Afresh


@dataclass
class Tally:
    """What a search has seen.

    ops      in how many programs each op occurs
    groups   how many programs have so many prunable groups
    refused  how many programs were left out, by reason
    held     about how many programs each property says something
    """

    ops: Counter[str] = field(default_factory=Counter)
    groups: Counter[int] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    programs: set[int] = field(default_factory=set)
    pruned: int = 0

    @property
    def checked(self) -> int:
        return self.groups.total()

    def add(self, other: Tally) -> None:
        self.ops += other.ops
        self.groups += other.groups
        self.refused += other.refused
        self.held += other.held
        self.programs |= other.programs
        self.pruned += other.pruned

    def record(self, case: Case, held: Iterable[str]) -> None:
        self.held.update(held)
        self.ops.update(set(case.program.ops))
        self.groups[len(case.analysis.groups)] += 1
        self.programs.add(hash(case.program))
        self.pruned += not case.plan.is_empty


def search(seed: int, examples: int, tally: Tally) -> str | None:
    """Check random programs until so many passed; the smallest failure found, or None."""

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        backend="afresh",
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(programs(), st.data())
    def body(program: Program, data: st.DataObject) -> None:
        try:
            model, traced, analysis = prepare(program)
        except Refused as refusal:
            tally.refused[str(refusal)] += 1
            hypothesis.reject()
        case = Case(program, model, traced, analysis, data.draw(kept_units(analysis.groups)))
        tally.record(case, check(case))

    try:
        body()
    except PropertyError as error:
        return f"{error}\n# found by seed {seed}"
    return None
