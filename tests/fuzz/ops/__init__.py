"""The rows of the op table, by family. Importing this package fills the table."""

from tests.fuzz.ops import (
    attention,
    convolutions,
    embeddings,
    moves,
    norms,
    pointwise,
    recurrent,
    reductions,
    spatial,
)

__all__ = [
    "attention",
    "convolutions",
    "embeddings",
    "moves",
    "norms",
    "pointwise",
    "recurrent",
    "reductions",
    "spatial",
]
