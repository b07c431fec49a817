"""Layers in factors: a change of basis of a layer's inputs and outputs, of which some stay."""

from fxprune.factorization.emission import factored
from fxprune.factorization.layers import FactorLayer, factor_layers
from fxprune.factorization.planning import DAMPING, METHODS, candidates, plan_factorization
from fxprune.factorization.spreading import SPREADS

__all__ = [
    "DAMPING",
    "METHODS",
    "SPREADS",
    "FactorLayer",
    "candidates",
    "factor_layers",
    "factored",
    "plan_factorization",
]
