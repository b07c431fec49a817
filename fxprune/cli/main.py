"""Arguments in, one command run, text or JSON out, an exit code."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fxprune.cli.outcome import BROKEN, INTERRUPTED, REFUSED, USAGE, UsageError
from fxprune.cli.parser import parser
from fxprune.errors import FxpruneError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; the codes are in `fxprune --help`."""
    try:
        args = parser().parse_args(argv)
    except SystemExit as stop:  # --help, --version, or a wrong command line
        _print("")
        return int(stop.code or 0)
    try:
        with _warnings_in_one_line():
            outcome = args.run(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        else:
            print(f"fxprune {args.command}: error: {_one_line(error)}", file=sys.stderr)
        if isinstance(error, UsageError):
            return USAGE
        return REFUSED if isinstance(error, FxpruneError) else BROKEN
    text = json.dumps(outcome.data, indent=2) if args.json else outcome.text
    _print(text.rstrip("\n") + "\n")
    return int(outcome.code)


def _print(text: str) -> None:
    """Write to stdout, unless the reader, such as `head`, has seen enough."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, FxpruneError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    def show(message: Warning | str, *rest: Any, **options: Any) -> None:
        print(f"fxprune: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.showwarning = show
        yield
