"""Criteria: a score for each unit of a group, higher = keep.

A criterion is a callable `(group, parameters) -> Tensor` of the group's shape. It reads the group's
members and never asks for a module's type, so it scores channels, heads and hidden widths alike.
"""

from fxprune.criteria.base import CRITERIA, Criterion, criterion_name, find_criterion
from fxprune.criteria.fpgm import Fpgm
from fxprune.criteria.lamp import Lamp
from fxprune.criteria.norms import Norm
from fxprune.criteria.randomness import Random

__all__ = [
    "CRITERIA",
    "Criterion",
    "Fpgm",
    "Lamp",
    "Norm",
    "Random",
    "criterion_name",
    "find_criterion",
]
