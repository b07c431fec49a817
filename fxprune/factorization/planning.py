"""`plan_factorization`: which directions of which layers stay."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import torch

from fxprune.allocation.budgets import Budget
from fxprune.analysis import Analysis, analyze
from fxprune.costs import cost_model
from fxprune.costs.factors import FACTOR_COSTS
from fxprune.errors import PlanError
from fxprune.factorization.bases import Rotated, refined, squared_error
from fxprune.factorization.eigendamage import Layers, eigenbases, with_moments
from fxprune.factorization.layers import FactorLayer, factor_layers
from fxprune.factorization.ranks import DENSE, Choice, Limit, Prospect, by_energy
from fxprune.factorization.spreading import SPREADS
from fxprune.plans import Bases, FactorizationPlan
from fxprune.plans.base import short
from fxprune.statistics import Labels, Loss, Statistics

Finish: TypeAlias = Callable[[FactorLayer, Rotated, Choice], Bases]


def leading(layer: FactorLayer, rotated: Rotated, choice: Choice) -> Bases:
    """The first directions of each side."""
    rows, columns = choice
    return Bases(
        rotated.inputs[:, :columns] if columns else None,
        rotated.outputs[:, :rows] if rows else None,
    )


def iterated(layer: FactorLayer, rotated: Rotated, choice: Choice) -> Bases:
    """Where both sides lose directions, those of the best Tucker-2 approximation of these ranks."""
    if not all(choice):
        return leading(layer, rotated, choice)
    return Bases(*refined(layer.weight, rotated, *choice))


@dataclass(frozen=True)
class Method:
    """How bases are found.

    rotate      the layers' weights in their bases, of what the current bases leave of them
    finish      the bases for the ranks that were chosen
    needs_data  whether `rotate` reads statistics
    """

    rotate: Callable[[Layers, Any, Mapping[str, Bases], float], dict[str, Rotated]]
    finish: Finish
    needs_data: bool


def _decomposed(both: bool) -> Callable[..., dict[str, Rotated]]:
    return lambda layers, *_: {n: squared_error(x.weight, both) for n, x in layers.items()}


DAMPING = 1e-3
"""By default; see `fxprune.factorization.eigendamage`."""

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "svd": Method(_decomposed(False), leading, False),
        "tucker": Method(_decomposed(True), iterated, False),
        "eigendamage": Method(eigenbases, leading, True),
        "eigendamage_ekfac": Method(with_moments, leading, True),
    }
)
"""Name → method of `plan_factorization`."""


def plan_factorization(
    analysis: Analysis,
    method: str = "eigendamage",
    data: Iterable[Any] | Statistics | None = None,
    loss: Loss | None = None,
    labels: Labels = "model",
    *,
    budget: Budget | None = None,
    energy: float | None = None,
    spread: str = "price",
    steps: int = 1,
    damping: float = DAMPING,
    ignore: str | Iterable[str] = (),
) -> FactorizationPlan:
    """Choose the bases and the ranks of an analysed graph's layers; see `factorize`.

    Raises PlanError for arguments that make no sense, for a budget that cannot be met, and for data
    that are missing or not needed.
    """
    chosen = _checked(METHODS, method, "method")
    _check_goal(budget, energy, steps, chosen)
    if not (math.isfinite(damping) and damping >= 0):
        raise PlanError(f"damping must be a finite number of at least 0; got {damping!r}.")
    allot = _checked(SPREADS, spread, "spread")
    measure = _measurement(chosen, data, loss, labels, steps)
    layers, _ = candidates(analysis, ignore)
    limits = [] if budget is None else _limits(analysis, layers, budget)
    current: dict[str, Bases] = {}
    for step in range(1, steps + 1):
        statistics = measure(_projected(analysis, current) if current else analysis)
        rotated = chosen.rotate(layers, statistics, current, damping)
        prospects = {name: Prospect(rotated[name], layers[name].sizes) for name in layers}
        if energy is None:
            choices = allot(prospects, [_towards(limit, step / steps) for limit in limits])
        else:
            choices = by_energy(prospects, energy)
        current = {
            name: chosen.finish(layers[name], prospects[name].rotated, choice)
            for name, choice in choices.items()
            if choice != DENSE
        }
    goal = None if budget is None else str(budget)
    notes = [f"Kronecker factors are damped by {damping:g}"] * chosen.needs_data
    notes += [f"The budget was reached in {steps} steps"] * (steps > 1)
    return FactorizationPlan.build(analysis, current, method, goal, energy, tuple(notes))


def candidates(
    analysis: Analysis, ignore: str | Iterable[str]
) -> tuple[dict[str, FactorLayer], dict[str, str]]:
    """The layers that may become factors, and why others of their kinds stay.

    Raises PlanError if a pattern matches no linear layer or convolution.
    """
    layers, left = factor_layers(analysis)
    for pattern in [ignore] if isinstance(ignore, str) else ignore:
        matched = [n for n in layers if _matches(pattern, n)]
        if not matched and not any(_matches(pattern, n) for n in left):
            raise PlanError(
                f"The pattern {short(pattern)} names no linear layer or convolution of the graph."
            )
        left |= dict.fromkeys(matched, "ignored")
        layers = {name: layer for name, layer in layers.items() if name not in matched}
    return layers, left


def _matches(pattern: str, name: str) -> bool:
    """True for a layer and for a module that it lies in."""
    while name:
        if fnmatchcase(name, pattern):
            return True
        name = name.rpartition(".")[0]
    return False


_T = TypeVar("_T")


def _checked(table: Mapping[str, _T], name: object, what: str) -> _T:
    if not isinstance(name, str) or name not in table:
        raise PlanError(f"{what} is one of {', '.join(map(repr, table))}; got {short(name)}.")
    return table[name]


def _check_goal(budget: Budget | None, energy: float | None, steps: int, method: Method) -> None:
    if (budget is None) == (energy is None):
        raise PlanError("Give a budget, such as fxprune.Budget(macs=0.5), or an energy: not both.")
    if energy is not None and not 0 < energy <= 1:
        raise PlanError(f"energy is the share that each layer keeps, in (0, 1]; got {energy!r}.")
    if budget is not None and budget.given.keys() - FACTOR_COSTS.keys():
        raise PlanError(
            "A factorisation meets budgets of macs and params, and adds activations: "
            f"it does not plan for {budget}."
        )
    if type(steps) is not int or steps < 1:
        raise PlanError(f"steps must be an integer of at least 1; got {short(steps)}.")
    if steps > 1 and (energy is not None or not method.needs_data):
        raise PlanError("Several steps need a budget, and a method that reads data in each step.")


Measure: TypeAlias = Callable[[Analysis], Statistics | None]


def _measurement(
    method: Method,
    data: Iterable[Any] | Statistics | None,
    loss: Loss | None,
    labels: Labels,
    steps: int,
) -> Measure:
    """What gives the statistics of a network that a method needs."""
    if not method.needs_data:
        if data is not None:
            raise PlanError("This method reads the weights alone: leave data= out.")
        return lambda _: None
    if data is None:
        raise PlanError("This method needs data=, batches as for fxprune.Statistics, and a loss=.")
    if isinstance(data, Statistics):
        if steps > 1:
            raise PlanError("Statistics are of one network: give the data themselves for steps.")
        return lambda _: data
    kept = tuple(data) if isinstance(data, Iterator) else data
    return lambda analysis: Statistics(analysis, kept, loss, labels)


def _limits(
    analysis: Analysis, layers: Mapping[str, FactorLayer], budget: Budget
) -> Sequence[Limit]:
    model = cost_model(analysis)
    total = model.at(model.widths(None))
    before = {"macs": total.macs, "params": total.parameters}
    none = torch.tensor(0)
    found = []
    for quantity, amount in budget.given.items():
        dense = before[quantity]
        ours = sum(int(FACTOR_COSTS[quantity](x.sizes, none, none)) for x in layers.values())
        samples = model.batch if quantity == "macs" else 1
        fraction = isinstance(amount, float)
        limit = math.floor(Fraction(amount) * dense) if fraction else int(amount) * samples
        found.append(Limit(quantity, amount, dense, limit, dense - ours, samples))
    return found


def _towards(limit: Limit, share: float) -> Limit:
    """The limit of a step: the cost falls by equal factors."""
    between = math.floor(limit.dense * (limit.limit / limit.dense) ** share)
    return replace(limit, limit=max(limit.limit, between))


@torch.no_grad()
def _projected(analysis: Analysis, current: Mapping[str, Bases]) -> Analysis:
    """The network as bases leave it, at full size."""
    module = copy.deepcopy(analysis.traced)
    for name, bases in current.items():
        weight = module.get_parameter(f"{name}.weight")
        weight.copy_(bases.project(weight))
    return analyze(module)
