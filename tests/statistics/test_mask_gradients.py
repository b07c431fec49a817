"""Mask gradients: against derivatives of losses with the mask written into the weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxprune import Group, Statistics, score
from tests.statistics.networks import Problem, problem, problems, randomized

few = settings(max_examples=25, deadline=None)


def literal(problem: Problem, group: Group) -> Tensor:
    """∂L_n/∂m_k with m on the columns of the consumers' weights, sample by sample."""
    named = dict(problem.analysis.traced.named_parameters())

    def losses(mask: Tensor) -> Tensor:
        masked = dict(named)
        for member in group.members:
            if member.role == "consumer":
                weight = masked[member.parameter]
                masked[member.parameter] = weight * member.spread(mask, group, 1.0, weight.dim())
        return problem.losses(masked)

    return torch.autograd.functional.jacobian(losses, torch.ones(group.shape).double())


def agree(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@few
@given(problems())
def test_they_are_the_products_of_consumers_and_their_gradients(problem: Problem) -> None:
    statistics = Statistics(problem.analysis, problem.data)
    assert problem.analysis.groups
    for group in problem.analysis.groups:
        agree(statistics.mask_grads(group), literal(problem, group))


class Pairs(nn.Module):
    """A layer reads the products of all pairs of features, over the second of each pair."""

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.features, self.mix, self.head = nn.Linear(4, 5), mix, nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(torch.tanh(self.mix(x.unsqueeze(2) * x.unsqueeze(1))).flatten(1))


class Product(nn.Module):
    """A linear layer, written as a product of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


@pytest.mark.parametrize("mix", [nn.Linear(5, 2), Product()], ids=["linear", "product"])
def test_a_tensor_that_holds_units_twice_is_summed_over_one_dimension(mix: nn.Module) -> None:
    inputs = torch.randn(3, 4, dtype=torch.float64)
    case = problem(randomized(Pairs(mix)), inputs, torch.tensor([0, 1, 2]))
    statistics = Statistics(case.analysis, case.data)
    assert len(case.analysis.groups) == 2
    for group in case.analysis.groups:
        agree(statistics.mask_grads(group), literal(case, group))


class Gram(nn.Module):
    """The products of all pairs of features, summed or normed over one of each pair.

    A mask leaves out terms of the sum, which are the squares for a norm.
    """

    def __init__(self, over: str, dim: int) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.over, self.dim = over, dim

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.features(x)
        pairs = x.unsqueeze(2) * x.unsqueeze(1)
        if mask is None:
            sums = pairs.sum(self.dim) if self.over == "sum" else pairs.norm(dim=self.dim)
            return self.head(torch.tanh(sums))
        terms = (pairs if self.over == "sum" else pairs.square()) * mask.unsqueeze(2 - self.dim)
        sums = terms.sum(self.dim) if self.over == "sum" else terms.sum(self.dim).sqrt()
        return self.head(torch.tanh(sums) * mask)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("over", ["sum", "norm"])
def test_so_is_one_that_is_only_summed(over: str, dim: int) -> None:
    inputs = torch.randn(3, 4, dtype=torch.float64)
    case = problem(randomized(Gram(over, dim)), inputs, torch.tensor([0, 1, 2]))
    (group,) = case.analysis.groups

    def losses(mask: Tensor) -> Tensor:
        outputs = case.model(inputs, mask)
        return nn.functional.cross_entropy(outputs, case.targets, reduction="none")

    expected = torch.autograd.functional.jacobian(losses, torch.ones(5).double())
    agree(Statistics(case.analysis, case.data).mask_grads(group), expected)


@few
@given(problems(), st.integers(1, 3))
def test_batches_and_their_parts_do_not_matter(problem: Problem, limit: int) -> None:
    whole = Statistics(problem.analysis, problem.data)
    batches = list(zip(problem.inputs.split(limit), problem.targets.split(limit), strict=True))
    for other in (
        Statistics(problem.analysis, problem.data, micro_batch=limit),
        Statistics(problem.analysis, iter(batches)),
    ):
        for group in problem.analysis.groups:
            agree(other.mask_grads(group), whole.mask_grads(group))


@few
@given(problems())
def test_fisher_is_a_quadratic_form_of_the_empirical_fisher(problem: Problem) -> None:
    """½ mean_n G² = ½ θᵀFθ over a unit's whole block of consumer weights."""
    scores = score(problem.analysis, "fisher", problem.data)
    named = dict(problem.analysis.traced.named_parameters())
    for group in problem.analysis.groups:
        members = [m for m in group.members if m.role == "consumer"]
        names = sorted({m.parameter for m in members})

        def losses(*weights: Tensor, names: list[str] = names) -> Tensor:
            return problem.losses(dict(zip(names, weights, strict=True)))

        weights = tuple(named[name].detach() for name in names)
        jacobian = dict(
            zip(names, torch.autograd.functional.jacobian(losses, weights), strict=True)
        )
        blocks, gradients = [], []
        for member in members:
            blocks.append(member.entries(named[member.parameter].detach(), group))
            gradients.append([member.entries(g, group) for g in jacobian[member.parameter]])
        theta = torch.cat(blocks, -1)
        g = torch.stack([torch.cat(parts, -1) for parts in zip(*gradients, strict=True)])
        fisher = torch.einsum("n...i,n...j->...ij", g, g) / len(g)
        expected = 0.5 * torch.einsum("...i,...ij,...j->...", theta, fisher, theta)
        agree(scores[group.name], expected)
