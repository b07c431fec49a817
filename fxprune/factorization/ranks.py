"""Ranks: what a layer can become, and what that costs and loses.

A choice is a pair (rows, columns) of ranks; 0 stands for a side that stays as it is. Only choices
that cost less than the dense layer are offered, and the dense layer itself, (0, 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from fxprune.costs.factors import FACTOR_COSTS, LayerSizes
from fxprune.errors import PlanError
from fxprune.factorization.bases import Rotated

Choice: TypeAlias = tuple[int, int]
"""Rows and columns that stay; 0 where all do and the side has no 1×1 of its own."""

DENSE: Choice = (0, 0)


@dataclass(frozen=True)
class Limit:
    """One budget: what the network may cost, and what of it is not up to the ranks.

    quantity  "macs" or "params"
    amount    as the budget says it
    dense     what the dense network costs, for the example batch
    limit     what the network may cost, for the example batch
    rest      what all but the layers costs
    samples   the costs are those of so many
    """

    quantity: str
    amount: int | float
    dense: int
    limit: int
    rest: int
    samples: int = 1

    @property
    def most(self) -> int:
        """What the layers may cost; negative if everything else costs too much already."""
        return self.limit - self.rest


@dataclass(frozen=True, eq=False)
class Prospect:
    """A layer that can become factors: its weight in its bases, and its sizes."""

    rotated: Rotated
    sizes: LayerSizes

    def cost(self, quantity: str, choice: Choice) -> int:
        """The cost of a choice, for the example batch."""
        rows, columns = (torch.tensor(rank) for rank in choice)
        return int(FACTOR_COSTS[quantity](self.sizes, rows, columns))

    def loss(self, choice: Choice) -> float:
        """What the saliencies predict that a choice loses."""
        if choice == DENSE:
            return 0.0
        rows, columns = (rank or None for rank in choice)
        saliency = self.rotated.saliency
        return max(0.0, float(saliency.sum() - saliency[:rows, :columns].sum()))

    def cheapest(self, rows: int, columns: int, price: Mapping[str, float]) -> Choice:
        """The cheapest way to keep at least so many rows and columns; of equals the simplest."""
        ways = [DENSE, (rows, 0), (0, columns)]
        if self.rotated.both and not self.sizes.pointwise:
            ways.append((rows, columns))
        return min(ways, key=lambda way: sum(self.cost(q, way) * p for q, p in price.items()))


@dataclass(frozen=True, eq=False)
class Options:
    """The choices of one layer that no other beats in both loss and cost, the cheapest first.

    rows, columns  int64 [n]; the last is the dense layer
    loss           float64 [n], descending: what the saliencies predict
    costs          per quantity int64 [n], for the example batch; the first ascends
    """

    rows: Tensor
    columns: Tensor
    loss: Tensor
    costs: Mapping[str, Tensor]

    def choice(self, place: int) -> Choice:
        """The ranks at a place."""
        return int(self.rows[place]), int(self.columns[place])

    def __len__(self) -> int:
        return len(self.loss)


def options(prospect: Prospect, quantities: Sequence[str]) -> Options:
    """What a layer can be, in the order of the first of the quantities."""
    rows, columns, loss = _all_choices(prospect)
    costs = {name: FACTOR_COSTS[name](prospect.sizes, rows, columns) for name in quantities}
    cheaper = torch.stack([cost < cost[-1] for cost in costs.values()]).all(0)
    cheaper[-1] = True
    first = costs[quantities[0]]
    # Of equal costs the smallest loss comes first; what follows at a higher cost must lose less.
    order = loss.argsort(stable=True)
    order = order[first[order].argsort(stable=True)]
    order = order[cheaper[order]]
    ordered = loss[order]
    better = torch.ones(len(order), dtype=torch.bool)
    better[1:] = ordered[1:] < ordered.cummin(0).values[:-1]
    better[-1] = True  # the dense layer, which costs more than all others
    chosen = order[better]
    picked = {name: cost[chosen] for name, cost in costs.items()}
    return Options(rows[chosen], columns[chosen], loss[chosen], MappingProxyType(picked))


def _all_choices(prospect: Prospect) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and loss of every choice; the dense layer is the last."""
    kept = prospect.rotated.saliency.cumsum(0).cumsum(1)
    most_rows, most_columns = kept.shape
    some_rows, some_columns = torch.arange(1, most_rows + 1), torch.arange(1, most_columns + 1)
    none = torch.zeros(1, dtype=torch.int64)
    rows = [some_rows, none.expand(most_columns)]
    columns = [none.expand(most_rows), some_columns]
    left = [kept[:, -1], kept[-1]]
    if prospect.rotated.both and not prospect.sizes.pointwise:
        grid = torch.meshgrid(some_rows, some_columns, indexing="ij")
        rows, columns = [*rows, grid[0].flatten()], [*columns, grid[1].flatten()]
        left.append(kept.flatten())
    loss = torch.cat([(kept[-1, -1] - torch.cat(left)).clamp_min(0), kept.new_zeros(1)])
    return torch.cat([*rows, none]), torch.cat([*columns, none]), loss


def by_energy(prospects: Mapping[str, Prospect], energy: float) -> dict[str, Choice]:
    """The choice of fewest MACs of each layer that keeps that share of its saliency."""
    chosen: dict[str, Choice] = {}
    for name, prospect in prospects.items():
        found = options(prospect, ("macs",))
        total = float(prospect.rotated.saliency.sum())
        place = int((found.loss <= (1 - energy) * total).nonzero()[0, 0])
        chosen[name] = found.choice(place)
    return chosen


def check_reached(limits: Sequence[Limit], costs: Sequence[int]) -> None:
    """Raise PlanError, with the smallest costs that can be reached, if a budget is not met."""
    lines = []
    for limit, cost in zip(limits, costs, strict=True):
        if cost > limit.most:
            least, samples = limit.rest + cost, limit.samples
            lines.append(
                f"The budget {limit.quantity}={limit.amount} allows {limit.limit // samples:,}, "
                f"and the smallest reachable by factorising is {-(-least // samples):,} "
                f"({least / limit.dense:.1%} of the dense {-(-limit.dense // samples):,})"
            )
    if lines:
        raise PlanError(
            "; ".join(lines) + ". Raise the budget, ignore fewer layers, or prune groups, too."
        )
