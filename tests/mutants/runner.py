"""Run the tests against mutants, each in a child process of one pytest session.

The session imports everything and collects all tests once, and no test runs in it. A child
exchanges the code of one function for the mutant's, which all that refer to the function then run;
then it runs the tests that enter the function, quick ones first, and stops at the first that fails.
A mutant of what stands at the top of a module is imported anew, in a child that forgets the package
and the tests and starts a session of its own.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.abc
import importlib.util
import os
import re
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from tests.mutants.population import PACKAGE, Mutant
from tests.mutants.reach import OPTIONS, ROOT, Reach

MEMORY = 12 << 30
"""Address space of a child; a mutant may make endless lists."""
LIFETIME = 1800
"""CPU seconds of a child."""
PATIENCE = 10.0
"""CPU seconds for one test, on top of ten times what it takes unharmed."""

_ALIVE, _KILLED, _BROKEN = 0, 1, 99
_WORD = re.compile(r"[a-z]\w+")


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: killed by a test, or alive after so many; CPU seconds."""

    mutant: Mutant
    killer: str
    tests: int
    seconds: float

    @property
    def killed(self) -> bool:
        return bool(self.killer)


class _TooLong(BaseException):
    """A test took much longer than it does with the package as it is."""


def aim(mutant: Mutant, known: Mapping[str, Reach], budget: float) -> list[str]:
    """The tests that the mutant must meet, in order, within a budget of CPU seconds.

    Those that enter the changed function; for a table, all that enter its file, and those that
    enter nothing, but may look at tables. Tests whose name mentions what is changed come first;
    then quick ones, and of each test function few.
    """
    chosen = entering(mutant, known)
    if not chosen:
        file = f"{mutant.file}:"
        entered = {name: any(f.startswith(file) for f in r.functions) for name, r in known.items()}
        anyone = any(entered.values())
        chosen = [n for n, r in known.items() if entered[n] or not (r.functions and anyone)]
    hints = _hints(mutant)
    turns: Counter[str] = Counter()
    keys: dict[str, tuple[bool, float]] = {}
    for name in sorted(chosen, key=lambda name: known[name].seconds):
        function, _, case = name.partition("[")
        turns[function] += 1
        keys[name] = (
            hints.isdisjoint(_WORD.findall(case)),
            turns[function] * known[name].seconds,
        )
    total, within = 0.0, []
    for name in sorted(chosen, key=keys.__getitem__):
        total += known[name].seconds
        if total > budget:
            break
        within.append(name)
    return within


def _hints(mutant: Mutant) -> set[str]:
    """The words that the mutant loses, or that it changes, and the name of its function."""
    before, after = (_WORD.findall(ast.unparse(n)) for n in (mutant.before, mutant.after))
    return {mutant.function.rpartition(".")[2]} | (set(before) - set(after) or set(before))


def entering(mutant: Mutant, known: Mapping[str, Reach]) -> list[str]:
    """The tests that enter the function that the mutant changes; none for what runs on import."""
    place = f"{mutant.file}:{mutant.function}"
    return [name for name, reach in known.items() if place in reach.functions]


