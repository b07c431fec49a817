"""``python -m tests.mutants``: how many mutants of the package does the test suite kill?

The tests run first, once, to note which of them enters which function (a quarter of an hour).

--keep          run only the tests that the last run did not know, and trust its notes on the others
--per-operator  how many mutants of each operator
--per-file      at least how many mutants of each file
--beyond        leave out what the sample of these two numbers, per operator and per file, has
--only          mutants whose names contain this text, all of them instead of the sample
--folders       break these folders of the package (`capture criteria`) instead of the targets
--budget        CPU seconds of tests per mutant
--jobs          how many mutants at once
--suite         test files or folders, instead of those of `reach.SUITE`
--folder        where notes and logs are kept
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tests.mutants import reach, report
from tests.mutants.population import TARGETS, Mutant, files_in, population, sample
from tests.mutants.runner import Outcome, Range, session
from tests.mutants.survivors import EQUIVALENT

PER_OPERATOR, PER_FILE = 12, 4


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--per-operator", type=int, default=PER_OPERATOR)
    parser.add_argument("--per-file", type=int, default=PER_FILE)
    parser.add_argument("--beyond", nargs=2, type=int, default=[0, 0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--folders", nargs="*", default=[])
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--suite", nargs="*", default=reach.existing(reach.SUITE))
    parser.add_argument("--folder", type=Path, default=reach.FOLDER)
    options = parser.parse_args()
    if not options.keep:
        reach.forget(options.folder)
    _in_child(lambda: reach.record(options.suite, options.folder))
    every = population(files_in(options.folders) if options.folders else TARGETS)
    known = set(sample(every, *options.beyond))
    chosen = [m for m in sample(every, options.per_operator, options.per_file) if m not in known]
    if options.only:
        chosen = [m for m in every if any(text in m.name for text in options.only)]
    outcomes: list[Outcome] = []

    def shoot(range_: Range) -> None:
        outcomes.extend(_shoot(range_, chosen, options.jobs))

    range_ = Range(reach.load(options.folder), options.budget, options.folder, shoot)
    session(options.suite, range_)
    if not options.only and not options.folders:
        command = " ".join(["python -m tests.mutants", *sys.argv[1:]])
        report.write(outcomes, len(every), command, options.suite)
    return _verdict(outcomes)


def _shoot(range_: Range, chosen: Sequence[Mutant], jobs: int) -> list[Outcome]:
    """Fire at all mutants, after controls: the package as it is survives, imported anew or not."""
    unchanged = replace(chosen[0], after=chosen[0].before)
    for control in range_.fire([unchanged, replace(unchanged, function="", start=0)], 1):
        if control.killed or not control.tests:
            raise SystemExit(f"the package as it is does not survive: {report.line(control)}")
    outcomes: list[Outcome] = []
    for outcome in range_.fire(chosen, jobs):
        outcomes.append(outcome)
        print(f"{len(outcomes)}/{len(chosen)} {report.line(outcome)}", flush=True)
    return outcomes


def _verdict(outcomes: Sequence[Outcome]) -> int:
    """The exit code: 0 if few enough survive, and none that was argued to is killed."""
    alive = [o for o in outcomes if not o.killed and o.mutant.name not in EQUIVALENT]
    wrong = [o for o in outcomes if o.killed and o.mutant.name in EQUIVALENT]
    for outcome in wrong:
        print(f"argued to be equivalent, but killed: {outcome.mutant.name}", file=sys.stderr)
    return 1 if wrong or len(alive) > report.ALLOWED * len(outcomes) else 0


def _in_child(function: Callable[[], None]) -> None:
    """Call a function in a process of its own, which may import the package."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("the suite must pass before mutants are made")


if __name__ == "__main__":
    raise SystemExit(main())
