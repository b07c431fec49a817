"""Criteria from mask gradients: what the loss loses with a unit.

All of them read G[n, k] = ∂L_n/∂m_k, the derivative of sample n's loss by a mask on unit k. It is
the consumer side alone: summing the producers' θ∂θ as well would count a unit twice. A unit that
nothing comes out of scores zero.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Set
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxprune.costs import QUANTITIES
from fxprune.errors import NotApplicableError
from fxprune.groups import Group, Role
from fxprune.statistics import Statistics

_MASK_GRADS = frozenset({"mask_grads"})


@dataclass(frozen=True)
class Skeletonization:
    """-mean_n G: how much the loss rises without the unit, to first order. It can be negative."""

    requires: ClassVar[Set[str]] = _MASK_GRADS

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape."""
        return -statistics.mask_grads(group).mean(0)


@dataclass(frozen=True)
class Taylor:
    """|mean_n G|: how much the loss changes without the unit, to first order (SNIP on units)."""

    requires: ClassVar[Set[str]] = _MASK_GRADS

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape."""
        return statistics.mask_grads(group).mean(0).abs()


@dataclass(frozen=True)
class Molchanov2017:
    """mean_n |G|, divided by its ℓ2 norm over the group.

    The paper's division by the number of positions is the same for all units of a group: it
    cancels. Scores of different groups are comparable in rank only, not as changes of the loss.
    """

    requires: ClassVar[Set[str]] = _MASK_GRADS

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape; zeros where all units score zero."""
        scores = statistics.mask_grads(group).abs().mean(0)
        norm = scores.norm()
        return scores / norm if norm > 0 else scores


@dataclass(frozen=True)
class Molchanov2019:
    """(mean_n G)²: the squared change of the loss without the unit, to first order."""

    requires: ClassVar[Set[str]] = _MASK_GRADS

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape."""
        return statistics.mask_grads(group).mean(0).square()


@dataclass(frozen=True)
class Fisher:
    """½ mean_n G²: how much the loss rises without the unit at a minimum, to second order.

    It equals ½ θᵀFθ with the empirical Fisher information F of all that reads the unit.

    cost      "macs", "parameters" or "activation_memory": weigh the rise against what the removal
              of the unit saves of it at present widths; None for the rise alone
    exchange  how much rise one unit of cost is worth: the score is rise - exchange · saving. None
              for rise / saving, which needs no such number; a unit that saves nothing stays.

    Raises ValueError for another cost, and for an exchange without a cost.
    """

    cost: str | None = None
    exchange: float | None = None
    requires: ClassVar[Set[str]] = _MASK_GRADS

    def __post_init__(self) -> None:
        if self.cost not in (None, *QUANTITIES):
            raise ValueError(f"the cost is one of {', '.join(QUANTITIES)}; got {self.cost!r}")
        if self.exchange is not None and self.cost is None:
            raise ValueError("an exchange rate needs a cost: Fisher(cost='macs', exchange=1e-9)")

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape."""
        rise = 0.5 * statistics.mask_grads(group).square().mean(0)
        if self.cost is None:
            return rise
        saving = float(getattr(statistics.cost_delta(group), self.cost))
        if self.exchange is not None:
            return rise - self.exchange * saving
        if not saving:
            raise NotApplicableError(f"the removal of a unit saves no {self.cost}")
        return rise / saving


@dataclass(frozen=True)
class MutualInformation:
    """mean_n Σ |h ∂L_n/∂h| over the unit's activations h.

    What some lecture notes call mutual information is first-order Taylor on single activations:
    changes of the loss do not cancel.
    """

    requires: ClassVar[Set[str]] = frozenset({"magnitudes"})

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape."""
        return statistics.magnitudes(group).mean(0)


@dataclass(frozen=True)
class SnipWeight:
    """Σ |θ ∂L/∂θ| over the weights θ that read the unit: SNIP on single weights.

    Where no weight reads the units, as where queries meet keys, it is the mean over the parameters
    that make them.

    roles  the members whose weights count; with "producer" also those that make the unit
    """

    roles: tuple[Role, ...] = ("consumer",)
    requires: ClassVar[Set[str]] = frozenset({"param_grads"})

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape."""
        gradients = statistics.param_grads()
        return over_weights(
            group, statistics, lambda name, weight: (weight * gradients[name]).abs(), self.roles
        )


@dataclass(frozen=True)
class Grasp:
    """Σ θ·(Hg) over the weights θ that read the unit: how much of the gradient flow it carries.

    Removing units of low score raises the norm of the gradient g, to first order. The output is
    divided by `temperature`, as in the paper. Meant for networks before training: where g vanishes,
    so does the score. Where no weight reads the units it is the mean over the parameters that make
    them.
    """

    temperature: float = 200.0
    requires: ClassVar[Set[str]] = frozenset({"hvp", "param_grads"})

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape."""
        flow = statistics.gradient_flow(self.temperature)
        return over_weights(group, statistics, lambda name, weight: weight * flow[name])


def over_weights(
    group: Group,
    statistics: Statistics,
    entries: Callable[[str, Tensor], Tensor],
    roles: Container[str] = ("consumer",),
) -> Tensor:
    """Sums of `entries(name, weight)` over the weights that each unit has in these roles; without
    any, the mean of the sums over each of the producers, or else over what there is. `group.shape`.

    Buffers and frozen integer weights have no gradient and do not count. NotApplicableError if
    nothing is left.
    """
    able = statistics.param_grads()
    for chosen, mean in (
        (roles, False),
        *(({role}, True) for role in ("producer", "norm", "bias")),
    ):
        members = [m for m in group.members if m.role in chosen and m.parameter in able]
        if members:
            sums = [
                m.reduce(entries(m.parameter, statistics.parameters[m.parameter].double()), group)
                for m in members
            ]
            total = torch.stack(sums).sum(0)
            return total / len(members) if mean else total
    raise NotApplicableError("none of its parameters has a gradient")
