"""The table of criteria that have a name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from fxprune.criteria.activity import Apoz, Flap, HRank, MeanActivation, WandaSp
from fxprune.criteria.binding import DataCriterion, GraphCriterion, Scorer, SetCriterion
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
from fxprune.criteria.synflow import SynFlow
from fxprune.criteria.thinet import ThiNet
from fxprune.errors import PlanError

Criterion = Scorer | GraphCriterion | DataCriterion | SetCriterion

CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        "magnitude": Norm(2),
        "l1": Norm(1),
        "l2": Norm(2),
        "linf": Norm(math.inf),
        "lamp": Lamp(),
        "fpgm": Fpgm(),
        "bn_scale": BnScale(),
        "synflow": SynFlow(),
        "random": Random(0),
        "skeletonization": Skeletonization(),
        "taylor": Taylor(),
        "snip": Taylor(),
        "molchanov2017": Molchanov2017(),
        "molchanov2019": Molchanov2019(),
        "fisher": Fisher(),
        "mask_fisher": MaskFisher(),
        "mutual_information": MutualInformation(),
        "snip_weight": SnipWeight(),
        "grasp": Grasp(),
        "apoz": Apoz(),
        "mean_activation": MeanActivation(),
        "hrank": HRank(),
        "wanda_sp": WandaSp(),
        "flap": Flap(),
        "thinet": ThiNet(),
        "obd": Obd(),
        "c_obd": Obd("producer"),
        "obs": Obs(),
        "c_obs": Obs("producer"),
        "kron_obd": KronObd(),
        "kron_obs": KronObs(),
        "kron_obd_sets": KronObdSets(),
        "kron_obs_sets": KronObsSets(),
    }
)


def find_criterion(criterion: str | Criterion) -> Criterion:
    """The criterion of that name, or the callable itself; raises PlanError for anything else."""
    if isinstance(criterion, str):
        if criterion in CRITERIA:
            return CRITERIA[criterion]
        raise PlanError(
            f"There is no criterion {criterion!r}. The names are {', '.join(sorted(CRITERIA))}; "
            "or pass a callable (group, parameters) -> Tensor of the group's shape."
        )
    kinds = GraphCriterion | DataCriterion | SetCriterion
    if not callable(criterion) and not isinstance(criterion, kinds):
        raise PlanError(
            f"A criterion is a name ({', '.join(sorted(CRITERIA))}) or a callable "
            "(group, parameters) -> Tensor, or has a method score(group, statistics) and the names "
            f"of the statistics that it `requires`; got {criterion!r}."
        )
    return criterion


def criterion_name(criterion: str | Criterion) -> str:
    """How reports and messages call a criterion."""
    if isinstance(criterion, str):
        return criterion
    # Functions have a name of their own; other callables go by their class.
    return str(getattr(criterion, "__qualname__", None) or type(criterion).__qualname__)
