"""Fisher pruning of sets: what units cost together, not one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxprune.errors import NotApplicableError
from fxprune.groups import Group
from fxprune.ranking import runs
from fxprune.statistics import Statistics


@dataclass(frozen=True)
class MaskFisher:
    """The change of the loss without a set P of units: -Σ_P ḡ + ½ 1ᵀ_P M 1_P.

    ḡ = mean_n G and M = GᵀG/N over the units of all groups, G the mask gradients: M holds what two
    units do to the same samples. Units go one by one, each time the one that adds the least to the
    change; a score is a unit's place in that order, a multiple of 1/units. Of groups with several
    contexts a unit of each context goes at once. Once a plan says how many units a group loses,
    removed and kept units of a context are swapped for as long as that lowers the change.

    The order takes samples · units² operations. Groups nested in one another are never scored in
    one run.
    """

    requires: ClassVar[Set[str]] = frozenset({"mask_grads"})

    def score_all(self, statistics: Statistics) -> dict[str, Tensor]:
        """Scores of the shape of each group that is read, float64 in (0, 1]."""
        scores: dict[str, Tensor] = {}
        for together, new in runs(_read_groups(statistics)):
            order = _order(together, statistics)
            scores |= {group.name: order[group.name] for group in new}
        return scores

    def select(self, removed: Mapping[str, Tensor], statistics: Statistics) -> dict[str, Tensor]:
        """As many units of each context, after swaps: bool of each group's shape."""
        groups = [group for group in statistics.analysis.groups if group.name in removed]
        chosen = {group.name: removed[group.name].clone() for group in groups}
        tables = {group.name: statistics.mask_grads(group).cpu() for group in groups}
        total = torch.zeros(len(next(iter(tables.values()))), dtype=torch.float64)
        for name, table in tables.items():
            total += table[:, chosen[name]].sum(1)
        improved = bool(groups)
        while improved:
            improved = False
            for group in groups:
                rows = chosen[group.name].reshape(group.contexts, -1)
                columns = tables[group.name].reshape(len(total), group.contexts, -1)
                for context, row in enumerate(rows):
                    improved |= _swap(row, columns[:, context], total)
        return chosen

    def change(self, removed: Mapping[str, Tensor], statistics: Statistics) -> float:
        """-Σ_P ḡ + ½ 1ᵀ_P M 1_P of a set, given as bool of each group's shape."""
        parts = [
            statistics.mask_grads(group)[:, removed[group.name]].sum(1)
            for group in statistics.analysis.groups
            if group.name in removed
        ]
        total = torch.stack(parts).sum(0)
        return float((0.5 * total.square() - total).mean())


def _read_groups(statistics: Statistics) -> list[Group]:
    """The groups that have mask gradients."""
    found = []
    for group in statistics.analysis.groups:
        try:
            statistics.mask_grads(group)
        except NotApplicableError:
            continue
        found.append(group)
    return found


def _order(groups: Sequence[Group], statistics: Statistics) -> dict[str, Tensor]:
    """Places in the order of removal, divided by their number."""
    tables = [statistics.mask_grads(g).cpu().reshape(-1, g.slots) for g in groups]
    joined = torch.cat(tables, 1)
    starts = [0, *torch.tensor([g.slots for g in groups]).cumsum(0).tolist()]
    rise = 0.5 * joined.square().mean(0) - joined.mean(0)  # what one more unit adds
    places = torch.zeros(len(rise), dtype=torch.float64)
    total = sum(group.size for group in groups)
    lowest = [_next(rise, places, g, start) for g, start in zip(groups, starts, strict=False)]
    for place in range(1, total + 1):
        number = min(range(len(groups)), key=lambda n: lowest[n][0])
        slots = lowest[number][1]
        places[slots] = place / total
        rise += joined.T @ joined[:, slots].sum(1) / len(joined)
        lowest = [_next(rise, places, g, start) for g, start in zip(groups, starts, strict=False)]
    return {
        group.name: places[start : start + group.slots].reshape(group.shape)
        for group, start in zip(groups, starts, strict=False)
    }


def _next(rise: Tensor, places: Tensor, group: Group, start: int) -> tuple[float, Tensor]:
    """The slots of a group that go next, the last index of the lowest, and what they add."""
    own = slice(start, start + group.slots)
    left = torch.where(places[own] > 0, torch.inf, rise[own]).reshape(group.contexts, group.size)
    values, units = left.flip(-1).min(-1)
    units = group.size - 1 - units
    return float(values.mean()), start + torch.arange(group.contexts) * group.size + units


def _swap(row: Tensor, columns: Tensor, total: Tensor) -> bool:
    """Swap the removed and the kept unit of a context that lowers the change the most, in place.

    row      bool [units], what goes
    columns  G [samples, units]
    total    Σ_P G of all that goes, [samples]
    """
    out, back = (~row).nonzero()[:, 0], row.nonzero()[:, 0]  # would go; would come back
    if not len(out) or not len(back):
        return False
    alone = (columns * total[:, None] + 0.5 * columns.square() - columns).mean(0)
    again = (-columns * total[:, None] + 0.5 * columns.square() + columns).mean(0)
    both = columns[:, out].T @ columns[:, back] / len(columns)
    change = alone[out][:, None] + again[back][None, :] - both
    best = int(change.argmin())
    if float(change.flatten()[best]) >= -1e-12 * float(change.abs().max()):
        return False
    leave, stay = out[best // len(back)], back[best % len(back)]
    row[leave], row[stay] = True, False
    total += columns[:, leave] - columns[:, stay]
    return True
