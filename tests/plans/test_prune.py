"""`prune`: one call from a model to a smaller one, and a report that tells the truth."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.plans.fakes import slow_norm


class Net(nn.Module):
    """A residual sum, a grouped convolution, batch norms and a flatten before the classifier."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.reduce = nn.Conv2d(width, width, 1)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, width, 1)
        self.classifier = nn.Linear(width * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.norm(self.grouped(torch.relu(self.reduce(x)))))
        x = x + self.expand(y)
        return self.classifier(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def alive(model: nn.Module) -> nn.Module:
    """Running statistics and offsets other than 0 and 1, so that a wrong index shows."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.rand_like(tensor)
                tensor.copy_(noise + 0.5 if "norm" in name else noise - 0.3)
    return model.eval().double()


INPUTS = torch.randn(2, 3, 8, 8, dtype=torch.float64)


@pytest.fixture
def model() -> nn.Module:
    return alive(Net())


def masked(model: nn.Module, plan: fxprune.PruningPlan) -> nn.Module:
    zeroed = copy.deepcopy(model)
    masks = plan.masks()
    with torch.no_grad():
        for name, tensor in [*zeroed.named_parameters(), *zeroed.named_buffers()]:
            if name in masks:
                tensor.mul_(masks[name])
    return zeroed


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("criterion", ["magnitude", "l1", "linf", "random"])
def test_the_result_equals_the_masked_model(model: nn.Module, criterion: str, scope: str) -> None:
    result = fxprune.prune(model, INPUTS, sparsity=0.5, criterion=criterion, scope=scope)
    assert not result.plan.is_empty
    inputs = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    expected = masked(model, result.plan)(inputs)
    torch.testing.assert_close(result.module(inputs), expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(model(inputs), expected)  # the masks do remove something


def test_the_model_is_left_alone(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    result = fxprune.prune(model, INPUTS, sparsity=0.5)
    with torch.no_grad():
        for parameter in result.module.parameters():
            parameter.add_(1)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_report_counts_what_is_there(model: nn.Module) -> None:
    result = fxprune.prune(model, INPUTS, sparsity=0.5)
    report, masks = result.report, result.plan.masks()
    assert report.parameters_before == sum(p.numel() for p in model.parameters())
    assert report.parameters_after == sum(p.numel() for p in result.module.parameters())
    kept = sum(
        int(masks[n].sum()) if n in masks else p.numel() for n, p in model.named_parameters()
    )
    assert report.parameters_after == kept
    assert [row.name for row in report.groups] == [g.name for g in result.analysis.groups]
    assert report.frozen == len(result.analysis.frozen)
    # The residual stream's 8 units own: stem 8 x 27 + 8, the columns of reduce 8 x 8, expand
    # 8 x 8 + 8, classifier 5 x 32. Half of them go, and so do half of the units on the branch.
    stream = next(row for row in report.groups if row.name == "stem.weight:0")
    assert stream.parameters_before == 224 + 64 + 72 + 160
    assert stream.parameters_after == 112 + 16 + 20 + 80
    assert [row.contexts for row in report.groups if row.units_after < row.units_before] == [
        1,
        2,
        2,
    ]
    text = str(report)
    for row in report.groups:
        assert (f"\n{row.name} " in text) == (row.units_after < row.units_before)
    # 288 weights and 8 biases of the grouped convolution, 16 of the norm, 64 columns of expand.
    grouped = next(row for row in report.groups if row.name == "grouped.weight:0")
    assert (grouped.parameters_before, grouped.parameters_after) == (376, 100)
    flat = " ".join(text.split())
    assert "grouped.weight:0 2 x 4 2 x 2 376 → 100 " in flat
    assert f"parameters {report.parameters_before:,} {report.parameters_after:,} " in flat


def test_the_rows_of_a_chain() -> None:
    """Linear(3, 4) -> Linear(4, 2): each of 4 units owns 3 + 1 + 2 entries."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    result = fxprune.prune(model, torch.randn(2, 3), sparsity=0.5)
    (row,) = result.report.groups
    assert (row.units_before, row.units_after) == (4, 2)
    assert (row.parameters_before, row.parameters_after) == (24, 12)
    assert str(result.report).splitlines() == [
        "group         units    kept    parameters     MACs    bytes  maskable",
        "----------  -------  ------  ------------  -------  -------  ----------",
        "0.weight:0        4       2       24 → 12  20 → 10  32 → 16  yes",
        "1 of 1 prunable groups are smaller; 2 groups are frozen.",
        "",
        "network             before    after    left",
        "----------------  --------  -------  ------",
        "parameters              26       14   53.8%",
        "MACs                    20       10   50.0%",
        "activation bytes        40       24   60.0%",
    ]
    assert repr(result).startswith("PruneResult(PruningPlan('magnitude', sparsity=0.5")


class Concatenated(nn.Module):
    """Two layers side by side, read by one."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 4)
        self.right = nn.Linear(3, 6)
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(torch.cat([self.left(x), self.right(x)], dim=1)))


def test_the_rows_of_a_concatenation() -> None:
    """A unit owns 3 + 1 entries where it is made and 2 where it is read, not its neighbour's."""
    result = fxprune.prune(Concatenated(), torch.randn(2, 3), sparsity=0.5)
    counts = [(row.parameters_before, row.parameters_after) for row in result.report.groups]
    assert counts == [(4 * 6, 2 * 6), (6 * 6, 3 * 6)]


def test_arguments_reach_the_plan(model: nn.Module) -> None:
    def only_stem(group: fxprune.Group) -> bool:
        return group.name.startswith("stem")

    result = fxprune.prune(model, INPUTS, 0.25, "l1", "global", only_stem)
    assert (result.plan.sparsity, result.plan.criterion, result.plan.scope) == (
        0.25,
        "l1",
        "global",
    )
    assert result.plan.kept_units
    assert all(name.startswith("stem") for name in result.plan.kept_units)


def test_a_run_that_pruned_nothing_says_so(model: nn.Module) -> None:
    with pytest.warns(fxprune.NothingPrunedWarning, match="NOTHING IS PRUNED"):
        result = fxprune.prune(model, INPUTS, sparsity=0.01)
    assert str(result.report).startswith("NOTHING WAS PRUNED.\n0 of ")
    torch.testing.assert_close(result.module(INPUTS), model(INPUTS))


def test_wrong_arguments_are_refused(model: nn.Module) -> None:
    with pytest.raises(fxprune.PlanError, match="Pass sparsity="):
        fxprune.prune(model, INPUTS)
    with pytest.raises(fxprune.PlanError, match="no criterion 'taylr'"):
        fxprune.prune(model, INPUTS, sparsity=0.5, criterion="taylr")
    with pytest.raises(fxprune.PlanError, match="Nothing in this graph may be pruned"):
        fxprune.prune(nn.Sequential(nn.Linear(3, 4)), torch.randn(2, 3), sparsity=0.5)


def test_a_plan_survives_its_text_and_fits_a_fresh_model(model: nn.Module) -> None:
    result = fxprune.prune(model, INPUTS, sparsity=0.5)
    fresh = fxprune.analyze(fxprune.trace(alive(Net()), INPUTS))
    plan = fxprune.PruningPlan.from_json(result.plan.to_json(), fresh)
    assert plan == result.plan
    other = fxprune.analyze(fxprune.trace(alive(Net(width=12)), INPUTS))
    with pytest.raises(fxprune.PlanError, match="made for another graph"):
        fxprune.PruningPlan.from_json(result.plan.to_json(), other)


def test_every_free_group_can_be_sliced_and_scored(model: nn.Module) -> None:
    analysis = fxprune.analyze(fxprune.trace(model, INPUTS))
    scores = fxprune.score(analysis)
    assert list(scores) == [group.name for group in analysis.groups]
    for group in analysis.groups:
        for member, entries in group.slices(analysis.parameters):
            summed = member.reduce(analysis.parameters[member.parameter], group)
            torch.testing.assert_close(entries.sum(-1), summed)
        expected = slow_norm(group, analysis.parameters, 2)
        torch.testing.assert_close(scores[group.name], expected)
