"""How many units each group loses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from fxprune.allocation.budgets import Budget, steps_to_meet
from fxprune.allocation.limits import Limits, checked_sparsity, share
from fxprune.allocation.normalise import Normaliser
from fxprune.allocation.scopes import Candidate, Scope
from fxprune.allocation.structure import kind_of
from fxprune.costs.latency import Latencies
from fxprune.errors import PlanError
from fxprune.groups import Group
from fxprune.plans import AnalysisLike
from fxprune.plans.base import short
from fxprune.ranking import mean_slots


class Goal:
    """How much goes: a sparsity or a budget. Raises PlanError unless it is one of both."""

    def __init__(self, sparsity: Any, budget: Any, latencies: Latencies | None = None) -> None:
        if budget is not None and not isinstance(budget, Budget):
            raise PlanError(
                f"budget= takes a fxprune.Budget, such as Budget(macs=0.5); got {short(budget)}."
            )
        if sparsity is None and budget is None:
            raise PlanError(
                "How much should go? Pass sparsity=, the fraction of units to remove, such as 0.5, "
                "or budget=, what the result may cost, such as fxprune.Budget(macs=0.5)."
            )
        if sparsity is not None and budget is not None:
            raise PlanError(
                f"A cut has one goal: got sparsity={short(sparsity)} and budget={budget!r}."
            )
        self.budget: Budget | None = budget
        self.latencies = latencies
        self.sparsity = None if sparsity is None else checked_sparsity(sparsity)

    @property
    def text(self) -> str | None:
        """The budget for the record, None without one."""
        return None if self.budget is None else str(self.budget)

    def __str__(self) -> str:
        return f"sparsity {self.sparsity:g}" if self.budget is None else f"budget {self.budget}"


@dataclass(frozen=True)
class Cut:
    """How many units each of `groups` loses, under its limits."""

    analysis: AnalysisLike
    groups: Sequence[Group]
    scores: Mapping[str, Tensor]
    limits: Sequence[Limits]
    normaliser: Normaliser
    scope: Scope
    goal: Goal

    @cached_property
    def counts(self) -> list[int]:
        """Units that go, per group (in each of its contexts)."""
        return self._counts(self.limits)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """The limits that bind: one line per group that would keep another number without any."""
        if all(limits == Limits() for limits in self.limits):
            return ()
        free = self._counts([Limits()] * len(self.groups))
        return tuple(
            f"{group.name} keeps {group.size - count} of {group.size} units instead of "
            f"{group.size - other}: {', '.join(reasons)}"
            for group, limits, count, other in zip(
                self.groups, self.limits, self.counts, free, strict=True
            )
            if count != other
            for reasons in [list(_binding(limits, group.size, other))]
            if reasons
        )

    def _counts(self, limits: Sequence[Limits]) -> list[int]:
        fixed = torch.tensor(
            [_fixed(own, group.size) for own, group in zip(limits, self.groups, strict=True)]
        )
        ranked = [number for number, own in enumerate(limits) if own.sparsity is None]
        candidates = [self._candidate(number, limits[number]) for number in ranked]
        steps = self.scope(candidates, lambda: [self._kind(n) for n in ranked])
        steps = replace(steps, owner=torch.tensor(ranked, dtype=torch.int64)[steps.owner])
        if self.goal.budget is None:
            count = steps.up_to(self.goal.sparsity or 0.0)
        else:
            names = [group.name for group in self.groups]
            ask = (self.goal.budget, self.analysis, steps, fixed, names, self.scores)
            count = steps_to_meet(*ask, self.goal.latencies)
        counts: list[int] = (fixed + steps.counts(count, len(self.groups))).tolist()
        return counts

    def _candidate(self, number: int, limits: Limits) -> Candidate:
        size = self.groups[number].size
        return Candidate(size, limits.widths(size), partial(self._slots, number))

    def _slots(self, number: int) -> Tensor:
        scores = self.scores[self.groups[number].name]
        return mean_slots(self.normaliser(scores.to("cpu", torch.float64)))

    def _kind(self, number: int) -> object:
        return kind_of(self.groups[number], self.analysis)


def _fixed(limits: Limits, size: int) -> int:
    """How many units a group with a sparsity of its own loses."""
    if limits.sparsity is None:
        return 0
    most = share(limits.sparsity, size)
    return max((size - width for width in limits.widths(size) if size - width <= most), default=0)


def _binding(limits: Limits, size: int, count: int) -> Iterable[str]:
    """The limits that losing `count` units would break."""
    left = size - count
    if limits.sparsity is not None:
        yield f"sparsity={limits.sparsity:g}"
    if limits.min_keep is not None and left < limits.min_keep:
        yield f"min_keep={limits.min_keep}"
    if limits.max_sparsity is not None and count > share(limits.max_sparsity, size):
        yield f"max_sparsity={limits.max_sparsity:g}"
    if limits.round_to is not None and left % limits.round_to and count:
        yield f"round_to={limits.round_to}"
