"""Statistics of a model on data: what the criteria that need data read."""

from fxprune.statistics.kronecker import BlockDiagonalWarning, KroneckerFactors
from fxprune.statistics.moments import Activations
from fxprune.statistics.objective import Labels, Loss
from fxprune.statistics.statistics import Statistics

__all__ = [
    "Activations",
    "BlockDiagonalWarning",
    "KroneckerFactors",
    "Labels",
    "Loss",
    "Statistics",
]
