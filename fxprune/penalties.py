"""Penalties that make whole units small while a network is trained.

A penalty is made once, for groups of an analysis, and used in the training loop, on the traced
graph or on any module with the same parameter names. `GroupNorm`, `GroupLasso` and `GrowingL2`
return a scalar to add to the loss; `GroupLasso.proximal_step` and `Slimming.add_gradients` change
the module in place.

    lasso = GroupLasso(analysis.groups, 1e-4)
    (loss(model(x), y) + lasso(model)).backward()

A unit's entries are those of its producers and consumers, without biases and norms, as for the
criterion `Norm`. An entry that two groups share, as a weight between two prunable layers, is
penalised by both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import NoReturn

import torch
from torch import Tensor, nn

from fxprune.analysis import Analysis
from fxprune.criteria.norms import not_yet_counted, weights
from fxprune.errors import AnalysisError
from fxprune.groups import Group, Member
from fxprune.plans import PruningPlan
from fxprune.roles import batch_norm_scales

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class GroupNorm:
    """strength * sum over units of |θ_k|_p: order 1, 2, or inf for the largest entry."""

    groups: tuple[Group, ...]
    strength: float
    order: float = 2

    def __call__(self, module: nn.Module) -> Tensor:
        """The penalty, a scalar that can be differentiated (0 at a unit that is zero)."""
        parameters = _parameters(module)
        parts = [_norms(group, parameters, self.order).sum() for group in self.groups]
        return self.strength * torch.stack(parts).sum()


@dataclass(frozen=True)
class GroupLasso:
    """strength * sum over units of sqrt(d) |θ_k|_2, d the number of a unit's entries."""

    groups: tuple[Group, ...]
    strength: float

    def __call__(self, module: nn.Module) -> Tensor:
        """The penalty, a scalar that can be differentiated (0 at a unit that is zero)."""
        parameters = _parameters(module)
        parts = [
            (_roots(group, parameters) * _norms(group, parameters, 2)).sum()
            for group in self.groups
        ]
        return self.strength * torch.stack(parts).sum()

    @torch.no_grad()
    def proximal_step(self, module: nn.Module, rate: float) -> None:
        """θ_k times max(0, 1 - rate * strength * sqrt(d) / |θ_k|): after the optimizer's step.

        Solves min over x of |x - θ|²/2 + rate * penalty(x) for one group, so that units become
        exactly zero; `rate` is the learning rate. Groups that share entries are taken in turn.
        """
        parameters = _parameters(module)
        for group in self.groups:
            norms = _norms(group, parameters, 2)
            threshold = rate * self.strength * _roots(group, parameters)
            factors = torch.where(norms > threshold, 1 - threshold / norms, 0)
            _scale(group, parameters, factors)


@dataclass(frozen=True)
class GrowingL2:
    """Half a growing strength times |θ_k|² over the units that a plan removes (GReg-1).

    The strength grows by `step` every `every` iterations up to `ceiling`, so that what is to go has
    become small by the time it goes.
    """

    plan: PruningPlan
    step: float = 1e-4
    every: int = 10
    ceiling: float = 1.0

    def strength(self, iteration: int) -> float:
        """The strength at an iteration, counted from 0."""
        return min(self.ceiling, self.step * (iteration // self.every))

    def __call__(self, module: nn.Module, iteration: int) -> Tensor:
        """The penalty, a scalar that can be differentiated."""
        parameters = _parameters(module)
        parts = [torch.zeros((), dtype=torch.float32)]
        for name in self.plan.kept_units:
            group = self.plan.group(name)
            squares = _sums(group, parameters, torch.square)
            removed = ~self.plan.kept_mask(group).to(squares.device)
            parts.append((squares * removed).sum())
        total = sum(parts[1:], parts[0].to(parts[-1].device))
        return self.strength(iteration) / 2 * total


@dataclass(frozen=True)
class Slimming:
    """Network Slimming: an L1 penalty on the scales of batch normalisations, as a sub-gradient."""

    scales: tuple[str, ...]
    strength: float = 1e-4

    @classmethod
    def of(cls, analysis: Analysis, strength: float = 1e-4) -> Slimming:
        """The penalty on all scales that belong to a prunable group of an analysis."""
        known = batch_norm_scales(analysis.propagation)
        named = {member.parameter for group in analysis.groups for member in group.members}
        if not known & named:
            raise AnalysisError(
                "Network Slimming needs batch normalisations with a scale in prunable groups; this "
                "graph has none. Use GroupLasso or GroupNorm."
            )
        return cls(tuple(sorted(known & named)), strength)

    @torch.no_grad()
    def add_gradients(self, module: nn.Module) -> None:
        """γ.grad += strength * sign(γ): between `backward` and the optimizer's step."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for name in self.scales:
            gamma = parameters[name]
            push = self.strength * gamma.sign()
            gamma.grad = push if gamma.grad is None else gamma.grad.add_(push)


def _parameters(module: nn.Module) -> Parameters:
    return dict(module.named_parameters(remove_duplicate=False))


def _members(group: Group, parameters: Parameters) -> Iterator[tuple[Tensor, list[Member]]]:
    """Each parameter that holds weights of the group, with its members; buffers are skipped."""
    mine = sorted(weights(group), key=_name)
    for name, members in groupby(mine, key=_name):
        if name in parameters:
            yield parameters[name], list(members)


def _name(member: Member) -> str:
    return member.parameter


def _sums(group: Group, parameters: Parameters, power: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of `power` of every entry of each unit, once: of the group's shape."""
    total: Tensor | None = None
    for parameter, members in _members(group, parameters):
        for index, member in enumerate(members):
            fresh = not_yet_counted(group, members[:index], member, parameter.dim())
            part = member.reduce(power(parameter) * fresh.to(parameter.device), group)
            total = part if total is None else total + part
    return total if total is not None else _nothing(group)


def _norms(group: Group, parameters: Parameters, order: float) -> Tensor:
    """The norm of each unit's entries; its gradient is 0 where it is 0."""
    if math.isinf(order):
        return _largest(group, parameters)
    sums = _sums(group, parameters, lambda w: w.abs() ** order)
    positive = sums > 0
    return torch.where(positive, torch.where(positive, sums, 1) ** (1 / order), 0)


def _largest(group: Group, parameters: Parameters) -> Tensor:
    parts = [
        member.entries(parameter.abs(), group).amax(-1)
        for parameter, members in _members(group, parameters)
        for member in members
    ]
    return torch.stack(parts).amax(0) if parts else _nothing(group)


def _nothing(group: Group) -> NoReturn:
    raise AnalysisError(f"group {group.name!r} has no weights among the module's parameters.")


def _roots(group: Group, parameters: Parameters) -> Tensor:
    """The square root of the number of entries of each unit."""
    with torch.no_grad():
        return _sums(group, parameters, torch.ones_like).sqrt()


def _scale(group: Group, parameters: Parameters, factors: Tensor) -> None:
    """Multiply every entry of each unit, once. An entry of two units takes both factors."""
    for parameter, members in _members(group, parameters):
        for index, member in enumerate(members):
            rank = parameter.dim()
            fresh = not_yet_counted(group, members[:index], member, rank).to(parameter.device)
            laid = member.spread(factors, group, fill=1, rank=rank)
            parameter.mul_(torch.where(fresh, laid, 1))
