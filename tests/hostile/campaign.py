"""Damage files at random and see what their readers do: our errors, or something whole.

Nothing else may come out: no other exception, no code that is run, no file that is written, no
process, no connection, no more memory or time than a few times what an undamaged file takes.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fxprune.errors import FxpruneError
from tests.hostile.targets import TARGETS, Files, Target

SECONDS = 5.0
"""CPU time of one reading."""
PYTHON_BYTES = 200 << 20
"""Memory of Python's objects at the peak of one reading."""
ADDRESS_SPACE = 8 << 30
"""Of the whole process, torch and its libraries included."""

_NEVER = frozenset(
    """os.system os.exec os.posix_spawn os.spawn os.fork subprocess.Popen pickle.find_class
    socket.connect socket.bind ctypes.dlopen os.remove os.rename os.symlink""".split()
)
_WRITES = frozenset("wax+")
_COMPILING = frozenset({"exec", "compile", "import"})


class _Watch:
    """An audit hook: notes the events that reading a file must not cause."""

    def __init__(self) -> None:
        self.forbidden: frozenset[str] = frozenset()
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: Any) -> None:
        writes = event == "open" and self.forbidden and _WRITES & set(str(arguments[1]))
        if event in self.forbidden or writes:
            self.seen.append(f"{event} {arguments!r:.200}")

    @contextmanager
    def over(self, target: Target) -> Iterator[list[str]]:
        """The forbidden events while the block runs."""
        self.seen = []
        self.forbidden = _NEVER if target.compiles else _NEVER | _COMPILING
        try:
            yield self.seen
        finally:
            self.forbidden = frozenset()


_watch: list[_Watch] = []


def watch() -> _Watch:
    """The one audit hook of this process: hooks cannot be removed."""
    if not _watch:
        _watch.append(_Watch())
    return _watch[0]


@dataclass
class Tally:
    """What happened: how many readings raised, how many returned, by corruption; and faults."""

    refused: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0
    largest: int = 0


def put(files: Files, folder: Path) -> None:
    """Write files to a folder."""
    for name, data in files.items():
        (folder / name).write_bytes(data)


def attack(name: str, seed: str, folder: Path, tally: Tally) -> None:
    """Damage the files of one target once and read them."""
    target = TARGETS[name]
    corruption, files = target.damaged(Random(seed))
    what = f"{name}: {corruption}"
    put(files, folder)
    start = time.process_time()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    try:
        with watch().over(target) as events:
            result = target.read(folder)
    except FxpruneError as error:
        tally.refused[what] += 1
        if len(str(error)) > 4000:
            tally.faults.append(f"{what} (seed {seed}): a message of {len(str(error))} characters")
    except Exception as error:  # the fault that this looks for
        tally.faults.append(f"{what} (seed {seed}): {type(error).__name__}: {error!s:.300}")
    else:
        tally.accepted[what] += 1
        try:
            target.check(result)
        except Exception as error:
            tally.faults.append(f"{what} (seed {seed}): returned what is not whole: {error!r:.300}")
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1] - before
    tally.slowest, tally.largest = max(tally.slowest, seconds), max(tally.largest, peak)
    if events:
        tally.faults.append(f"{what} (seed {seed}): {events}")
    if seconds > SECONDS or peak > PYTHON_BYTES:
        tally.faults.append(f"{what} (seed {seed}): {seconds:.1f} s, {peak >> 20} MiB")


def campaign(count: int, seed: str, names: Sequence[str] = tuple(TARGETS)) -> Tally:
    """`count` attacks on the targets in turn."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        for name in names:  # undamaged, they are read; all imports are done
            put(TARGETS[name].files(), Path(folder))
            TARGETS[name].check(TARGETS[name].read(Path(folder)))
        tracemalloc.start()
        try:
            for number in range(count):
                attack(names[number % len(names)], f"{seed}/{number}", Path(folder), tally)
        finally:
            tracemalloc.stop()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--target", choices=TARGETS, action="append")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    start = time.process_time()
    tally = campaign(options.count, options.seed, options.target or tuple(TARGETS))
    for name in sorted(tally.refused.keys() | tally.accepted.keys()):
        print(f"{name:50} {tally.refused[name]:6} refused {tally.accepted[name]:6} read")
    print(
        f"{options.count} damaged files in {time.process_time() - start:.0f} s of CPU time: "
        f"{sum(tally.refused.values())} refused, {sum(tally.accepted.values())} read and whole, "
        f"{len(tally.faults)} faults; slowest {tally.slowest:.2f} s, "
        f"largest {tally.largest / 2**20:.1f} MiB"
    )
    print("\n".join(tally.faults[:50]))
    return 1 if tally.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
