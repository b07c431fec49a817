"""Budgets: what the pruned network may cost, and how many steps it takes to get there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fxprune.allocation.scopes import Steps
from fxprune.analysis import Analysis
from fxprune.costs import CostModel, cost_model
from fxprune.costs.latency import Latencies, LatencyModel
from fxprune.errors import PlanError
from fxprune.plans.base import short
from fxprune.ranking import removal_order

Amount = int | float


@dataclass(frozen=True)
class Budget:
    """What the pruned network may cost; several at once are all met.

    A float in (0, 1] is a fraction of what the dense network costs, an int an absolute number: MACs
    and bytes for one sample. See `fxprune.cost` for what is counted.

    macs               multiply-accumulates
    params             parameter entries
    activation_memory  bytes of all nodes' results
    latency            as a float only: fraction of the time that the dense network takes
    latency_seconds    seconds for the example batch

    Raises PlanError for other values, and if there is no budget at all.
    """

    macs: Amount | None = None
    params: Amount | None = None
    activation_memory: Amount | None = None
    latency: float | None = None
    latency_seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.given:
            names = ", ".join(field.name for field in fields(self))
            raise PlanError(f"A budget limits at least one of {names}: Budget(macs=0.5).")
        for name, amount in self.given.items():
            _check(name, amount)

    @property
    def given(self) -> Mapping[str, Amount]:
        """The budgets by name."""
        amounts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: amount for name, amount in amounts.items() if amount is not None}

    @property
    def needs_latencies(self) -> bool:
        """True if it limits a time, so that measured times are needed."""
        return self.latency is not None or self.latency_seconds is not None

    def __str__(self) -> str:
        return ", ".join(f"{name}={amount}" for name, amount in self.given.items())


def _check(name: str, amount: Any) -> None:
    if type(amount) not in (int, float):
        raise PlanError(
            f"The budget {name} must be a float, a fraction of the dense cost, or an int, an "
            f"absolute number; got {short(amount)}, a {type(amount).__name__}."
        )
    if name == "latency_seconds":
        if not 0 < amount < math.inf:
            raise PlanError(f"The budget {name} must be above 0 seconds; got {short(amount)}.")
    elif isinstance(amount, float) and not 0 < amount <= 1:
        raise PlanError(
            f"The budget {name} is a float and therefore a fraction of the dense cost, in (0, 1]; "
            f"got {short(amount)}. An absolute number is an int."
        )
    elif name == "latency" and isinstance(amount, int):
        raise PlanError(
            f"The budget latency is a fraction of the dense time, a float in (0, 1]; got {amount}. "
            "For an absolute time use latency_seconds=."
        )
    elif isinstance(amount, int) and amount < 1:
        raise PlanError(f"The budget {name} must be at least 1; got {short(amount)}.")


_QUANTITIES: Mapping[str, str] = MappingProxyType(
    {"macs": "macs", "params": "parameters", "activation_memory": "activation_memory"}
)
_PER_SAMPLE = frozenset({"macs", "activation_memory"})


@dataclass(frozen=True)
class Target:
    """One budget as a limit on a function of the widths, for the example batch."""

    name: str
    amount: Amount
    cost: Callable[[Tensor], float]
    dense: float
    limit: float
    allowed: str  # the limit as text, rounded down
    shown: Callable[[float], str]  # a cost as text, rounded up

    def met(self, widths: Tensor) -> bool:
        """True if the network costs no more than it may at these widths."""
        return self.cost(widths) <= self.limit


def targets(budget: Budget, model: CostModel, latencies: Latencies | None) -> list[Target]:
    """The limits that a budget sets. Raises PlanError if it needs latencies and there are none."""
    dense = torch.tensor(model.widths(None))
    result = []
    for name, amount in budget.given.items():
        if name not in _QUANTITIES:
            result.append(_latency_target(name, amount, model, latencies))
            continue
        cost = model.compiled[_QUANTITIES[name]].at
        before = cost(dense)
        samples = model.batch if name in _PER_SAMPLE else 1
        if isinstance(amount, float):
            limit = math.floor(Fraction(amount) * before)
        else:
            limit = amount * samples
        result.append(
            Target(name, amount, cost, before, limit, f"{limit // samples:,}", _of(samples))
        )
    return result


def _latency_target(
    name: str, amount: Amount, model: CostModel, latencies: Latencies | None
) -> Target:
    if latencies is None:
        raise PlanError(
            f"The budget {name}={amount} needs times measured on your device: pass latencies="
            "fxprune.measure_latencies(analysis, example_inputs), or use fxprune.prune, which "
            "measures them."
        )
    limit = amount if name == "latency_seconds" else amount * latencies.dense
    seconds = LatencyModel(model, latencies).at
    return Target(
        name, amount, seconds, latencies.dense, limit, _milliseconds(limit), _milliseconds
    )


def spread(
    budget: Budget,
    analysis: Analysis,
    ratios: Callable[[float], Sequence[float]],
    latencies: Latencies | None = None,
) -> list[Budget]:
    """A budget for each round, the last one that of the end.

    ratios  fraction of the dense cost that is left in the end → those after each round
    """
    rows = {}
    for target in targets(budget, cost_model(analysis), latencies):
        keep = min(1.0, target.limit / target.dense)
        factors = [ratio / keep for ratio in ratios(keep)[:-1]]
        rows[target.name] = [*(_scaled(target, factor) for factor in factors), target.amount]
    return [
        Budget(**dict(zip(rows, amounts, strict=True)))
        for amounts in zip(*rows.values(), strict=True)
    ]


def _scaled(target: Target, factor: float) -> Amount:
    if target.name == "latency_seconds":
        return target.amount * factor
    if isinstance(target.amount, int):
        return max(1, int(target.amount * factor))
    return min(1.0, target.amount * factor)


def _of(samples: int) -> Callable[[float], str]:
    """Writes the share of one sample of an amount for so many."""
    return lambda amount: f"{-(-int(amount) // samples):,}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4g} ms"


class Removal:
    """The widths of an analysed graph, as units go in a given order.

    names   the groups that steps are about
    scores  group name → scores, which say the order of its units
    """

    def __init__(
        self, model: CostModel, names: Sequence[str], scores: Mapping[str, Tensor]
    ) -> None:
        self._steps_of = {name: number for number, name in enumerate(names)}
        self._dense = torch.tensor(model.widths(None))
        self._whole: list[tuple[int, int]] = []
        self._partial: list[tuple[int, int, Tensor]] = []
        for number, width in enumerate(model.sizes.widths):
            group = self._steps_of.get(width.group)
            if group is None:
                continue
            if width.units is None:
                self._whole.append((number, group))
            else:  # of these units, so many have gone when 0, 1, 2, … of the group have
                order = removal_order(scores[width.group]).reshape(-1)
                own = torch.isin(order, torch.tensor(sorted(width.units)))
                gone = torch.cat([torch.zeros(1, dtype=torch.int64), own.cumsum(0)])
                self._partial.append((number, group, gone))
        self._at = torch.tensor([number for number, _ in self._whole], dtype=torch.int64)
        self._of = torch.tensor([group for _, group in self._whole], dtype=torch.int64)

    def widths(self, counts: Tensor) -> Tensor:
        """All widths when each group has lost that many units."""
        widths = self._dense.clone()
        widths[self._at] -= counts[self._of]
        for number, group, gone in self._partial:
            widths[number] -= gone[counts[group]]
        return widths


def steps_to_meet(
    budget: Budget,
    analysis: Any,
    steps: Steps,
    fixed: Tensor,
    names: Sequence[str],
    scores: Mapping[str, Tensor],
    latencies: Latencies | None = None,
) -> int:
    """The fewest steps after which all budgets are met.

    fixed      how many units each group loses before any step
    names      the groups, by their numbers in `steps`
    latencies  measured times, for budgets of latency

    Raises PlanError if even all steps are not enough.
    """
    if not isinstance(analysis, Analysis):
        raise PlanError("A budget needs the analysis that fxprune.analyze returns, to know costs.")
    model = cost_model(analysis)
    removal = Removal(model, names, scores)
    limits = targets(budget, model, latencies)

    def met(count: int) -> bool:
        widths = removal.widths(fixed + steps.counts(count, len(names)))
        return all(target.met(widths) for target in limits)

    low, high = 0, len(steps)
    if not met(high):
        least = removal.widths(fixed + steps.counts(high, len(names)))
        raise PlanError(_unreachable(limits, least))
    while low < high:  # costs only fall, so the steps that meet the budget are a tail
        middle = (low + high) // 2
        low, high = (low, middle) if met(middle) else (middle + 1, high)
    return high


def _unreachable(limits: Sequence[Target], widths: Tensor) -> str:
    lines = []
    for target in limits:
        least = target.cost(widths)
        if least > target.limit:
            share = f"{least / target.dense:.1%} of the dense {target.shown(target.dense)}"
            lines.append(
                f"The budget {target.name}={target.amount} allows {target.allowed}, and the "
                f"smallest reachable is {target.shown(least)} ({share})"
            )
    return (
        "; ".join(lines) + ". Raise the budget, relax limits=, round_to= or ignore=, or let more "
        "groups be cut with groups=: of nested groups only the innermost are by default."
    )
