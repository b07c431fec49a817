"""Which tests run which functions of the package, and how long they take: what a mutant must meet.

The tests run once under a tracer that sees calls only; later, only those that are not known yet.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.mutants.population import PACKAGE, files_in, functions_of

ROOT = PACKAGE.parent
FOLDER = ROOT / ".mutants"
"""Where this tool keeps what it finds out about the tests, and the logs of mutants."""
# The tests of what is mutated, and of what rests on it; those of criteria take long and see little.
SUITE: tuple[str, ...] = (
    *(f"tests/{name}" for name in "axes rules contexts regressions plans rewriter".split()),
    *(f"tests/{name}" for name in "capture equivalence handmade zoo fuzz crosscheck".split()),
    *(f"tests/{name}" for name in "statistics allocation costs checkpoint hostile".split()),
    *(f"tests/{name}" for name in "factorization compensation".split()),
    *(
        f"tests/test_{n}.py"
        for n in """coverage dynamic_sizes errors explain growing grouping meta_kernels
        module_ops function_ops""".split()
    ),
)
_STORE = "reach.json"
OPTIONS = (
    "-q",
    "-p",
    "no:cacheprovider",
    "--ignore=tests/capture/test_zoo.py",
    "--deselect=tests/fuzz/test_properties.py::test_properties_of_fresh_programs",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
)


@dataclass(frozen=True)
class Reach:
    """The CPU seconds of a test and the functions that it enters, as ``file:qualified.name``."""

    seconds: float
    functions: tuple[str, ...]


class Recorder:
    """A pytest plugin that notes the reach of every test that is not known.

    It forgets the tests that there are no longer.
    """

    def __init__(self, known: Mapping[str, Reach]) -> None:
        self.known = known
        self.found: dict[str, Reach] = {}
        self._names = {
            (str(PACKAGE / file), start): f"{file}:{name}"
            for file in files_in([".", "*"])
            for start, name in functions_of(file).items()
        }
        self._entered: set[tuple[str, int]] = set()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        present = {item.nodeid for item in items}
        self.known = {name: reach for name, reach in self.known.items() if name in present}
        items[:] = [item for item in items if item.nodeid not in self.known]

    def _called(self, frame: FrameType, event: str, argument: object) -> None:
        self._entered.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        for value in vars(item.module).values():  # what another test prepared counts for this one
            if hasattr(value, "cache_clear"):
                value.cache_clear()
        self._entered = set()
        start = time.process_time()
        sys.settrace(self._called)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            names = sorted(self._names[e] for e in self._entered if e in self._names)
            self.found[item.nodeid] = Reach(time.process_time() - start, tuple(names))


def record(suite: Sequence[str], folder: Path) -> None:
    """Run the tests of the suite that are not known yet, all of which must pass, and store them."""
    recorder = Recorder(load(folder))
    code = pytest.main([*OPTIONS, *suite], plugins=[recorder])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise SystemExit(f"the tests must pass before there are mutants; pytest returned {code}")
    folder.mkdir(exist_ok=True)
    every = {**recorder.known, **recorder.found}
    stored = json.dumps({name: asdict(reach) for name, reach in every.items()})
    (folder / _STORE).write_text(stored)


def load(folder: Path) -> Mapping[str, Reach]:
    """What `record` stored."""
    store = folder / _STORE
    stored = json.loads(store.read_text()) if store.exists() else {}
    return {n: Reach(r["seconds"], tuple(r["functions"])) for n, r in stored.items()}


def forget(folder: Path) -> None:
    """Have `record` run every test."""
    (folder / _STORE).unlink(missing_ok=True)


def existing(paths: tuple[str, ...]) -> list[str]:
    """The paths that the project has."""
    return [path for path in paths if (ROOT / Path(path)).exists()]
