"""What sets of units cost by quadratic forms, and which to remove one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxprune.criteria.quadratic import Quadratic


def by_slot(values: Tensor, slots: Tensor, count: int) -> Tensor:
    """Sums of values by the slot of each, [count]; those of slot -1 count for none."""
    total = values.new_zeros(count + 1)
    return total.index_add_(0, slots.to(values.device) % (count + 1), values)[:-1]


def obd_costs(forms: Sequence[Quadratic], count: int) -> Tensor:
    """What each of `count` slots costs alone: ½ Σ_{i,j in P} metric_ij gram_ij."""
    total = torch.zeros(count, dtype=torch.float64)
    for form in forms:
        for slots, index in form.owned:
            products = _blocks(form.metric, index) * _blocks(form.gram, index)
            total[slots.cpu()] += 0.5 * products.sum((1, 2)).cpu()
    return total


def obs_costs(forms: Sequence[Quadratic], count: int) -> Tensor:
    """What each of `count` slots costs alone, made up for: ½ tr([(metric⁻¹)_PP]⁻¹ gram_PP)."""
    total = torch.zeros(count, dtype=torch.float64)
    for form in forms:
        total += _compensated(form, form.inverse, form.gram, count)
    return total


def obd_cost(forms: Sequence[Quadratic], gone: Tensor) -> float:
    """What a set of slots (bool [count]) costs together."""
    total = 0.0
    for form in forms:
        p = _indices(form, gone)
        total += 0.5 * float((_square(form.metric, p) * _square(form.gram, p)).sum())
    return total


def obs_cost(forms: Sequence[Quadratic], gone: Tensor) -> float:
    """What a set of slots (bool [count]) costs together, made up for by the rest."""
    total = 0.0
    for form in forms:
        p = _indices(form, gone)
        if len(p):
            solved = torch.linalg.solve(_square(form.inverse, p), _square(form.gram, p))
            total += 0.5 * float(solved.diagonal().sum())
    return total


def greedy_obd_costs(forms: Sequence[Quadratic], count: int) -> Tensor:
    """What each slot adds when slots go one by one, each time the one that adds least.

    Ascending in the order of removal, see `_ascending`.
    """
    alone = obd_costs(forms, count)
    # Each slot's row is what it shares with every other one.
    shared = torch.zeros(count, count, dtype=torch.float64)
    for form in forms:
        hot = _membership(form, count)
        shared += (hot.T @ (form.metric * form.gram) @ hot).cpu()
    shared.fill_diagonal_(0)
    left = torch.ones(count, dtype=torch.bool)
    costs = alone.clone()
    order, added = [], []
    for _ in range(count):
        slot = int(torch.where(left, costs, torch.inf).flip(0).argmin())
        slot = count - 1 - slot  # of equal ones the last
        order.append(slot)
        added.append(float(costs[slot]))
        left[slot] = False
        costs += shared[slot]
    return _ascending(order, added)


def greedy_obs_costs(forms: Sequence[Quadratic], count: int) -> Tensor:
    """The same, where the remaining rows make up for each slot before the next one goes.

    A removal is a downdate of the inverse metric and of the gram, of the rank that the slot has.
    """
    state = [(form, form.inverse.clone(), form.gram.clone()) for form in forms]
    left = torch.ones(count, dtype=torch.bool)
    order, added = [], []
    for _ in range(count):
        costs = torch.zeros(count, dtype=torch.float64)
        for form, inverse, gram in state:
            costs += _compensated(form, inverse, gram, count, left)
        slot = count - 1 - int(torch.where(left, costs, torch.inf).flip(0).argmin())
        order.append(slot)
        added.append(float(costs[slot]))
        left[slot] = False
        for form, inverse, gram in state:
            _downdate(inverse, gram, (form.slots == slot).nonzero()[:, 0])
    return _ascending(order, added)


def _downdate(inverse: Tensor, gram: Tensor, p: Tensor) -> None:
    """Take the rows p out, in place: what is left is the inverse of the metric without them, and
    the gram of the rows that made up for them. Rows and columns p become zero.
    """
    if not len(p):
        return
    gain = torch.linalg.solve(_square(inverse, p), inverse[p]).mT  # inverse[:, p] (inverse_pp)⁻¹
    inverse -= gain @ inverse[p]
    gram -= gain @ gram[p]
    gram -= gram[:, p] @ gain.mT
    for matrix in (inverse, gram):
        matrix[p] = 0
        matrix[:, p] = 0


def _compensated(
    form: Quadratic, inverse: Tensor, gram: Tensor, count: int, left: Tensor | None = None
) -> Tensor:
    total = torch.zeros(count, dtype=torch.float64)
    for slots, index in form.owned:
        if left is not None:
            here = left.to(slots.device)[slots]
            slots, index = slots[here], index[here]
        solved = torch.linalg.solve(_blocks(inverse, index), _blocks(gram, index))
        total[slots.cpu()] += 0.5 * solved.diagonal(dim1=1, dim2=2).sum(1).cpu()
    return total


def _ascending(order: Sequence[int], added: Sequence[float]) -> Tensor:
    """Scores whose order is the order of removal: a slot that adds less than one before it gets
    the next larger number.
    """
    scores = torch.zeros(len(order), dtype=torch.float64)
    last = torch.tensor(-torch.inf, dtype=torch.float64)
    for slot, cost in zip(order, added, strict=True):
        above = torch.nextafter(last, torch.tensor(torch.inf, dtype=torch.float64))
        last = torch.maximum(torch.tensor(cost, dtype=torch.float64), above)
        scores[slot] = last
    return scores


def _membership(form: Quadratic, count: int) -> Tensor:
    """[rows, count], 1 where a row belongs to a slot."""
    hot = torch.nn.functional.one_hot(form.slots % (count + 1), count + 1)
    return hot[:, :-1].to(form.metric)


def _indices(form: Quadratic, gone: Tensor) -> Tensor:
    known = torch.cat([gone.to(form.slots.device), gone.new_zeros(1).to(form.slots.device)])
    return known[form.slots].nonzero()[:, 0]


def _square(matrix: Tensor, index: Tensor) -> Tensor:
    return matrix[index[:, None], index]


def _blocks(matrix: Tensor, index: Tensor) -> Tensor:
    """The square blocks at several sets of indices [u, k]: [u, k, k]."""
    return matrix[index[:, :, None], index[:, None, :]]
