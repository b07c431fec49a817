"""Two rounds of pruning as one plan against the original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import PlanError
from fxprune.groups import Group
from fxprune.matching import Matching
from fxprune.plans import PruningPlan
from fxprune.plans.values import Values
from fxprune.slicing import Slicer


def compose(first: PruningPlan, second: PruningPlan) -> PruningPlan:
    """The plan against the original of `first` that does what `second` does after it.

    `second` is a plan for the graph that `rewrite` made by `first`, analysed as it is or traced
    anew. The criterion and the other records are those of `second`; new values of both stay, those
    of `second` where both give some. Raises PlanError if it is a plan for something else, or if no
    plan of the original says the same: where `first` left units alone, only `second` may see which
    of them are alike.
    """
    for place, plan in (("first", first), ("second", second)):
        if not isinstance(plan, PruningPlan):
            raise PlanError(
                f"compose takes two plans, and the {place} is a {type(plan).__name__}. Pass what "
                "fxprune.plan returns, or the `.plan` of a result of fxprune.prune."
            )
    composer = _Composer(first, second)
    kept = {group.name: first.kept_mask(group) for group in first.groups}
    for name in second.kept_units:
        composer.remove(second.group(name), kept)
    rows = {name: composer.rows(first.group(name), mask) for name, mask in kept.items()}
    return PruningPlan(
        first.groups,
        rows,
        first.shapes,
        first.fingerprint,
        second.criterion,
        second.sparsity,
        second.scope,
        aliases=first.aliases,
        values=composer.values(),
    )


class _Composer:
    def __init__(self, first: PruningPlan, second: PruningPlan) -> None:
        self.first, self.second = first, second
        self.matching = Matching(first, second.shapes)

    def values(self) -> Values:
        """The new values of both plans, in the original's shapes."""
        slicer, found = Slicer(self.first), dict(self.first.values)
        for name, value in self.second.values.items():
            shape = self.first.shape_of(name)
            full = found.get(name, torch.zeros(shape, dtype=value.dtype)).clone()
            entries = slicer.kept_entries(name)
            if entries.shape != value.shape:
                raise PlanError(
                    f"The first plan leaves {name!r} with shape {tuple(entries.shape)}, and the "
                    f"second one gives it values of {tuple(value.shape)}: it is not a plan for the "
                    "first one's result."
                )
            full.view(-1)[entries.reshape(-1)] = value.reshape(-1)
            found[name] = full
        return Values(found)

    def rows(self, group: Group, mask: Tensor) -> Any:
        """The kept indices of an original group. Those of contexts that are gone mean nothing."""
        rows = [row.nonzero()[:, 0].tolist() for row in mask.reshape(group.contexts, group.size)]
        if len({len(row) for row in rows}) > 1:
            width = min(len(row) for row in rows)
            left = set((self.matching.slots_left(group) // group.size).tolist())
            rows = [row if c in left else row[:width] for c, row in enumerate(rows)]
        return rows[0] if group.contexts == 1 else rows

    def remove(self, group: Group, kept: Mapping[str, Tensor]) -> None:
        """Take what the second plan removes of a group out of `kept`."""
        gone = ~self.second.kept_mask(group).reshape(-1)
        found = torch.zeros(group.slots, dtype=torch.bool)
        for match in self.matching.of(group):
            found[match.after] = True
            kept[match.group.name].view(-1)[match.before[gone[match.after]]] = False
        if not bool(found[gone].all()):
            raise PlanError(
                f"No group of the original has the units of group {group.name!r}, which the second "
                "plan prunes: prune the original by one plan, or save the first result as a model."
            )
