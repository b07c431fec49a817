"""Criteria: a score for each unit of a group, higher = keep.

A criterion is a callable `(group, parameters) -> Tensor` of the group's shape. It reads the group's
members and never asks for a module's type, so it scores channels, heads and hidden widths alike.
"""

from fxprune.criteria.base import CRITERIA, Criterion, criterion_name, find_criterion
from fxprune.criteria.binding import GraphCriterion, bound
from fxprune.criteria.bn_scale import BnScale
from fxprune.criteria.fpgm import Fpgm
from fxprune.criteria.lamp import Lamp
from fxprune.criteria.norms import Norm
from fxprune.criteria.randomness import Random
from fxprune.criteria.synflow import SynapticFlow, SynFlow

__all__ = [
    "CRITERIA",
    "BnScale",
    "Criterion",
    "Fpgm",
    "GraphCriterion",
    "Lamp",
    "Norm",
    "Random",
    "SynFlow",
    "SynapticFlow",
    "bound",
    "criterion_name",
    "find_criterion",
]
