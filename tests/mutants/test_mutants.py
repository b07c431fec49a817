"""The mutants themselves: what each operator does, and that the sample is large and stable."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.__main__ import PER_FILE, PER_OPERATOR
from tests.mutants.operators import OPERATORS
from tests.mutants.population import PACKAGE, TARGETS, functions_of, mutants_of, population, sample
from tests.mutants.survivors import EQUIVALENT


@pytest.mark.parametrize(
    ("operator", "source", "expected"),
    [
        ("drop-call", "algebra.unify(x, y)", ["pass"]),
        ("drop-update", "axes[dim] = new", ["pass"]),
        ("drop-update", "size = 1", []),
        ("undo-call", "x = unify(left, right)", ["x = left"]),
        ("return-input", "def f(x):\n    return gather(x, y)", ["def f(x):\n    return x"]),
        ("swap-order", "product([g, t])", ["product([t, g])"]),
        ("swap-arguments", "f(a, b, 0)", ["f(b, a, 0)"]),
        ("drop-argument", "Effect(out, kind, over)", ["Effect(out, kind)"]),
        ("drop-argument", "Member(name, context=c)", ["Member(name)"]),
        ("wrong-kind", "Kind.SUM", ["Kind.MOVE"]),
        ("negate", "x = a if ok else b", ["x = a if not ok else b"]),
        ("drop-condition", "a and b", ["b", "a"]),
        ("wrong-connective", "a or b", ["a and b"]),
        ("compare", "a < b", ["a <= b"]),
        ("arithmetic", "a + b", ["a - b"]),
        ("wrong-index", "axes[0]", ["axes[1]"]),
        ("wrong-index", "axes[-1]", ["axes[0]"]),
        ("off-by-one", "a + 1", ["a + 2"]),
        ("drop-row", "{a: 1, b: 2, c: 3}", ["{b: 2, c: 3}", "{a: 1, c: 3}", "{a: 1, b: 2}"]),
        ("drop-row", "rows(rule, 'mm bmm')", ["rows(rule, 'bmm')", "rows(rule, 'mm')"]),
        ("drop-jump", "for x in y:\n    continue", ["for x in y:\n    pass"]),
    ],
)
def test_an_operator(operator: str, source: str, expected: list[str]) -> None:
    tree = ast.parse(source)
    found = [m for m in mutants_of("file.py", source) if m.operator == operator]
    assert [ast.unparse(m.changed(tree)) for m in found] == expected


def test_every_operator_has_mutants_and_the_sample_is_large() -> None:
    every = population()
    assert {mutant.operator for mutant in every} == OPERATORS.keys()
    assert {mutant.file for mutant in every} >= {t for t in TARGETS if "__init__" not in t}
    assert len({mutant.name for mutant in every}) == len(every)
    chosen = sample(every, PER_OPERATOR, PER_FILE)
    assert len(chosen) >= 150
    assert sample(every[::-1], PER_OPERATOR, PER_FILE) == chosen
    for mutant in sample(every, 1, 0):
        original = ast.unparse(ast.parse((PACKAGE / mutant.file).read_text(encoding="utf-8")))
        assert mutant.source() != original
        compile(mutant.source(), mutant.file, "exec")


def test_a_mutant_is_killed_and_the_package_as_it_is_survives(tmp_path: Path) -> None:
    """The tool itself, which fires at the unchanged package first; the suite is one test."""
    killed = "algebra.py:Algebra._unify_atom:compare:4"
    elsewhere = "algebra.py:Algebra.view:drop-call:1"
    suite = "tests/axes/test_precision.py::test_a_unit_cannot_condition_itself"
    command = [sys.executable, "-m", "tests.mutants", "--only", killed, elsewhere]
    options = ["--suite", suite, "--folder", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *options], cwd=PACKAGE.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr  # since one is alive
    outcomes = [line.split() for line in done.stdout.splitlines() if line[1:3] == "/2"]
    assert sorted((words[1], words[6]) for words in outcomes) == [
        ("killed", killed),
        ("survived", elsewhere),
    ]


def test_messages_and_types_are_left_alone() -> None:
    source = 'def f(x: A | B) -> A | B:\n    """a + b"""\n    raise E(f"{x + 1}")'
    assert list(mutants_of("file.py", source)) == []


def test_the_functions_of_a_file() -> None:
    names = functions_of("axes.py").values()
    assert {"find", "Atom.__init__", "contains"} <= set(names)


def test_survivors_are_mutants() -> None:
    assert EQUIVALENT.keys() <= {mutant.name for mutant in population()}
