"""The order in which units go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fxprune.groups import Group, innermost


def removal_order(scores: Tensor) -> Tensor:
    """Units of each context in the order in which they go: lowest score, then highest index."""
    ranked = scores.to("cpu", torch.float64).flip(-1).argsort(dim=-1, stable=True)
    return scores.shape[-1] - 1 - ranked


def first_to_go(scores: Tensor, count: int) -> Tensor:
    """The units that go if `count` of each context do: bool, of the scores' shape."""
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    return mask.scatter_(-1, removal_order(scores)[..., :count], True)


def mean_slots(scores: Tensor) -> Tensor:
    """Ascending scores of a group's rank slots: means over contexts of sorted scores."""
    return scores.to("cpu", torch.float64).reshape(-1, scores.shape[-1]).sort(-1).values.mean(0)


def lowest(
    groups: Sequence[Group], scores: Mapping[str, Tensor], count: int
) -> Iterator[tuple[Group, Tensor]]:
    """The groups that lose units when the `count` lowest slots of all groups fall.

    Yields each with the places of its slots among those that fall, ascending. Of equal scores the
    group that comes first loses first. Units that are gone already have the score inf.
    """
    slots = torch.cat([mean_slots(scores[group.name]) for group in groups])
    sizes = torch.tensor([group.size for group in groups])
    owner = torch.arange(len(groups)).repeat_interleave(sizes)
    fallen = owner[slots.argsort(stable=True)[:count]]
    for number, group in enumerate(groups):
        places = (fallen == number).nonzero()[:, 0]
        if len(places):
            yield group, places


def runs(groups: Sequence[Group]) -> Iterator[tuple[tuple[Group, ...], tuple[Group, ...]]]:
    """Sets of groups that can be ranked together, each with those of it that are new.

    Groups nested in one another never stand in one set: each is in a set with all that are not
    nested. The innermost come first.
    """
    nesting = {group.outer for group in groups}
    plain = [g for g in groups if g.outer is None and g.name not in nesting]
    remaining = list(groups)
    while remaining:
        inner = innermost(remaining)
        together = {group.name: group for group in [*plain, *inner]}
        yield tuple(together.values()), inner
        done = {group.name for group in inner}
        remaining = [group for group in remaining if group.name not in done]
