"""Network Slimming: the scale that batch normalisation gives a channel."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.analysis import Analysis
from fxprune.criteria.binding import Scorer
from fxprune.errors import NotApplicableError
from fxprune.groups import Group
from fxprune.roles import batch_norm_scales


@dataclass(frozen=True)
class BnScale:
    """|γ|, averaged over the batch normalisations of a group and over a unit's channels.

    Scores mean something after training with a penalty on γ (see `fxprune.penalties`); without
    one, γ says little. A removed channel took a constant with it, which depends on its β:
    `compensate="bias"` puts such constants into the next bias.
    """

    def bind(self, analysis: Analysis) -> Scorer:
        """Scores of a group's shape, float64; NotApplicableError without batch normalisation."""
        scales = batch_norm_scales(analysis.propagation)
        return lambda group, parameters: _mean_scale(group, parameters, scales)


def _mean_scale(group: Group, parameters: Mapping[str, Tensor], scales: Set[str]) -> Tensor:
    found = [
        member.entries(parameters[member.parameter].abs().double(), group).mean(-1)
        for member in group.members
        if member.parameter in scales
    ]
    if not found:
        raise NotApplicableError("it has no batch normalisation with a scale")
    return torch.stack(found).mean(0)
