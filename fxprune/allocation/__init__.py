"""How a cut spreads over groups: from scores and a sparsity or a budget to a plan."""

from fxprune.allocation.budgets import Budget
from fxprune.allocation.limits import Limits
from fxprune.allocation.planning import NothingPrunedWarning, plan
from fxprune.allocation.scores import LeftWholeWarning, score

__all__ = ["Budget", "LeftWholeWarning", "Limits", "NothingPrunedWarning", "plan", "score"]
