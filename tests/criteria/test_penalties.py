"""Penalties: their values entry by entry, their gradients, and what the proximal step minimises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune import AnalysisError
from fxprune.groups import Group
from fxprune.penalties import GroupLasso, GroupNorm, GrowingL2, Slimming
from tests.criteria.networks import IMAGES, Residual, analyzed, chain, randomized
from tests.plans.fakes import Case, cases, consumer, indices, owner, producer, slow_norm


class Holder(nn.Module):
    """Parameters by name."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in parameters.items():
            self.register_parameter(name, nn.Parameter(tensor.clone()))


def counts(case: Case) -> Tensor:
    ones = {name: torch.ones_like(tensor) for name, tensor in case.parameters.items()}
    return slow_norm(case.group, ones, 1)


@given(cases(max_members=4), st.sampled_from([1.0, 2.0, math.inf]))
def test_group_norms(case: Case, order: float) -> None:
    penalty = GroupNorm((case.group,), 0.3, order)(Holder(case.parameters))
    expected = 0.3 * slow_norm(case.group, case.parameters, order).sum()
    torch.testing.assert_close(penalty, expected, rtol=1e-10, atol=1e-10)


@given(cases(max_members=4))
def test_group_lasso(case: Case) -> None:
    penalty = GroupLasso((case.group,), 0.3)(Holder(case.parameters))
    expected = 0.3 * (counts(case).sqrt() * slow_norm(case.group, case.parameters, 2)).sum()
    torch.testing.assert_close(penalty, expected, rtol=1e-10, atol=1e-10)


@given(cases(max_members=1), st.floats(0.01, 2))
def test_the_proximal_step_shrinks_each_unit(case: Case, rate: float) -> None:
    holder = Holder(case.parameters)
    GroupLasso((case.group,), 0.7).proximal_step(holder, rate)
    norms = slow_norm(case.group, case.parameters, 2).reshape(case.group.contexts, -1)
    roots = counts(case).sqrt().reshape(norms.shape)
    (member,) = case.group.members
    before, after = case.parameters[member.parameter], holder.get_parameter(member.parameter)
    for index in indices(tuple(before.shape)):
        place = owner(member, index)
        factor = 1.0 if place is None else max(0, 1 - rate * 0.7 * roots[place] / norms[place])
        assert float(after[index].detach()) == pytest.approx(float(before[index] * factor))


def test_the_proximal_step_solves_its_problem() -> None:
    """No point near it has a lower |x - θ|²/2 + rate * penalty."""
    units = torch.arange(3)
    group = Group("g", 3, members=(producer("w", 0, units), consumer("v", 1, units)))
    start = {
        "w": torch.tensor([[3.0, 4], [0.1, 0.2], [-1, 2]], dtype=torch.float64),
        "v": torch.tensor([[1.0, -0.1, 2], [0, 0.1, 0.5]], dtype=torch.float64),
    }
    lasso, rate = GroupLasso((group,), 0.5), 0.4

    def objective(point: Holder) -> float:
        moved = sum(
            ((p.detach() - start[name]) ** 2).sum() / 2 for name, p in point.named_parameters()
        )
        return float(moved + rate * lasso(point).detach())

    found = Holder(start)
    lasso.proximal_step(found, rate)
    assert found.get_parameter("w")[1].tolist() == [0, 0]
    assert found.get_parameter("v")[:, 1].tolist() == [0, 0]
    lowest = objective(found)
    for _ in range(300):
        near = Holder({n: p.detach() for n, p in found.named_parameters()})
        with torch.no_grad():
            for parameter in near.parameters():
                parameter.add_(torch.randn_like(parameter) * 10 ** -(4 * float(torch.rand(1))))
        assert objective(near) >= lowest - 1e-12


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_a_unit_that_is_zero_has_no_gradient(order: float) -> None:
    group = Group("g", 2, members=(producer("w", 0, torch.arange(2)),))
    holder = Holder({"w": torch.tensor([[0.0, 0.0], [3.0, 4.0]])})
    GroupNorm((group,), 1.0, order)(holder).backward()
    gradient = holder.get_parameter("w").grad
    assert gradient is not None
    assert gradient[0].tolist() == [0, 0]
    expected = {1: [1, 1], 2: [0.6, 0.8], math.inf: [0, 1]}[order]
    assert gradient[1].tolist() == pytest.approx(expected)


