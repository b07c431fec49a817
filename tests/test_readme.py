"""The examples and commands of the README and the guides run, and print what the pages say."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from fxprune.cli import main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))

PROSE = ("docs/guarantees.md",)

# A python block, and the text block right after it if it says what the code prints.
BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)


@dataclass(frozen=True)
class Example:
    code: str
    output: str
    line: int


def examples_of(text: str) -> tuple[Example, ...]:
    return tuple(
        Example(match[1], match[2] or "", text.count("\n", 0, match.start(1)) + 1)
        for match in BLOCK.finditer(text)
    )


def run(example: Example, namespace: dict[str, object], page: str = "README.md") -> str:
    """What the example prints; tracebacks show its line on the page."""
    code = compile("\n" * (example.line - 1) + example.code, str(ROOT / page), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


@pytest.mark.parametrize("page", PAGES)
def test_the_examples(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = examples_of((ROOT / page).read_text(encoding="utf-8"))
    if page not in PROSE:
        assert any(example.output for example in examples), f"no example of {page} shows its output"
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for example in examples:  # in order: a later one may use what an earlier one defined
        assert lines(run(example, namespace, page)) == lines(example.output), f"line {example.line}"


def test_examples_and_their_outputs_are_found() -> None:
    text = "a\n```python\nprint(1)\n```\n\n```text\n1\n```\nb\n```python\nx = 2\n```\n"
    assert examples_of(text) == (Example("print(1)\n", "1\n", 3), Example("x = 2\n", "", 11))
    assert run(examples_of(text)[0], {}) == "1\n"


def test_a_wrong_output_is_noticed() -> None:
    (example,) = examples_of("```python\nprint(1)\n```\n```text\n2\n```\n")
    assert lines(run(example, {})) != lines(example.output)


# A tour of the command line: lines of "$ command", each followed by what it prints.
TOUR = re.compile(r"```console\n(.*?)```", re.DOTALL)


def commands_of(text: str) -> tuple[tuple[str, str], ...]:
    """Each command of the tours, and what it prints."""
    blocks = "".join(match[1] for match in TOUR.finditer(text))
    parts = re.split(r"^\$ ", blocks, flags=re.MULTILINE)[1:]
    split = (part.partition("\n") for part in parts)
    return tuple((command, output) for command, _, output in split)


def printed_like(output: str, expected: str) -> bool:
    """Whether lines are those expected; "..." stands for any lines, or for any part of one."""
    patterns = [
        r"(?:.*\n)*?" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + r" *\n"
        for line in expected.splitlines()
    ]
    return re.fullmatch("".join(patterns), output.rstrip("\n") + "\n") is not None


def test_the_tour_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = commands_of(README.read_text(encoding="utf-8"))
    names = {command.split()[1] for command, _ in commands if command.startswith("fxprune ")}
    assert names == {"groups", "explain", "prune", "verify", "report", "export", "diff"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for command, expected in commands:
        program, *arguments = shlex.split(command)
        if program == "cat":  # what the reader is to write
            Path(arguments[0]).write_text(expected, encoding="utf-8")
            continue
        assert program == "fxprune"
        code = main(arguments)
        output, errors = capsys.readouterr()
        assert code == (1 if arguments[0] == "diff" else 0), f"{command}: {errors}"
        assert printed_like(output, expected), f"{command}\n{output}"


def test_printed_like() -> None:
    assert commands_of("x\n```console\n$ a b\n1\n...\n$ c\n```\n") == (
        ("a b", "1\n...\n"),
        ("c", ""),
    )
    assert printed_like("1\n2\n3\n4\n", "1\n...\n4\n")
    assert printed_like("error 1e-7 (ok)\n", "error ... (ok)\n")
    assert not printed_like("1\n2\n", "1\n")
    assert not printed_like("1\n5\n", "1\n...\n4\n")
