"""How a budget spreads over layers: by one price of cost, or by one threshold on saliencies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from fxprune.factorization.ranks import Choice, Limit, Options, Prospect, check_reached, options

Spread: TypeAlias = Callable[[Mapping[str, Prospect], Sequence[Limit]], dict[str, Choice]]


def by_price(prospects: Mapping[str, Prospect], limits: Sequence[Limit]) -> dict[str, Choice]:
    """One threshold on the loss per cost saved: the least loss for the budget.

    Each layer walks along the lower convex hull of its options; the steps of all layers are taken
    in order of their loss per cost until every budget is met. Then layers get back what fits, so
    that no layer can lose less within the budget. With several budgets the cost that counts is the
    sum of the shares of the dense network's.
    """
    found = {name: options(p, [lim.quantity for lim in limits]) for name, p in prospects.items()}
    prices = {name: _prices(o, limits) for name, o in found.items()}
    steps: list[tuple[float, str, int]] = []
    for name, o in found.items():
        loss, price = o.loss.tolist(), prices[name].tolist()
        for before, after in pairwise(_hull(loss, price)):
            steps.append((_slope(loss, price, before, after), name, after))
    steps.sort(key=lambda step: step[0])  # stable: a layer's own steps stay in order
    places = {name: len(o) - 1 for name, o in found.items()}
    costs = _Costs(found, limits)
    for _, name, place in steps:
        if costs.met(places):
            break
        places[name] = place
    check_reached(limits, costs.total(places))
    _give_back(found, prices, costs, places)
    return {name: found[name].choice(place) for name, place in places.items()}


class _Costs:
    """What layers cost together, by their places among their options."""

    def __init__(self, found: Mapping[str, Options], limits: Sequence[Limit]) -> None:
        self.limits = limits
        self.of = {
            name: torch.stack([o.costs[limit.quantity] for limit in limits])
            for name, o in found.items()
        }
        """int64 [limits, options]"""
        self._most = torch.tensor([limit.most for limit in limits])

    def total(self, places: Mapping[str, int]) -> list[int]:
        """Per budget what all layers cost."""
        return [sum(int(self.of[n][i, p]) for n, p in places.items()) for i in self._indices]

    def met(self, places: Mapping[str, int]) -> bool:
        """True if all budgets are met."""
        return all(t <= lim.most for t, lim in zip(self.total(places), self.limits, strict=True))

    def fitting(self, places: Mapping[str, int], name: str, total: Sequence[int]) -> Tensor:
        """Bool [options]: those to which a layer can move within the budgets."""
        own = self.of[name]
        room = self._most - torch.tensor(total) + own[:, places[name]]
        return (own <= room[:, None]).all(0)

    @property
    def _indices(self) -> range:
        return range(len(self.limits))


def _prices(o: Options, limits: Sequence[Limit]) -> Tensor:
    parts = [o.costs[limit.quantity].double() / limit.dense for limit in limits]
    return torch.stack(parts).sum(0)


def _hull(loss: Sequence[float], price: Sequence[float]) -> list[int]:
    """The places on the lower convex hull of (price, loss), from the dense layer down."""
    hull: list[int] = []
    for place in sorted(range(len(loss)), key=lambda i: (-price[i], loss[i])):
        if hull and price[place] >= price[hull[-1]]:
            continue
        while len(hull) > 1 and (
            _slope(loss, price, hull[-2], hull[-1]) >= _slope(loss, price, hull[-2], place)
        ):
            hull.pop()
        hull.append(place)
    return hull


def _slope(loss: Sequence[float], price: Sequence[float], before: int, after: int) -> float:
    return (loss[after] - loss[before]) / (price[before] - price[after])


def _give_back(
    found: Mapping[str, Options],
    prices: Mapping[str, Tensor],
    costs: _Costs,
    places: dict[str, int],
) -> None:
    """Move layers to options of less loss, most loss per cost first, while the budgets allow."""
    while True:
        best = (0.0, "", 0)
        total = costs.total(places)
        for name, o in found.items():
            place = places[name]
            gain = o.loss[place] - o.loss
            paid = (prices[name] - prices[name][place]).clamp_min(1e-300)
            worth = torch.where(costs.fitting(places, name, total), gain / paid, 0.0)
            value, other = worth.max(0)
            best = max(best, (float(value), name, int(other)))
        if best[0] <= 0:
            return
        places[best[1]] = best[2]


def by_threshold(prospects: Mapping[str, Prospect], limits: Sequence[Limit]) -> dict[str, Choice]:
    """One threshold on the sums of saliencies over rows and over columns, of all layers.

    Rows and columns go in ascending order of their sums, until every budget is met; each layer is
    as it costs least with what stays, and dense as long as that is cheapest. One row and one column
    stay in every layer.
    """
    price = {limit.quantity: 1 / limit.dense for limit in limits}
    names = list(prospects)
    scores, owners, sides = [], [], []
    for number, prospect in enumerate(prospects.values()):
        for side in (0, 1):  # rows, columns: descending, and the first stays
            sums = prospect.rotated.saliency.sum(1 - side)[1:]
            scores.append(sums)
            owners.append(torch.full((len(sums),), number))
            sides.append(torch.full((len(sums),), side))
    order = torch.cat(scores).argsort(stable=True) if scores else torch.zeros(0, dtype=torch.int64)
    slots = (2 * torch.cat(owners) + torch.cat(sides))[order] if scores else order

    def after(count: int) -> dict[str, Choice]:
        gone = torch.bincount(slots[:count], minlength=2 * len(names)).reshape(-1, 2)
        chosen = {}
        for name, lost in zip(names, gone.tolist(), strict=True):
            rows, columns = prospects[name].rotated.saliency.shape
            chosen[name] = prospects[name].cheapest(rows - lost[0], columns - lost[1], price)
        return chosen

    def total(count: int) -> list[int]:
        chosen = after(count).items()
        return [sum(prospects[n].cost(lim.quantity, c) for n, c in chosen) for lim in limits]

    def met(count: int) -> bool:
        return all(t <= lim.most for t, lim in zip(total(count), limits, strict=True))

    low, high = 0, len(order)
    check_reached(limits, total(high))
    while low < high:  # costs only fall, so the counts that meet the budget are a tail
        middle = (low + high) // 2
        low, high = (low, middle) if met(middle) else (middle + 1, high)
    return after(high)


SPREADS: Mapping[str, Spread] = MappingProxyType({"price": by_price, "threshold": by_threshold})
"""Name → how the budget spreads."""
