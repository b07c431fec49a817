"""Criteria that need data, against their formulas written out."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import fxprune
from fxprune import LeftWholeWarning, PlanError, PruningPlan, Statistics, cost, score
from fxprune.criteria import Fisher, Flap, Grasp, SnipWeight
from tests.statistics import literal
from tests.statistics.networks import Problem, problems

few = settings(max_examples=8, deadline=None)


def agree(actual: Tensor, expected: list[float] | Tensor, tolerance: float = 1e-10) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def scores_of(problem: Problem, criterion: object) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftWholeWarning)
        return score(problem.analysis, criterion, problem.data)


FROM_MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "skeletonization": lambda g: torch.stack([-sum(column) / len(g) for column in g.T]),
    "taylor": lambda g: torch.stack([abs(sum(column) / len(g)) for column in g.T]),
    "snip": lambda g: torch.stack([abs(sum(column) / len(g)) for column in g.T]),
    "molchanov2017": lambda g: (
        torch.stack([sum(map(abs, column)) for column in g.T])
        / sum(sum(map(abs, column)) ** 2 for column in g.T) ** 0.5
    ),
    "molchanov2019": lambda g: torch.stack([(sum(column) / len(g)) ** 2 for column in g.T]),
    "fisher": lambda g: torch.stack([sum(c * c for c in col) / (2 * len(g)) for col in g.T]),
}


@few
@given(problems(activations=("tanh", "gelu", "silu")))
def test_criteria_from_finite_differences_of_masked_losses(problem: Problem) -> None:
    all_scores = {name: scores_of(problem, name) for name in FROM_MASKS}
    for group in problem.analysis.groups:
        slopes = torch.tensor(
            [
                [literal.mask_gradient(problem, group, n, k) for k in range(group.size)]
                for n in range(len(problem.inputs))
            ],
            dtype=torch.float64,
        )
        for name, formula in FROM_MASKS.items():
            agree(all_scores[name][group.name], formula(slopes), 1e-8)


@few
@given(problems())
@pytest.mark.parametrize("name", ["apoz", "mean_activation", "wanda_sp", "snip_weight", "hrank"])
def test_criteria_from_loops_over_entries(name: str, problem: Problem) -> None:
    formula = getattr(literal, name)
    if name == "hrank" and all(
        view.inputs.dim() == 2
        for group in problem.analysis.groups
        for view in literal.seen(problem, group)
    ):
        return
    found = scores_of(problem, name)
    for group in problem.analysis.groups:
        expected = [formula(problem, group, unit) for unit in range(group.size)]
        if None in expected:
            assert group.name not in found
        else:
            agree(found[group.name], expected)


@few
@given(problems())
def test_snip_of_weights_on_both_sides(problem: Problem) -> None:
    sides = ("producer", "consumer")
    found = scores_of(problem, SnipWeight(sides))
    for group in problem.analysis.groups:
        expected = [literal.snip_weight(problem, group, unit, sides) for unit in range(group.size)]
        agree(found[group.name], expected)


@few
@given(problems())
def test_flap(problem: Problem) -> None:
    raw, standardised = scores_of(problem, Flap(standardise=False)), scores_of(problem, "flap")
    for group in problem.analysis.groups:
        expected = [literal.flap(problem, group, unit) for unit in range(group.size)]
        agree(raw[group.name], expected)
        mean = sum(expected) / len(expected)
        deviation = (sum((e - mean) ** 2 for e in expected) / len(expected)) ** 0.5
        if deviation > 1e-8:
            agree(standardised[group.name], [(e - mean) / deviation for e in expected], 1e-6)


@few
@given(problems())
def test_mutual_information(problem: Problem) -> None:
    """Σ |h ∂L_n/∂h| with gradients by the inputs of the layers that read, from eager hooks."""
    found = scores_of(problem, "mutual_information")
    for group in problem.analysis.groups:
        expected = torch.zeros(group.size, dtype=torch.float64)
        for member in group.members:
            if member.role != "consumer":
                continue
            inputs, slopes = _input_gradients(problem, member.parameter.rpartition(".")[0])
            for column, unit in literal.owned(member):
                for h, s in zip(
                    inputs[:, column].reshape(-1), slopes[:, column].reshape(-1), strict=True
                ):
                    expected[unit] += abs(h * s) / len(inputs)
        agree(found[group.name], expected)


def _input_gradients(problem: Problem, layer: str) -> tuple[Tensor, Tensor]:
    kept: list[Tensor] = []

    def keep(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        kept.append(args[0].clone())
        kept[0].retain_grad()
        return (kept[0],)

    hook = problem.model.get_submodule(layer).register_forward_pre_hook(keep)
    out = problem.model(problem.inputs)
    hook.remove()
    loss = torch.nn.functional.cross_entropy(out, problem.targets, reduction="sum")
    (slopes,) = torch.autograd.grad(loss, kept[:1])
    return kept[0].detach(), slopes


@few
@given(problems(activations=("tanh", "gelu", "silu")))
def test_grasp_from_finite_differences_of_gradients(problem: Problem) -> None:
    """Hg is the slope of the gradient along g, with outputs divided by the temperature."""
    found = scores_of(problem, Grasp(temperature=2.0))
    names = list(dict(problem.model.named_parameters()))
    weights = {n: p.detach().clone() for n, p in problem.model.named_parameters()}

    def gradient(shift: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = {n: (weights[n] + shift.get(n, 0)).requires_grad_() for n in names}
        out = torch.func.functional_call(problem.model, moved, (problem.inputs,)) / 2
        loss = torch.nn.functional.cross_entropy(out, problem.targets)
        return dict(zip(names, torch.autograd.grad(loss, list(moved.values())), strict=True))

    g, h = gradient({}), 1e-4
    ahead = gradient({n: h * v for n, v in g.items()})
    behind = gradient({n: -h * v for n, v in g.items()})
    flow = {n: (ahead[n] - behind[n]) / (2 * h) for n in names}
    for group in problem.analysis.groups:
        expected = torch.zeros(group.size, dtype=torch.float64)
        for member in group.members:
            if member.role == "consumer":
                for column, unit in literal.owned(member):
                    w, f = weights[member.parameter][:, column], flow[member.parameter][:, column]
                    expected[unit] += (w * f).sum()
        agree(found[group.name], expected, 1e-7)


@few
@given(problems())
def test_the_diagonal_fisher_sample_by_sample(problem: Problem) -> None:
    statistics = Statistics(problem.analysis, problem.data)
    samples = [literal.gradients(problem, n) for n in range(len(problem.inputs))]
    for name, diagonal in statistics.fisher_diag().items():
        agree(diagonal, sum(g[name] ** 2 for g in samples) / len(samples))
    for name, mean in statistics.param_grads().items():
        agree(mean, sum(g[name] for g in samples) / len(samples))


@few
@given(problems())
def test_fisher_with_a_cost_weighs_what_a_unit_saves(problem: Problem) -> None:
    """The saving is counted as the difference of two networks' costs."""
    rises = scores_of(problem, "fisher")
    whole = cost(problem.analysis)
    per_mac, paid = (
        scores_of(problem, Fisher("macs")),
        scores_of(problem, Fisher("parameters", 1e-3)),
    )
    for group in problem.analysis.groups:
        less = {group.name: list(range(group.size - 1))}
        after = cost(problem.analysis, PruningPlan.build(problem.analysis, less))
        rise = rises[group.name]
        agree(per_mac[group.name], rise / (whole.macs - after.macs))
        agree(paid[group.name], rise - 1e-3 * (whole.parameters - after.parameters))


def test_a_cost_is_that_after_a_plan() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4, bias=False) for _ in range(3)))
    x, y = torch.randn(3, 4), torch.randint(4, (3,))
    analysis = fxprune.analyze(fxprune.trace(model, x))
    first, second = analysis.groups
    after = PruningPlan.build(analysis, {second.name: [0]})
    assert Statistics(analysis, [(x, y)]).cost_delta(first).macs == 8
    assert Statistics(analysis, [(x, y)], after=after).cost_delta(first).macs == 5
    assert Statistics(analysis, [(x, y)], after=after).cost_delta(second).macs == 0


def test_a_cost_without_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="the cost is one of macs, parameters, activation_memory"):
        Fisher("flops")
    with pytest.raises(ValueError, match="needs a cost"):
        Fisher(exchange=1.0)


def test_data_are_asked_for() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    analysis = fxprune.analyze(fxprune.trace(model, torch.randn(1, 2)))
    with pytest.raises(PlanError, match="needs data"):
        score(analysis, "fisher")
