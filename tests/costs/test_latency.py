"""Latency as a function of widths: from times that are known, and from a small measured network."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.module import register_module_forward_hook

import fxprune
from fxprune import Budget, PlanError, PruningPlan
from fxprune.costs import cost_model
from fxprune.costs.latency import Latencies, LatencyModel, Sample, ascending, by_sum, interpolated
from fxprune.timing import time_modules


class Network(nn.Module):
    """Two wide layers and a narrow one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 96), nn.Linear(96, 128)
        self.head = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


EXAMPLE = torch.randn(5, 64)


@functools.cache
def analysed() -> fxprune.Analysis:
    torch.manual_seed(0)
    return fxprune.analyze(fxprune.trace(Network().eval(), EXAMPLE))


def seconds(plan: PruningPlan | None) -> dict[str, float]:
    """A device on which a multiply-accumulate takes 2 ns, and a node without any 1 µs."""
    cost = fxprune.cost(analysed(), plan)
    macs = {node.node: 5 * node.macs for node in cost.nodes}
    names = [n.name for n in analysed().traced.graph.nodes if n.op not in ("placeholder", "output")]
    return {name: 2e-9 * macs.get(name, 0) or 1e-6 for name in names}


def keeping(first: int, second: int) -> PruningPlan:
    names = [group.name for group in analysed().groups]
    return PruningPlan.build(
        analysed(), dict(zip(names, (list(range(first)), list(range(second))), strict=True))
    )


@functools.cache
def made_up() -> Latencies:
    """Times of that device at a grid."""
    model = cost_model(analysed())
    plans = [keeping(96 * k // 32, 128 * k // 32) for k in range(32, 0, -1)]
    samples = (Sample(model.widths(plan), seconds(plan), whole(plan)) for plan in plans)
    return Latencies(analysed().fingerprint, tuple(samples))


def whole(plan: PruningPlan | None) -> float:
    """As a whole the dense network takes twice the sum of its nodes, and smaller ones less so."""
    total, dense = (sum(seconds(at).values()) for at in (plan, None))
    return total * (1 + total / dense)


def test_times_between_those_of_the_grid_follow_the_work() -> None:
    model = LatencyModel(cost_model(analysed()), made_up())
    assert model.after(None) == pytest.approx(made_up().dense)
    for plan in (keeping(48, 64), keeping(90, 20), keeping(13, 101), keeping(5, 128)):
        assert model.after(plan) == pytest.approx(whole(plan), rel=0.02)


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
def test_a_budget_of_latency_is_met_to_within_one_unit(scope: str) -> None:
    model = LatencyModel(cost_model(analysed()), made_up())
    for budget in (Budget(latency=0.6), Budget(latency_seconds=0.4 * made_up().dense)):
        limit = (budget.latency or 0.4) * made_up().dense
        plan = fxprune.plan(analysed(), scope=scope, budget=budget, latencies=made_up())
        assert model.after(plan) <= limit
        more = []
        for name in plan.kept_units:
            row = plan.kept(name).tolist()
            back = min(set(range(plan.group(name).size)) - set(row))
            kept = {**plan.kept_units, name: sorted([*row, back])}
            more.append(model.after(PruningPlan.build(analysed(), kept)))
        assert max(more) > limit


def test_budgets_of_several_kinds_are_all_met() -> None:
    budget = Budget(macs=0.7, latency=0.6)
    plan = fxprune.plan(analysed(), budget=budget, latencies=made_up())
    assert LatencyModel(cost_model(analysed()), made_up()).after(plan) <= 0.6 * made_up().dense
    assert fxprune.cost(analysed(), plan).macs <= 0.7 * fxprune.cost(analysed()).macs
    assert plan.budget == "macs=0.7, latency=0.6"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"latency": 1}, "a fraction of the dense time, a float"),
        ({"latency": 1.5}, r"in \(0, 1\]; got 1.5"),
        ({"latency_seconds": 0}, "above 0 seconds; got 0"),
        ({"latency_seconds": float("nan")}, "above 0 seconds; got nan"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "message",
)
def test_budgets_without_sense_are_refused(budget: dict[str, float], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Budget(**budget)


def test_a_budget_of_latency_needs_times_of_this_graph() -> None:
    with pytest.raises(PlanError, match="needs times measured on your device"):
        fxprune.plan(analysed(), budget=Budget(latency=0.5))
    other = Latencies("of another graph", made_up().samples)
    with pytest.raises(PlanError, match="measured for another graph"):
        fxprune.plan(analysed(), budget=Budget(latency=0.5), latencies=other)
    with pytest.raises(PlanError, match=r"latency=0.001 allows .* smallest reachable is .* ms"):
        fxprune.plan(analysed(), budget=Budget(latency=0.001), latencies=made_up())


def test_noise_does_not_make_smaller_networks_slower() -> None:
    points = ascending([(10, 3.0), (20, 2.0), (30, 5.0), (30, 7.0), (40, 6.0)])
    assert points == ((10, 2.5), (20, 2.5), (30, 6.0), (40, 6.0))
    assert interpolated(points, 25) == pytest.approx(4.25)
    assert [interpolated(points, work) for work in (0, 50)] == [2.5, 6.0]


def test_noise_does_not_make_smaller_wholes_slower() -> None:
    points = by_sum([(4.0, 9.0), (3.0, 11.0), (2.0, 5.0), (2.0, 4.0), (1.0, 4.5)])
    assert points == ((0.0, 0.0), (1.0, 4.0), (2.0, 4.0), (3.0, 9.0), (4.0, 9.0))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=32, max_size=32), st.data())
