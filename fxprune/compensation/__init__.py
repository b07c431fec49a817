"""Recovery without training: what stays takes over what removed units contributed.

All of it is edits of the plan: a plan with new values for parameters, in the original's shapes. A
value edit stands before the index edits, so the plan and the original's weights give the recovered
network, and `fxprune.verify` proves it.
"""

from fxprune.compensation.methods import METHODS, check_methods, compensate
from fxprune.compensation.recalibration import recalibrate

__all__ = ["METHODS", "check_methods", "compensate", "recalibrate"]
