"""The README's examples run, and print what the README says they print."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"

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


def run(example: Example, namespace: dict[str, object]) -> str:
    """What the example prints; tracebacks show its line in the README."""
    code = compile("\n" * (example.line - 1) + example.code, str(README), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def test_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = examples_of(README.read_text(encoding="utf-8"))
    assert examples, "the README has no python example"
    assert any(example.output for example in examples), "no example shows its output"
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for example in examples:  # in order: a later one may use what an earlier one defined
        assert lines(run(example, namespace)) == lines(example.output), f"line {example.line}"


def test_examples_and_their_outputs_are_found() -> None:
    text = "a\n```python\nprint(1)\n```\n\n```text\n1\n```\nb\n```python\nx = 2\n```\n"
    assert examples_of(text) == (Example("print(1)\n", "1\n", 3), Example("x = 2\n", "", 11))
    assert run(examples_of(text)[0], {}) == "1\n"


def test_a_wrong_output_is_noticed() -> None:
    (example,) = examples_of("```python\nprint(1)\n```\n```text\n2\n```\n")
    assert lines(run(example, {})) != lines(example.output)
