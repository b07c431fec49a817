"""The long search: ``python -m tests.fuzz --examples 20000`` or ``--minutes 30``.

Runs in several processes, prints what was covered, and exits with 1 if a property fails, if an op
of the table never occurs or if too few programs have anything to prune.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice

import torch

from tests.fuzz.properties import PROPERTIES
from tests.fuzz.search import Tally, search
from tests.fuzz.table import TABLE

CHUNK = 500
LEAST_SHARE = 0.9
LEAST_COMPOSED = 0.95


def _chunk(seed: int, examples: int) -> tuple[int, Tally, str | None, float]:
    torch.set_num_threads(1)
    start, tally = time.process_time(), Tally()
    failure = search(seed, examples, tally)
    return seed, tally, failure, time.process_time() - start


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=None, help="programs to check")
    parser.add_argument("--minutes", type=float, default=None, help="or how long to search")
    parser.add_argument("--seed", type=int, default=None, help="of the first chunk of programs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--failures", type=int, default=1, help="stop after so many failures")
    given = parser.parse_args()
    if given.examples is None and given.minutes is None:
        given.examples = 1000
    return given


def _chunks(given: argparse.Namespace, seed: int, tally: Tally) -> Iterator[tuple[int, int]]:
    """Seeds and numbers of examples, as long as more are wanted."""
    start, started = time.monotonic(), 0
    while True:
        late = given.minutes is not None and time.monotonic() - start > 60 * given.minutes
        if late or (given.examples is not None and started >= given.examples):
            return
        size = CHUNK if given.examples is None else min(CHUNK, given.examples - started)
        started += size
        yield seed % 2**32, size
        seed += 1


def _report(tally: Tally, cpu: float, wall: float) -> list[str]:
    """Print what was covered; returns what is missing."""
    total = max(tally.checked, 1)
    share = (tally.checked - tally.groups[0]) / max(tally.checked + tally.refused.total(), 1)
    print(f"{tally.checked} programs with a plan each, {len(tally.programs)} of them distinct")
    print(f"{cpu:.0f} s of processor time, {wall:.0f} s in all, {1000 * cpu / total:.0f} ms each")
    print(f"{share:.1%} have a group to prune, the refused counted as without; ", end="")
    print(f"{tally.pruned / total:.1%} of the plans prune")
    print("groups per program: ", end="")
    print(", ".join(f"{n}: {tally.groups[n] / total:.1%}" for n in sorted(tally.groups)))
    refused = tally.refused.total()
    print(f"refused: {refused} ({refused / (total + refused):.1%})", end="")
    print("".join(f"\n  {n} x {reason}" for reason, n in tally.refused.most_common()))
    print("properties: ", end="")
    print(", ".join(f"{name} {tally.held[name] / total:.1%}" for name in PROPERTIES))
    print(f"ops: {len(tally.ops)} of {len(TABLE)}, by the number of programs that they occur in")
    ops = sorted(TABLE, key=lambda name: -tally.ops[name])
    for start in range(0, len(ops), 5):
        print(
            "  "
            + "".join(f"{name[:22]:<23}{tally.ops[name]:<7}" for name in ops[start : start + 5])
        )
    missing = [f"the property {name} never applies" for name in PROPERTIES if not tally.held[name]]
    missing += [f"the op {name} never occurs" for name in TABLE if not tally.ops[name]]
    if share < LEAST_SHARE:
        missing.append(f"only {share:.1%} of the programs have a group to prune")
    composed = tally.held["two_rounds"] / total
    if composed < LEAST_COMPOSED:
        missing.append(f"only {composed:.1%} of the programs have two plans that are one")
    return missing


def main() -> int:
    given = _arguments()
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    total, cpu, failures, start = Tally(), 0.0, [], time.monotonic()
    chunks = _chunks(given, seed, total)
    with ProcessPoolExecutor(given.jobs) as pool:
        running = {pool.submit(_chunk, *chunk) for chunk in islice(chunks, given.jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                number, tally, failure, seconds = future.result()
                total.add(tally)
                cpu += seconds
                if failure is not None:
                    failures.append(failure)
                    print(f"FAILED (seed {number}): {failure}", flush=True)
                chunk = next(chunks, None) if len(failures) < given.failures else None
                if chunk is not None:
                    running.add(pool.submit(_chunk, *chunk))
    missing = _report(total, cpu, time.monotonic() - start)
    for line in missing:
        print(f"MISSING: {line}")
    print(f"{len(failures)} failures")
    return int(bool(failures or missing))


if __name__ == "__main__":
    sys.exit(main())
