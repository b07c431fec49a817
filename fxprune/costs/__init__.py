"""What a network costs, as closed forms of its widths."""

from fxprune.costs.model import (
    QUANTITIES,
    Amounts,
    Cost,
    CostModel,
    NodeCost,
    cost,
    cost_model,
    savings,
)

__all__ = [
    "QUANTITIES",
    "Amounts",
    "Cost",
    "CostModel",
    "NodeCost",
    "cost",
    "cost_model",
    "savings",
]
