"""Rounds of pruning and training: what is left, and what an interruption leaves."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxprune
from fxprune import Budget, CheckpointError, Limits, NothingPrunedWarning, PlanError, PruningPlan
from fxprune.migration import restore
from fxprune.schedules import cubic
from tests.plans.shuffled import by_first_norm, shuffled


class Network(nn.Module):
    """Convolutions with batch norms, a residual sum, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm1d(12)
        self.inner = nn.Conv1d(12, 20, 3, padding=1)
        self.back = nn.Conv1d(20, 12, 1)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x))
        y = (y + self.back(self.inner(y).relu())).transpose(1, 2)
        return self.head((y + self.attention(y, y, y, need_weights=False)[0]).mean(1))


X = torch.randn(16, 3, 8, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 5


def network() -> nn.Module:
    torch.manual_seed(0)
    return Network()


def train(module: GraphModule, seed: int) -> None:
    """A few steps on random batches."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    module.train()
    for _ in range(3):
        batch = torch.randperm(16, generator=generator)[:8]
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(X[batch]), Y[batch]).backward()
        optimizer.step()
    module.eval()


def run(directory: Path | None = None, **options: Any) -> fxprune.Step:
    rounds = fxprune.iterate(network(), X[:2], directory=directory, **{"steps": 3, **options})
    for step in rounds:
        train(step.module, step.number)
    assert rounds.last is not None
    return rounds.last


def same(left: nn.Module, right: nn.Module) -> bool:
    one, other = left.state_dict(), right.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("schedule", ["linear", "exponential", "cubic"])
def test_rounds_reach_the_sparsity_and_each_keeps_less(schedule: str) -> None:
    plans = []
    for step in fxprune.iterate(network(), X[:2], 0.75, steps=4, schedule=schedule):
        train(step.module, step.number)
        assert (step.number, step.steps) == (len(plans) + 1, 4)
        plans.append(step.plan)
    once = fxprune.plan(step.analysis, sparsity=0.75)
    for group in step.analysis.groups:
        assert step.plan.kept(group).shape == once.kept(group).shape
        for more, less in itertools.pairwise(plans):
            assert bool((more.kept_mask(group) | ~less.kept_mask(group)).all())
    assert step.plan.sparsity == 0.75
    assert step.report.parameters_after == sum(p.numel() for p in step.module.parameters())
    assert len({plan.kept_units for plan in plans}) == 4


def test_the_last_plan_applied_to_the_trained_original_gives_the_last_network() -> None:
    step = run(sparsity=0.6, scope="global", normalise="mean")
    traced = step.analysis.traced
    trained = restore(step.plan, step.module.state_dict(), traced.state_dict())
    fresh = fxprune.trace(network(), X[:2])
    fresh.load_state_dict(trained)
    plan = PruningPlan.from_json(step.plan.to_json(), fxprune.analyze(fresh))
    again = fxprune.rewrite(fresh, plan).eval()
    assert same(again, step.module)
    assert torch.equal(again(X), step.module(X))


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_rounds_that_are_cut_off_go_on_to_the_same_bits(done: int, tmp_path: Path) -> None:
    options = {"sparsity": 0.6, "criterion": "taylor", "data": [(X, Y)]}
    whole = run(**options)
    for step in fxprune.iterate(network(), X[:2], steps=3, directory=tmp_path, **options):
        if step.number == done + 1:
            with torch.no_grad():  # in the middle of its training
                step.module.get_parameter("head.weight").fill_(7)
            break
        train(step.module, step.number)
    saved = {path.name for path in tmp_path.glob("step-*")}
    assert saved == {f"step-{number}" for number in range(1, done + 1)}
    resumed = run(tmp_path, **options)
    assert resumed.number == 3
    assert same(resumed.module, whole.module)
    assert resumed.plan == whole.plan
    loaded = fxprune.load(tmp_path / "step-3")
    assert torch.equal(loaded.eval()(X), whole.module(X))


def test_a_directory_of_other_rounds_is_refused(tmp_path: Path) -> None:
    run(tmp_path, sparsity=0.5)
    with pytest.raises(CheckpointError, match=r"begun with another criterion, goals"):
        fxprune.iterate(network(), X[:2], 0.6, steps=3, directory=tmp_path, criterion="random")
    other = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
    with pytest.raises(CheckpointError, match="begun with another fingerprint"):
        fxprune.iterate(other, X[:2, :, 0], 0.5, steps=3, directory=tmp_path)
    with pytest.raises(CheckpointError, match="begun with another round_to"):
        fxprune.iterate(network(), X[:2], 0.5, steps=3, directory=tmp_path, round_to=2)
    (tmp_path / "step-3" / "plan.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"plan\.json"):
        fxprune.iterate(network(), X[:2], 0.5, steps=3, directory=tmp_path)
    for damaged in ("{", "[1]"):
        (tmp_path / "iterate.json").write_text(damaged)
        with pytest.raises(CheckpointError, match="Cannot read"):
            fxprune.iterate(network(), X[:2], 0.5, steps=3, directory=tmp_path)


def test_budgets_are_met_in_every_round() -> None:
    dense = fxprune.cost(fxprune.analyze(fxprune.trace(network(), X[:2])))
    budget = Budget(macs=0.5, params=dense.parameters * 6 // 10)
    ratios = cubic(0.5, 3)
    for step, ratio in zip(
        fxprune.iterate(network(), X[:2], steps=3, budget=budget, scope="global"),
        ratios,
        strict=True,
    ):
        left = fxprune.cost(step.analysis, step.plan)
        assert left.macs <= ratio * dense.macs + 1
        train(step.module, step.number)
    assert left.parameters <= dense.parameters * 6 // 10
    assert step.plan.budget == str(budget)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    yield X, Y


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
def test_limits_count_against_the_original(scope: str) -> None:
    limits = {"inner": Limits(max_sparsity=0.25), "stem": Limits(min_keep=9)}
    step = run(sparsity=0.7, scope=scope, limits=limits, round_to=3, ignore="attention.in_*")
    widths = {group.name: step.plan.kept(group).shape[-1] for group in step.analysis.groups}
    assert widths[next(name for name in widths if "inner" in name)] == 15
    assert widths[next(name for name in widths if "stem" in name)] == 9
    assert all("in_proj" not in name for name in step.plan.kept_units)


def test_data_may_be_an_iterator() -> None:
    assert run(sparsity=0.5, criterion="taylor", data=batches()).plan.criterion == "taylor"


def test_units_are_scored_on_the_network_that_is_left() -> None:
    seen: list[dict[str, tuple[int, ...]]] = []

    def look(group: fxprune.Group, parameters: Any) -> Tensor:
        seen[-1][group.name] = group.shape
        return torch.arange(float(group.slots)).reshape(group.shape)

    kept = []
    rounds = fxprune.iterate(network(), X[:2], 0.6, steps=3, criterion=look)
    seen.append({})
    for step in rounds:
        kept.append({name: tuple(step.plan.kept(name).shape) for name in seen[-1]})
        seen.append({})
    assert kept[0] == seen[1]
    assert kept[1] == seen[2]


@pytest.mark.parametrize("criterion", ["obs", "thinet"])
def test_criteria_that_choose_sets_choose_them(criterion: str) -> None:
    """What the last round removes is what a single plan of what is left would."""
    plans = []
    for step in fxprune.iterate(network(), X[:2], 0.6, steps=2, criterion=criterion, data=[(X, Y)]):
        train(step.module, step.number)
        plans.append((step.plan, step.module))
    once = fxprune.plan(step.analysis, criterion, plans[0][0].sparsity, data=[(X, Y)])
    assert plans[0][0].kept_units == once.kept_units
    assert all(
        bool((plans[0][0].kept_mask(g) | ~plans[1][0].kept_mask(g)).all())
        for g in step.analysis.groups
    )
    assert step.plan.kept_units.keys() == once.kept_units.keys()


def test_heads_and_what_is_in_them_go_together() -> None:
    step = run(sparsity=0.4, groups=lambda group: True)
    assert any(group.outer in step.plan.kept_units for group in step.analysis.groups)
    assert step.module(X).shape == (16, 5)


def test_groups_that_turn_into_others_are_followed_unit_by_unit() -> None:
    images = torch.randn(2, 3, 32, 32).double()
    options = {"criterion": by_first_norm, "scope": "global"}
    steps = list(fxprune.iterate(shuffled(), images, 0.5, steps=3, **options))
    step, plans = steps[-1], [step.plan for step in steps]
    once = fxprune.plan(step.analysis, sparsity=0.5, **options)
    same = [step.plan.kept_mask(group) == once.kept_mask(group) for group in once.groups]
    assert torch.cat(same).double().mean() > 0.95  # but for those that nothing else is like
    assert len({plan.kept_units for plan in plans}) == 3
    after = fxprune.analyze(step.module)
    assert {g.name for g in after.groups} != {g.name for g in step.analysis.groups}
    proof = fxprune.verify(step.analysis.traced, step.plan, step.module, images)
    assert proof.max_error < 1e-12


def test_shuffled_channels_are_pruned_and_trained_in_rounds() -> None:
    images = torch.randn(4, 3, 32, 32).double()
    rounds = fxprune.iterate(shuffled(), images[:2], 0.5, steps=3, scope="global", normalise="mean")
    for step in rounds:
        optimizer = torch.optim.SGD(step.module.parameters(), lr=1e-3)
        nn.functional.cross_entropy(step.module(images), torch.arange(4)).backward()
        optimizer.step()
    traced = copy.deepcopy(step.analysis.traced)
    traced.load_state_dict(restore(step.plan, step.module.state_dict(), traced.state_dict()))
    assert fxprune.verify(traced, step.plan, step.module, images).max_error < 1e-12
    assert step.report.parameters_after < 0.7 * step.report.parameters_before


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(PlanError, match="at least one round"):
        fxprune.iterate(network(), X[:2], 0.5, steps=0)
    with pytest.raises(PlanError, match="no schedule 'quartic'"):
        fxprune.iterate(network(), X[:2], 0.5, steps=2, schedule="quartic")
    with pytest.raises(PlanError, match="How much should go"):
        fxprune.iterate(network(), X[:2], steps=2)
    statistics = fxprune.Statistics(fxprune.analyze(fxprune.trace(network(), X[:2])), [(X, Y)])
    with pytest.raises(PlanError, match="pass data, no Statistics"):
        fxprune.iterate(network(), X[:2], 0.5, steps=2, data=statistics)
    with pytest.warns(NothingPrunedWarning):
        list(fxprune.iterate(network(), X[:2], 0.01, steps=2))