class Firing:
    """A pytest plugin that runs chosen tests only, each with a limit of CPU time.

    `report` is called with the name of the first test that fails.
    """

    def __init__(
        self, names: Sequence[str], known: Mapping[str, Reach], report: Callable[[str], None]
    ) -> None:
        self.places = {name: place for place, name in enumerate(names)}
        self.known, self.report = known, report
        self.tests = 0
        self.failed = False

    def chosen(self, items: Sequence[Any]) -> list[Any]:
        """The items to run, in order."""
        due = [item for item in items if item.nodeid in self.places]
        return sorted(due, key=lambda item: self.places[item.nodeid])

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = self.chosen(items)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Iterator[None]:
        signal.signal(signal.SIGPROF, _interrupt)
        signal.setitimer(signal.ITIMER_PROF, PATIENCE + 10 * self.known[item.nodeid].seconds)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.tests += report.when == "call"
        if report.failed and not self.failed:
            self.failed = True
            self.report("timeout" if "_TooLong" in str(report.longrepr) else report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = True
            self.report(f"import of {report.nodeid}")


def _interrupt(signum: int, frame: object) -> None:
    raise _TooLong


@dataclass
class Range:
    """A pytest plugin: where the tests would run, mutants are fired at.

    `shoot` is given this range; `logs` is a folder for the logs of mutants that are alive.
    """

    known: Mapping[str, Reach]
    budget: float
    logs: Path
    shoot: Callable[[Range], None]
    items: Sequence[Any] = ()

    def pytest_runtestloop(self, session: Any) -> bool:
        if session.testsfailed:
            raise SystemExit("the tests cannot be collected")
        self.items = session.items
        with contextlib.redirect_stdout(sys.__stdout__):
            self.shoot(self)
        return True

    def fire(self, mutants: Iterable[Mutant], jobs: int) -> Iterator[Outcome]:
        """Run the tests against mutants, so many at once; outcomes come as they are found."""
        running: dict[int, tuple[Mutant, int]] = {}
        for mutant in mutants:
            pid, reader = self._start(mutant)
            running[pid] = mutant, reader
            if len(running) == jobs:
                yield self._await(running)
        while running:
            yield self._await(running)

    def _start(self, mutant: Mutant) -> tuple[int, int]:
        """A child process that runs the tests, and the end of a pipe where it says what fails."""
        reader, writer = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.close(reader)
            self._in_child(mutant, writer)
        os.close(writer)
        return child, reader

    def _await(self, running: dict[int, tuple[Mutant, int]]) -> Outcome:
        """The outcome of the next child that ends; it has written a few lines at most."""
        pid, status, usage = os.wait4(-1, 0)
        mutant, reader = running.pop(pid)
        with os.fdopen(reader) as pipe:
            killer, _, count = pipe.read().partition("\n")
        code = os.waitstatus_to_exitcode(status)
        if code not in (_ALIVE, _KILLED) and code > 0:
            raise RuntimeError(f"{mutant.name}: the run broke off; see {self._log(mutant)}")
        if code < 0:
            killer = f"signal {-code}"
        if killer:
            self._log(mutant).unlink(missing_ok=True)
        return Outcome(mutant, killer, int(count or 0), usage.ru_utime + usage.ru_stime)

    def _log(self, mutant: Mutant) -> Path:
        return self.logs / f"{mutant.digest[:12]}.log"

    def _in_child(self, mutant: Mutant, writer: int) -> None:
        """Never returns."""
        code = _BROKEN
        try:
            with self._log(mutant).open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (LIFETIME, LIFETIME))

            def report(killer: str) -> None:
                os.write(writer, killer.encode())

            firing = Firing(aim(mutant, self.known, self.budget), self.known, report)
            if entering(mutant, self.known) and exchange(mutant):
                _run_here(firing, self.items)
            else:
                _run_anew(mutant, firing)
            os.write(writer, f"\n{firing.tests}".encode())
            code = _KILLED if firing.failed else _ALIVE
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)


def _run_here(firing: Firing, items: Sequence[Any]) -> None:
    """Run tests that are collected already, up to the first that fails."""
    items[0].config.pluginmanager.register(firing)
    for item in firing.chosen(items):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        if firing.failed:
            return


def _run_anew(mutant: Mutant, firing: Firing) -> None:
    """Import the mutant and the tests from the start, and run them in a session of their own."""
    for name in [n for n in sys.modules if n.partition(".")[0] in (PACKAGE.name, "tests")]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Finder(mutant))
    try:
        importlib.import_module(PACKAGE.name)
    except Exception as error:
        firing.failed = True
        firing.report(f"import: {type(error).__name__}")
        return
    files = dict.fromkeys(name.partition("::")[0] for name in firing.places)
    pytest.main([*OPTIONS, "-x", *files], plugins=[firing])


# -- putting a mutant in the place of the original -------------------------------------------------


def exchange(mutant: Mutant) -> bool:
    """Exchange the code of the changed function for the mutant's; False if that cannot be.

    It is in no function's code, or the function refers to other variables around it than before.
    """
    path = mutant.function.split(".") if mutant.start and not mutant.in_default else []
    module = importlib.import_module(_module_name(mutant))
    holder: Any = module
    code: CodeType = compile(mutant.source(), str(PACKAGE / mutant.file), "exec")
    for position, name in enumerate(path):
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)
        found = vars(holder).get(name)
        function = _plain(found)
        if function is not None:
            if position < len(path) - 1:  # an inner function, which may be in some table already
                return False
            same = function.__code__.co_freevars == code.co_freevars
            function.__code__ = code if same else function.__code__
            return same
        if not isinstance(found, type) or position == len(path) - 1:
            return False
        holder = found
    return False


def _plain(found: Any) -> FunctionType | None:
    """The Python function behind a method, a property or a wrapper."""
    for name in ("__func__", "fget", "func", "__wrapped__"):
        found = getattr(found, name, found)
    return found if isinstance(found, FunctionType) else None


def _module_name(mutant: Mutant) -> str:
    name = f"{PACKAGE.name}.{mutant.file.removesuffix('.py').replace('/', '.')}"
    return name.removesuffix(".__init__")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the mutant's source in the place of one module."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != _module_name(self.mutant):
            return None
        location = PACKAGE / self.mutant.file
        folders = [str(location.parent)] if location.stem == "__init__" else None
        return importlib.util.spec_from_file_location(
            name, location, loader=self, submodule_search_locations=folders
        )

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        file = str(PACKAGE / self.mutant.file)
        exec(compile(self.mutant.source(), file, "exec"), vars(module))


def session(suite: Sequence[str], range_: Range) -> None:
    """Collect the tests, in whose place `range_` runs."""
    os.chdir(ROOT)
    code = pytest.main([*OPTIONS, "-s", *suite], plugins=[range_])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise SystemExit(f"pytest returned {code}")
