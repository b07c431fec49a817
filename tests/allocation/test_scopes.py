"""Scopes and normalisers: which units go first, whichever group they are in."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune import Group
from fxprune.allocation.limits import Limits
from fxprune.allocation.normalise import NORMALISERS, find_normaliser
from fxprune.allocation.scopes import Candidate, isomorphic
from fxprune.allocation.structure import kind_of
from tests.costs import measure
from tests.plans.fakes import FakeAnalysis


class Stages(nn.Module):
    """Residual MLPs: two hidden layers of one structure, one with a norm, and the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 10)
        self.a = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 10))
        self.b = nn.Sequential(nn.Linear(10, 40), nn.GELU(), nn.Linear(40, 10))
        self.c = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.Linear(20, 10))
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in (self.a, self.b, self.c):
            x = x + block(x)
        return self.head(x)


def stages() -> fxprune.Analysis:
    torch.manual_seed(0)
    return fxprune.analyze(fxprune.trace(Stages().eval(), (torch.randn(2, 4),)))


A, B, C, STREAM = "a.0.weight:0", "b.0.weight:0", "c.0.weight:0", "stem.weight:0"


def test_groups_of_the_same_structure_are_of_one_kind() -> None:
    analysis = stages()
    kinds = {group.name: kind_of(group, analysis) for group in analysis.groups}
    assert set(kinds) == {A, B, C, STREAM}
    assert kinds[A] == kinds[B]
    assert len(set(kinds.values())) == 3


def test_bottlenecks_of_a_resnet_are_of_one_kind() -> None:
    _, analysis = measure.analysed("resnet50")
    kinds: dict[object, list[str]] = {}
    for group in analysis.groups:
        kinds.setdefault(kind_of(group, analysis), []).append(group.name)
    inner = {
        name for name in (g.name for g in analysis.groups) if "conv1" in name or "conv2" in name
    }
    inner.discard("conv1.weight:0")
    assert any(set(names) >= inner for names in kinds.values())
    assert len(kinds) < len(analysis.groups) / 3


def test_isomorphic_cuts_rank_within_a_kind() -> None:
    """B's scores are low: it gives all that its kind must lose, and the others lose their own."""
    low = {A: 100.0, B: 1.0, C: 1000.0, STREAM: 0.001}
    made = fxprune.plan(
        stages(),
        lambda group, _: low[group.name] * (1 + torch.arange(group.size)),
        0.5,
        "isomorphic",
    )
    widths = {group.name: made.kept(group).numel() for group in made.groups}
    assert widths == {A: 20, B: 10, C: 10, STREAM: 5}


SCORES = st.sampled_from([0.0, 1.0, 2.0]) | st.floats(-9, 9)


def slow_isomorphic(
    scores: dict[str, list[float]], kinds: dict[str, object], sparsity: float
) -> dict[str, int]:
    """Per kind, one unit after another: the lowest next score of the groups that have one."""
    counts = dict.fromkeys(scores, 0)
    for kind in set(kinds.values()):
        names = [name for name in scores if kinds[name] == kind]
        left = math.floor(sparsity * sum(len(scores[name]) for name in names))
        while left:
            able = [name for name in names if counts[name] < len(scores[name]) - 1]
            if not able:
                break
            lowest = min(able, key=lambda name: sorted(scores[name])[counts[name]])
            counts[lowest] += 1
            left -= 1
    return counts


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([0.0, 1.0, 2.0]) | st.floats(-9, 9), min_size=1, max_size=6),
            st.integers(0, 1),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([0.0, 0.25, 0.5, 0.75]),
)
def test_isomorphic_agrees_with_its_definition(
    case: list[tuple[list[float], int]], sparsity: float
) -> None:
    slots = [torch.tensor(sorted(scores), dtype=torch.float64) for scores, _ in case]
    candidates = [Candidate(len(s), Limits().widths(len(s)), s.clone) for s in slots]
    steps = isomorphic(candidates, lambda: [kind for _, kind in case])
    counts = steps.counts(steps.up_to(sparsity), len(case)).tolist()
    scores = {f"g{i}": own for i, (own, _) in enumerate(case)}
    kinds = {f"g{i}": kind for i, (_, kind) in enumerate(case)}
    assert counts == list(slow_isomorphic(scores, kinds, sparsity).values())


@pytest.mark.parametrize("name", sorted(NORMALISERS))
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8))
def test_normalisers_keep_the_order(name: str, scores: list[float]) -> None:
    before = torch.tensor(scores, dtype=torch.float64)
    after = find_normaliser(name)(before)
    assert bool(torch.isfinite(after).all())
    order = before.argsort(stable=True)
    assert bool((after[order].diff() >= 0).all())


def test_normalisers_by_hand() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    expected = {
        "none": [1, 2, 3, 6],
        "mean": [1 / 3, 2 / 3, 1, 2],
        "max": [1 / 6, 1 / 3, 1 / 2, 1],
        "standardise": [-2 / 3.5**0.5, -1 / 3.5**0.5, 0, 3 / 3.5**0.5],
    }
    assert set(expected) == set(NORMALISERS)
    for name, values in expected.items():
        wanted = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(find_normaliser(name)(scores), wanted)
        zeros = torch.zeros(3, dtype=torch.float64)
        assert find_normaliser(name)(zeros).tolist() == [0, 0, 0]


def test_normalisers_make_groups_comparable() -> None:
    analysis = FakeAnalysis((Group("small", 4), Group("large", 4)), {})
    table = {"small": torch.tensor([1.0, 2, 3, 4]), "large": torch.tensor([100.0, 300, 500, 500])}
    cut = {
        name: {
            group: len(row)
            for group, row in fxprune.plan(
                analysis, lambda g, _: table[g.name], 0.5, "global", normalise=name
            ).kept_units.items()
        }
        for name in NORMALISERS
    }
    assert cut["none"] == {"small": 1, "large": 3}
    # small: 0.4 0.8 1.2 1.6 and large: 0.29 0.86 1.43 1.43 of the mean
    assert cut["mean"] == {"small": 2, "large": 2}
    # small: 0.25 0.5 0.75 1 and large: 0.2 0.6 1 1 of the largest
    assert cut["max"] == {"small": 2, "large": 2}
    assert cut["standardise"] == {"small": 2, "large": 2}
