"""Units of a pruned graph are found in the original by the entries that they own."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import PruningPlan
from fxprune.matching import Matching
from tests.masking import alive, random_plan, traced
from tests.plans.shuffled import by_first_norm, shuffled


def matching(plan: PruningPlan, after: fxprune.Analysis) -> Matching:
    return Matching(plan, {name: tuple(p.shape) for name, p in after.parameters.items()})


def test_shuffled_units_are_the_ones_with_the_same_weights() -> None:
    analysis = fxprune.analyze(shuffled())
    plan = random_plan(analysis, keep=0.6)
    after = fxprune.analyze(fxprune.rewrite(shuffled(), plan))
    found = matching(plan, after)
    known = {group.name: torch.zeros(group.shape, dtype=torch.bool) for group in analysis.groups}
    for group in after.groups:
        units = torch.zeros(group.slots, dtype=torch.bool)
        for match in found.of(group):
            theirs = by_first_norm(match.group, analysis.parameters)[match.before]
            assert torch.equal(by_first_norm(group, after.parameters)[match.after], theirs)
            assert not known[match.group.name][match.before].any()
            known[match.group.name][match.before] = units[match.after] = True
        assert units.all()
    kept = [plan.kept_mask(group) for group in analysis.groups]
    reached = [known[group.name] & mask for group, mask in zip(analysis.groups, kept, strict=True)]
    assert not any((known[g.name] & ~mask).any() for g, mask in zip(plan.groups, kept, strict=True))
    assert torch.cat(reached).sum() > 0.95 * torch.cat(kept).sum()  # but for single ones


class Nested(nn.Module):
    """Channels of a grouped convolution, which each group chooses, and heads of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 12, 1)
        self.grouped = nn.Conv1d(12, 12, 3, groups=3, padding=1)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.grouped(torch.tanh(self.stem(x)))).transpose(1, 2)
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def owners(group: fxprune.Group, parameters: Mapping[str, Tensor]) -> set[tuple[str, float, int]]:
    """(parameter, entry, slot) of every entry that a unit of the group owns."""
    slots = torch.arange(group.slots).reshape(group.shape)
    found = set()
    for member in group.members:
        entries = parameters[member.parameter]
        laid = member.spread(slots, group, -1, entries.dim()).expand(entries.shape)
        pairs = zip(entries.flatten().tolist(), laid.flatten().tolist(), strict=True)
        found |= {(member.parameter, entry, slot) for entry, slot in pairs if slot >= 0}
    return found


@pytest.mark.parametrize("seed", range(4))
def test_units_own_the_entries_that_they_owned(seed: int) -> None:
    inputs = torch.randn(2, 3, 5, dtype=torch.float64)
    graph, analysis = traced(alive(Nested()), inputs)
    for parameter in graph.parameters():
        parameter.data.copy_(torch.arange(parameter.numel()).view(parameter.shape))
    plan = random_plan(analysis, seed, keep=0.6)
    after = fxprune.analyze(fxprune.rewrite(graph, plan))
    for group in after.groups:
        (match,) = matching(plan, after).of(group)
        before_of = dict(zip(match.after.tolist(), match.before.tolist(), strict=True))
        assert len(before_of) == group.slots
        now = {(name, e, before_of[slot]) for name, e, slot in owners(group, after.parameters)}
        assert now <= owners(match.group, analysis.parameters)


class Copies(nn.Module):
    """Reads copies of channels from the second of a channel on: single channels, and the copies."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 7), nn.Linear(7, 2)
        self.wide = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y.tanh()) + self.wide(y.repeat_interleave(2, dim=1).narrow(1, 3, 6))


def test_units_that_only_cross_others_are_not_theirs() -> None:
    # Of both copies of three channels, those of one are left as the only ones of a single channel.
    model, x = alive(Copies()), torch.randn(3, 3, dtype=torch.float64)
    graph, analysis = traced(model, x)
    inner, copies = "first.weight:0#2", "wide.weight:1"
    first = PruningPlan.build(analysis, {inner: [1]})
    pruned = fxprune.rewrite(graph, first)
    after = fxprune.analyze(pruned)
    second = PruningPlan.build(after, {copies: [1]})
    composed = fxprune.compose(first, second)
    assert dict(composed.kept_units) == {inner: (1,), copies: (1,)}
    once, twice = fxprune.rewrite(graph, composed), fxprune.rewrite(pruned, second)
    torch.testing.assert_close(once(x), twice(x))
