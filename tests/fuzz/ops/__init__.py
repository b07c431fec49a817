"""The rows of the op table, by family. Importing this package fills the table."""

from tests.fuzz.ops import convolutions, moves, pointwise

__all__ = ["convolutions", "moves", "pointwise"]
