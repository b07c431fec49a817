"""The plan: which units of which groups stay, as data that can be stored and replayed."""

from fxprune.plans.base import AnalysisLike, FrozenMap, Kept
from fxprune.plans.factorization import Bases, FactorizationPlan
from fxprune.plans.plan import PruningPlan

__all__ = ["AnalysisLike", "Bases", "FactorizationPlan", "FrozenMap", "Kept", "PruningPlan"]