def test_fewer_units_never_take_longer_whatever_was_measured(
    wholes: list[float], data: st.DataObject
) -> None:
    """So that the steps of a removal that meet a budget are a tail."""
    samples = (
        replace(sample, whole=seconds)
        for sample, seconds in zip(made_up().samples, wholes, strict=True)
    )
    noisy = Latencies(analysed().fingerprint, tuple(samples))
    model = LatencyModel(cost_model(analysed()), noisy)
    assert model.after(None) == pytest.approx(noisy.dense)
    first, second = data.draw(st.integers(2, 96)), data.draw(st.integers(2, 128))
    now = model.after(keeping(first, second))
    rounding = 1 + 1e-12
    assert now <= noisy.dense * rounding
    assert model.after(keeping(first - 1, second)) <= now * rounding
    assert model.after(keeping(first, second - 1)) <= now * rounding


@pytest.fixture
def device() -> Iterator[Callable[[], float]]:
    """The clock of a device where a layer takes 1 ns per weight and a whole a share on top."""
    now = 0.0

    def ran(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal now
        if isinstance(module, nn.Linear):
            now += 1e-9 * module.weight.numel()
        elif isinstance(module, GraphModule):
            total = sum(1e-9 * p.numel() for p in module.parameters() if p.dim() == 2)
            now += total * total / DENSE / 4

    def clock() -> float:
        return now

    hook = register_module_forward_hook(ran)
    yield clock
    hook.remove()


DENSE = 1e-9 * (64 * 96 + 96 * 128 + 128 * 4)


@pytest.mark.parametrize("share", [0.8, 0.6, 0.3])
def test_what_wholes_take_beyond_their_nodes_shrinks_with_them(
    device: Callable[[], float], share: float
) -> None:
    latencies = fxprune.measure_latencies(analysed(), EXAMPLE, repetitions=1, clock=device)
    assert latencies.dense == pytest.approx(1.25 * DENSE)
    plan = fxprune.plan(analysed(), budget=Budget(latency=share), latencies=latencies)
    pruned = fxprune.rewrite(analysed().traced, plan)
    predicted = LatencyModel(cost_model(analysed()), latencies).after(plan)
    ((measured,),) = time_modules((pruned,), (EXAMPLE,), 1, device)
    assert predicted == pytest.approx(measured, rel=0.02)
    assert predicted <= share * latencies.dense


def test_measured_times_are_kept_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "latencies.json"
    first = fxprune.measure_latencies(analysed(), EXAMPLE, file, repetitions=1)
    assert fxprune.measure_latencies(analysed(), EXAMPLE, file, repetitions=1) == first
    fxprune.measure_latencies(analysed(), EXAMPLE[:3], file, repetitions=1)
    fxprune.measure_latencies(analysed(), EXAMPLE, file, round_to=8, repetitions=1)
    fxprune.measure_latencies(analysed(), EXAMPLE, file, repetitions=1, clock=time.process_time)
    stored = json.loads(file.read_text())
    assert len(stored["latencies"]) == 4  # other sizes, multiples, clocks: other times
    assert all(all(s > 0 for s in sample.seconds.values()) for sample in first.samples)
    for version in (1, 99):  # the first one had no times of wholes
        file.write_text(json.dumps({**stored, "version": version}))
        with pytest.raises(PlanError, match="no file of latencies"):
            fxprune.measure_latencies(analysed(), EXAMPLE, file)


def test_prune_measures_plans_and_compares(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 2048), nn.ReLU(), nn.Linear(2048, 256))
    file = tmp_path / "latencies.json"
    x = torch.randn(64, 256)
    result = fxprune.prune(model, x, budget=Budget(latency=0.6), latency_file=file)
    latency = result.report.latency
    assert latency is not None
    assert latency.predicted <= 0.6 * latency.dense
    assert latency.measured < latency.dense  # 40% less work; how close, a benchmark says
    assert "latency, predicted" in str(result.report)
    assert file.exists()


def test_modules_keep_their_modes_and_are_timed_in_turns() -> None:
    order = []

    class Spy(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            order.append((self.name, self.training, torch.is_grad_enabled()))
            return x

    first, second = Spy("first"), Spy("second").eval()
    times = time_modules((first, second), (EXAMPLE,), repetitions=2)
    assert [len(own) for own in times] == [2, 2]
    assert order == [("first", False, False), ("second", False, False)] * 3
    assert (first.training, second.training) == (True, False)