def test_training_with_a_lasso_makes_units_vanish_that_a_plan_then_removes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 1))
    x = torch.randn(256, 4)
    y = (x[:, :1] - x[:, 1:2]).relu()
    analysis = analyzed(model, x)
    lasso = GroupLasso(analysis.groups, 2e-2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        lasso.proximal_step(model, 0.05)
    (scores,) = fxprune.score(analyzed(model, x)).values()
    zero = int((scores == 0).sum())
    assert 3 <= zero < 12
    plan = fxprune.plan(analysis, "magnitude", sparsity=zero / 12)
    with torch.no_grad():  # a unit without weights still has its bias, which leads nowhere
        pruned = fxprune.rewrite(analysis.traced, plan)
        torch.testing.assert_close(pruned(x), model(x))


def test_slimming_is_the_subgradient_of_the_scales() -> None:
    model = randomized(Residual(4, 3, nn.ReLU), 0)
    analysis = analyzed(model, IMAGES)
    slimming = Slimming.of(analysis, 0.01)
    names = [f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in (1, 4)]
    assert slimming.scales == tuple(names)
    model(IMAGES).sum().backward()
    with torch.no_grad():
        model.get_parameter(names[0])[0] = 0
    before = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    slimming.add_gradients(model)
    for name, parameter in model.named_parameters():
        if name in names:
            expected = before[name] + 0.01 * parameter.detach().sign()
            assert parameter.grad.equal(expected)
            assert name != names[0] or expected[0] == before[name][0]
        else:
            assert parameter.grad.equal(before[name])


def test_slimming_without_a_gradient_is_the_gradient() -> None:
    model = randomized(Residual(4, 3, nn.ReLU), 0)
    slimming = Slimming.of(analyzed(model, IMAGES), 0.5)
    slimming.add_gradients(model)
    gamma = model.get_parameter(slimming.scales[0])
    assert gamma.grad.equal(0.5 * gamma.detach().sign())


def test_slimming_needs_batch_norms() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(AnalysisError, match="Slimming needs batch normalisations"):
        Slimming.of(analyzed(model, torch.randn(2, 3)))


def test_the_growing_penalty_is_on_what_goes_only() -> None:
    model = randomized(chain([4, 3, 6], nn.ReLU), 0)
    analysis = analyzed(model, IMAGES)
    plan = fxprune.plan(analysis, "random", sparsity=0.5)
    growing = GrowingL2(plan, step=0.2, every=5, ceiling=0.7)
    assert [growing.strength(i) for i in (0, 4, 5, 14, 20, 1000)] == pytest.approx(
        [0, 0, 0.2, 0.4, 0.7, 0.7]
    )
    expected = torch.zeros(())
    for group in analysis.groups:
        for member, entries in group.slices(model.state_dict()):
            if member.role in ("producer", "consumer"):
                expected = expected + (entries[~plan.kept_mask(group)] ** 2).sum()
    torch.testing.assert_close(growing(model, 10), 0.4 / 2 * expected)
    growing(model, 10).backward()
    masks = plan.masks()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert bool((parameter.grad[masks[name]] == 0).all())


def test_another_modules_parameters_are_refused() -> None:
    analysis = analyzed(randomized(chain([4, 3], nn.ReLU), 0), IMAGES)
    with pytest.raises(AnalysisError, match="has no weights among the module's parameters"):
        GroupNorm(analysis.groups, 1.0)(nn.Linear(3, 3))
    with pytest.raises(AnalysisError, match="has no weights among the module's parameters"):
        GroupNorm(analysis.groups, 1.0, math.inf)(nn.Linear(3, 3))
