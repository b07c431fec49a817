"""Criteria: a score for each unit of a group, higher = keep.

A criterion is a callable `(group, parameters) -> Tensor` of the group's shape, or, if it needs
data, an object with `requires` and `score(group, statistics)`; or see `SetCriterion`. It reads
the group's members and never asks for a module's type, so it scores channels, heads and hidden
widths alike.
"""

from fxprune.criteria.activity import Apoz, Flap, HRank, MeanActivation, WandaSp
from fxprune.criteria.base import CRITERIA, Criterion, criterion_name, find_criterion
from fxprune.criteria.binding import (
    DataCriterion,
    GraphCriterion,
    Joint,
    Scorer,
    SetCriterion,
    bound,
)
from fxprune.criteria.bn_scale import BnScale
from fxprune.criteria.fpgm import Fpgm
from fxprune.criteria.lamp import Lamp
from fxprune.criteria.loss import (
    Fisher,
    Grasp,
    Molchanov2017,
    Molchanov2019,
    MutualInformation,
    Skeletonization,
    SnipWeight,
    Taylor,
)
from fxprune.criteria.mask_fisher import MaskFisher
from fxprune.criteria.norms import Norm
from fxprune.criteria.randomness import Random
from fxprune.criteria.second_order import KronObd, KronObdSets, KronObs, KronObsSets, Obd, Obs
from fxprune.criteria.synflow import SynapticFlow, SynFlow
from fxprune.criteria.thinet import ThiNet

__all__ = [
    "CRITERIA",
    "Apoz",
    "BnScale",
    "Criterion",
    "DataCriterion",
    "Fisher",
    "Flap",
    "Fpgm",
    "GraphCriterion",
    "Grasp",
    "HRank",
    "Joint",
    "KronObd",
    "KronObdSets",
    "KronObs",
    "KronObsSets",
    "Lamp",
    "MaskFisher",
    "MeanActivation",
    "Molchanov2017",
    "Molchanov2019",
    "MutualInformation",
    "Norm",
    "Obd",
    "Obs",
    "Random",
    "Scorer",
    "SetCriterion",
    "Skeletonization",
    "SnipWeight",
    "SynFlow",
    "SynapticFlow",
    "Taylor",
    "ThiNet",
    "WandaSp",
    "bound",
    "criterion_name",
    "find_criterion",
]
