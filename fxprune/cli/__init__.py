"""The command line: `fxprune COMMAND MODEL ...`."""

from fxprune.cli.main import main

__all__ = ["main"]
