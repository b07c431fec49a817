"""What became of the mutants, as a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tabulate import tabulate

from tests.mutants.reach import ROOT
from tests.mutants.runner import Outcome
from tests.mutants.survivors import EQUIVALENT

PAGE = ROOT / "benchmarks" / "results" / "mutants.md"
ALLOWED = 0.02
"""The share of mutants that may survive without being equivalent to the original."""


def state(outcome: Outcome) -> str:
    """One word."""
    if not outcome.killed:
        return "equivalent" if outcome.mutant.name in EQUIVALENT else "survived"
    return "timeout" if outcome.killer == "timeout" else "killed"


def line(outcome: Outcome) -> str:
    """What became of one mutant."""
    mutant = outcome.mutant
    before, after = mutant.difference()
    place = f"{mutant.name} (line {mutant.line})"
    by = outcome.killer or f"`{before}` -> `{after}`"
    return f"{state(outcome)} {outcome.seconds:.0f} s {outcome.tests} tests {place}: {by}"


def write(outcomes: Sequence[Outcome], population: int, command: str, suite: Sequence[str]) -> None:
    """Write the page."""
    parts = [
        "# Mutants",
        f"Made by `{command}`. Each mutant is one small change of the algebra, a rule, the "
        "analysis, the plans or the rewriter, drawn by a digest of its name; it is killed if one "
        f"of these tests fails: {', '.join(f'`{path}`' for path in suite)}.",
        _summary(outcomes, population),
        "## Alive",
        *_alive(outcomes),
        "## By operator",
        _table(outcomes, lambda outcome: outcome.mutant.operator),
        "## By file",
        _table(outcomes, lambda outcome: outcome.mutant.file),
    ]
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _alive(outcomes: Sequence[Outcome]) -> list[str]:
    """One item per mutant that is, with the reason."""
    alive = sorted((o.mutant for o in outcomes if not o.killed), key=lambda m: m.name)
    items = [
        f"- `{m.name}`: `{before}` → `{after}`. {EQUIVALENT.get(m.name, '**No test kills it.**')}"
        for m in alive
        for before, after in [m.difference()]
    ]
    return items or ["None."]


def _summary(outcomes: Sequence[Outcome], population: int) -> str:
    counts = {s: sum(state(o) == s for o in outcomes) for s in _STATES}
    different = len(outcomes) - counts["equivalent"]
    dead = counts["killed"] + counts["timeout"]
    minutes = sum(outcome.seconds for outcome in outcomes) / 60
    return (
        f"{len(outcomes)} mutants of {population}: {dead} killed ({counts['timeout']} of them by "
        f"running too long), {counts['equivalent']} equivalent, {counts['survived']} survived. "
        f"Killed: {dead / len(outcomes):.1%} of all, {dead / different:.1%} of those that are not "
        f"equivalent. The mutants took {minutes:.0f} CPU minutes."
    )


_STATES = ("killed", "timeout", "equivalent", "survived")


def _table(outcomes: Sequence[Outcome], key: Callable[[Outcome], str]) -> str:
    rows = [
        (name, *(sum(state(o) == s for o in outcomes if key(o) == name) for s in _STATES))
        for name in sorted({key(outcome) for outcome in outcomes})
    ]
    return tabulate(rows, ("", *_STATES), "github")
