"""The order in which groups are cut.

A *step* makes one group narrower by one unit (by several, where widths are rounded). A scope puts
the steps of all groups into one order, whatever the target: a sparsity takes a beginning of it, and
so does a budget. Each step has a *level*, the sparsity from which on it is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from fxprune.allocation.limits import share
from fxprune.errors import PlanError

Kinds: TypeAlias = Callable[[], Sequence[object]]
"""Says the kind of each candidate: groups of equal kind have the same structure."""


@dataclass(frozen=True)
class Candidate:
    """A group that may be cut: its number of unit slots, its possible widths, and slots' scores.

    widths  descending, all below the number of slots
    slots   gives the scores, ascending, to a scope that compares them
    """

    size: int
    widths: range
    slots: Callable[[], Tensor]


@dataclass(frozen=True)
class Steps:
    """Steps in order.

    owner    int64 [n]: the number of the group that a step cuts
    units    int64 [n]: how many units it removes
    removed  int64 [n]: how many have gone after it, of those that its level counts
    total    int64 [n]: how many there are of those
    """

    owner: Tensor
    units: Tensor
    removed: Tensor
    total: Tensor

    def __len__(self) -> int:
        return len(self.owner)

    def up_to(self, sparsity: float) -> int:
        """How many steps have a level of at most that sparsity."""
        totals, which = self.total.unique(return_inverse=True)
        allowed = totals.new_tensor([share(sparsity, total) for total in totals.tolist()])
        return int((self.removed <= allowed[which]).sum())

    def counts(self, steps: int, groups: int) -> Tensor:
        """How many units each of the groups has lost after the first `steps` steps: int64."""
        counts = torch.zeros(groups, dtype=torch.int64)
        return counts.index_add(0, self.owner[:steps], self.units[:steps])


Removal: TypeAlias = tuple[int, Tensor, Tensor]
"""The number of a group, and how many of its slots have gone before and after each of its steps."""


def _removals(candidates: Sequence[Candidate]) -> list[Removal]:
    """Of every group that may be cut."""
    found = []
    for number, candidate in enumerate(candidates):
        widths = candidate.widths
        if widths:
            after = candidate.size - torch.arange(widths.start, widths.stop, widths.step)
            found.append((number, torch.cat([after.new_zeros(1), after[:-1]]), after))
    return found


def _owners(removals: Sequence[Removal]) -> tuple[Tensor, Tensor]:
    """Of all steps, group by group: owner and units."""
    if not removals:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    owner = torch.cat([torch.full((len(after),), number) for number, _, after in removals])
    return owner, torch.cat([after - before for _, before, after in removals])


def _means(candidates: Sequence[Candidate], removals: Sequence[Removal]) -> Tensor:
    """The mean score of the slots that go in each of these steps."""
    scores = [torch.zeros(0, dtype=torch.float64)]
    for number, before, after in removals:
        slots = candidates[number].slots()
        sums = torch.cat([slots.new_zeros(1), slots.cumsum(0)])
        means = (sums[after] - sums[before]) / (after - before)
        single = bool((after - before == 1).all())
        # One by one the scores are exact; means of ascending slots ascend, but for rounding.
        scores.append(slots[before] if single else means.cummax(0).values)
    return torch.cat(scores)


def local(candidates: Sequence[Candidate], kinds: Kinds) -> Steps:
    """All groups at the same sparsity: a step's level is the share that its group has lost."""
    owner, units = _owners(_removals(candidates))
    sizes = torch.tensor([candidate.size for candidate in candidates])
    return _ordered(owner, units, owner, sizes)


def globally(candidates: Sequence[Candidate], kinds: Kinds) -> Steps:
    """The lowest scores of all groups first; of equal ones the first group's."""
    removals = _removals(candidates)
    owner, units = _owners(removals)
    order = _means(candidates, removals).argsort(stable=True)
    total = torch.tensor([sum(candidate.size for candidate in candidates)])
    return _ordered(owner[order], units[order], torch.zeros_like(owner), total)


def isomorphic(candidates: Sequence[Candidate], kinds: Kinds) -> Steps:
    """The lowest scores first among groups of the same structure; each kind loses the same share.

    See Fang et al., Isomorphic Pruning for Vision Models, 2024.
    """
    removals = _removals(candidates)
    owner, units = _owners(removals)
    numbers: dict[object, int] = {}
    kind_of = [numbers.setdefault(kind, len(numbers)) for kind in kinds()]
    totals = [0] * len(numbers)
    for kind, candidate in zip(kind_of, candidates, strict=True):
        totals[kind] += candidate.size
    order = _means(candidates, removals).argsort(stable=True)
    pool = torch.tensor(kind_of)[owner[order]]
    return _ordered(owner[order], units[order], pool, torch.tensor(totals))


def _ordered(owner: Tensor, units: Tensor, pool: Tensor, totals: Tensor) -> Steps:
    """Sort steps by the share of its pool that has gone after each; pools keep their order.

    pool    the pool of each step
    totals  the number of units in each pool
    """
    by_pool = pool.argsort(stable=True)
    sums = units[by_pool].cumsum(0)
    first = torch.searchsorted(pool[by_pool].contiguous(), pool[by_pool])
    before = torch.cat([torch.zeros(1, dtype=torch.int64), sums])[first]
    removed = torch.empty_like(units)
    removed[by_pool] = sums - before
    total = totals[pool]
    order = (removed.double() / total).argsort(stable=True)
    return Steps(owner[order], units[order], removed[order], total[order])


Scope: TypeAlias = Callable[[Sequence[Candidate], Kinds], Steps]

SCOPES: Mapping[str, Scope] = MappingProxyType(
    {"local": local, "global": globally, "isomorphic": isomorphic}
)


def find_scope(name: object) -> Scope:
    """The scope of that name; raises PlanError for another one."""
    found = SCOPES.get(name) if isinstance(name, str) else None
    if found is None:
        raise PlanError(f"There is no scope {name!r}; use one of {', '.join(sorted(SCOPES))}.")
    return found
