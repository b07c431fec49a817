"""Mask Fisher and ThiNet: every step of their orders against the definition, set by set."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable

import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune import Group, LeftWholeWarning, Statistics
from fxprune.criteria import MaskFisher, ThiNet
from tests.criteria.networks import Attentive, analyzed
from tests.statistics import literal
from tests.statistics.networks import Problem, problems
from tests.statistics.test_mask_gradients import literal as mask_gradients

few = settings(max_examples=10, deadline=None)
Unit = tuple[str, int]


def assert_greedy(order: list[Unit], change: Callable[[set[Unit]], float]) -> None:
    """At every step of the order no other unit would have added less."""
    gone: set[Unit] = set()
    for unit in order:
        best = min(change(gone | {other}) for other in order if other not in gone)
        gone.add(unit)
        assert change(gone) <= best + 1e-10 * max(1.0, abs(best))


def loss_change(problem: Problem) -> Callable[[set[Unit]], float]:
    """-Σ_P ḡ + ½ 1ᵀ_P M 1_P with M written out."""
    slopes = {g.name: mask_gradients(problem, g) for g in problem.analysis.groups}
    columns = {
        (name, k): table[:, k] for name, table in slopes.items() for k in range(len(table.T))
    }
    matrix = {(a, b): float((columns[a] * columns[b]).mean()) for a in columns for b in columns}

    def change(gone: set[Unit]) -> float:
        linear = sum(float(columns[unit].mean()) for unit in gone)
        return -linear + 0.5 * sum(matrix[pair] for pair in itertools.product(gone, gone))

    return change


@few
@given(problems())
def test_mask_fisher_removes_what_adds_the_least(problem: Problem) -> None:
    scores = fxprune.score(problem.analysis, "mask_fisher", problem.data)
    units = [(name, k) for name, row in scores.items() for k in range(len(row))]
    order = sorted(units, key=lambda unit: float(scores[unit[0]][unit[1]]))
    assert [float(scores[name][k]) for name, k in order] == [
        place / len(order) for place in range(1, len(order) + 1)
    ]
    assert_greedy(order, loss_change(problem))


@few
@given(problems())
def test_swaps_end_where_none_lowers_the_change(problem: Problem) -> None:
    statistics, change = Statistics(problem.analysis, problem.data), loss_change(problem)
    removed = {g.name: torch.arange(g.size) < g.size // 2 for g in problem.analysis.groups}
    chosen = MaskFisher().select(removed, statistics)
    units = {(name, k) for name, row in chosen.items() for k in row.nonzero()[:, 0].tolist()}
    before = {(name, k) for name, row in removed.items() for k in row.nonzero()[:, 0].tolist()}
    found = change(units)
    assert abs(MaskFisher().change(chosen, statistics) - found) < 1e-10
    assert found <= change(before) + 1e-10
    for name, row in chosen.items():
        assert int(row.sum()) == int(removed[name].sum())
        kept = (~row).nonzero()[:, 0].tolist()
        for out, back in itertools.product(kept, row.nonzero()[:, 0].tolist()):
            assert change((units | {(name, out)}) - {(name, back)}) >= found - 1e-9


def planned(seed: int) -> tuple[float, float]:
    """The change of the loss by a plan of mask Fisher, and by one of its scores without swaps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 9), nn.ReLU(), nn.Linear(9, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # units that matter, and depend on one another
    x, y = torch.randn(64, 4), torch.randint(3, (64,))
    analysis = fxprune.analyze(fxprune.trace(model, x[:2]))
    statistics = Statistics(analysis, [(x, y)])
    scores = fxprune.score(analysis, "mask_fisher", statistics)
    budget = fxprune.Budget(macs=0.5)
    plan = fxprune.plan(analysis, "mask_fisher", data=statistics, budget=budget)
    greedy = fxprune.plan(analysis, lambda group, _: scores[group.name], budget=budget)
    assert fxprune.cost(analysis, plan).macs == fxprune.cost(analysis, greedy).macs
    own, other = ({n: ~p.kept_mask(n) for n in p.kept_units} for p in (plan, greedy))
    assert {n: int(row.sum()) for n, row in own.items()} == {
        n: int(row.sum()) for n, row in other.items()
    }
    return MaskFisher().change(own, statistics), MaskFisher().change(other, statistics)


def test_a_plan_by_mask_fisher_swaps_within_its_budget() -> None:
    changes = [planned(seed) for seed in range(4)]
    assert all(own <= other + 1e-12 for own, other in changes)
    assert any(own < other - 1e-3 for own, other in changes)


def results_alone(problem: Problem, group: Group) -> list[Tensor]:
    """Per unit, what the layers that read it make of it alone."""
    alone: list[list[Tensor]] = [[] for _ in range(group.size)]
    for view in literal.seen(problem, group):
        for unit, results in enumerate(alone):
            mask = (view.unit == unit).double().reshape(-1, *[1] * (view.inputs.dim() - 2))
            x = view.inputs * mask
            y = F.linear(x, view.weight) if x.dim() == 2 else F.conv2d(x, view.weight, padding=1)
            results.append(y.flatten())
    return [torch.cat(results) for results in alone]


@few
@given(problems())
def test_contributions_and_thinet(problem: Problem) -> None:
    statistics = Statistics(problem.analysis, problem.data)
    scores = fxprune.score(problem.analysis, "thinet", statistics)
    for group in problem.analysis.groups:
        rows = results_alone(problem, group)
        found = statistics.contributions(group)
        for k, m in itertools.product(range(group.size), repeat=2):
            expected = float(rows[k] @ rows[m]) / len(problem.inputs)
            assert abs(float(found[k, m]) - expected) < 1e-10 * (1 + abs(expected))

        def change(gone: set[Unit], rows: list[Tensor] = rows) -> float:
            total = torch.stack([rows[k] for _, k in gone]).sum(0)
            return float(total @ total) / len(problem.inputs)

        whole = sum(float(row @ row) for row in rows) / len(problem.inputs)
        order = sorted(range(group.size), key=lambda k: float(scores[group.name][k]))
        if whole > 0:
            assert_greedy([("", k) for k in order], change)
            highest = 0.0
            for count, unit in enumerate(order, 1):
                share = change({("", k) for k in order[:count]}) / whole
                highest = max(highest, share)
                assert abs(float(scores[group.name][unit]) - highest) < 1e-10
                removed = torch.isin(torch.arange(group.size), torch.tensor(order[:count]))
                assert abs(ThiNet().change(group, removed, statistics) / whole - share) < 1e-10


class Meeting(nn.Module):
    """Queries and keys of two heads, whose dimensions no weight reads."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (layer(x).unflatten(-1, (2, 3)).movedim(-2, -3) for layer in (self.query, self.key))
        return self.head((q @ k.mT).mean(1)).mean(1)


def test_contributions_of_each_heads_dimensions() -> None:
    torch.manual_seed(0)
    model, x = Meeting().double(), torch.randn(6, 4, 5, dtype=torch.float64)
    analysis = analyzed(model, x[:2])
    (group,) = (g for g in analysis.groups if g.shape == (2, 3))
    q, k = (layer(x).unflatten(-1, (2, 3)) for layer in (model.query, model.key))
    products = torch.einsum("nthd,nshd->hdnts", q, k)  # what a dimension adds to its head's logits
    expected = torch.zeros(2, 3, 2, 3, dtype=torch.float64)
    for head in range(2):
        rows = products[head].flatten(1)
        expected[head, :, head, :] = rows @ rows.T / len(x)
    found = Statistics(analysis, [x]).contributions(group)
    torch.testing.assert_close(found, expected.reshape(6, 6).detach(), rtol=1e-10, atol=1e-12)


def test_large_results_are_sampled() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3)).double()
    x = torch.randn(8, 1, 32, 32, dtype=torch.float64)
    analysis = analyzed(model, x[:2])
    (group,) = analysis.groups
    whole = torch.zeros(6, 6, dtype=torch.float64)
    h = model[1](model[0](x)).detach()
    rows = [F.conv2d(h[:, [k]], model[2].weight[:, [k]].detach()).flatten() for k in range(6)]
    for k, m in itertools.product(range(6), repeat=2):
        whole[k, m] = rows[k] @ rows[m] / len(x)
    assert rows[0].numel() > 1 << 14
    first, again = (Statistics(analysis, [x]).contributions(group) for _ in range(2))
    assert first.equal(again)
    assert not first.allclose(whole, rtol=1e-6)
    torch.testing.assert_close(first, whole, rtol=0.1, atol=0.1 * float(whole.diagonal().mean()))


def test_transformers_are_scored_and_pruned_by_both() -> None:
    torch.manual_seed(0)
    tokens, targets = torch.randint(11, (16, 4)), torch.randint(3, (16,))
    analysis = analyzed(Attentive().eval(), tokens[:2])
    statistics = Statistics(analysis, [(tokens, targets)])
    for name in ("mask_fisher", "thinet"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", LeftWholeWarning)
            scores = fxprune.score(analysis, name, statistics)
        assert {g.name: g.shape for g in analysis.groups} == {
            n: tuple(s.shape) for n, s in scores.items()
        }
        plan = fxprune.plan(analysis, name, 0.5, "global", data=statistics)
        pruned = fxprune.rewrite(analysis.traced, plan)
        assert fxprune.verify(analysis.traced, plan, pruned, tokens).ok
