"""Recovery without training: against the definition, and where it is exact."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import AnalysisError, PlanError, PruningPlan
from fxprune.compensation import compensate, recalibrate
from tests.criteria.networks import (
    IMAGES,
    Attentive,
    Residual,
    analyzed,
    chain,
    randomized,
)

BATCHES = [torch.randn(n, 2, 4, 4, dtype=torch.float64) for n in (5, 3)]


def removing(analysis: fxprune.Analysis, gone: dict[str, Any]) -> PruningPlan:
    """The plan that removes these units of the groups; a row per context where there are any."""
    groups = {group.name: group for group in analysis.groups}
    kept: dict[str, Any] = {}
    for name, rows in gone.items():
        size, several = groups[name].size, groups[name].contexts > 1
        left = [[u for u in range(size) if u not in row] for row in (rows if several else [rows])]
        kept[name] = left if several else left[0]
    return PruningPlan.build(analysis, kept)


class Plain(nn.Module):
    """Convolutions without padding, one of them grouped, then linear layers."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 1)
        self.second = nn.Conv2d(6, 8, 3, bias=bias)
        self.third = nn.Conv2d(8, 8, 1, groups=2, bias=bias)
        self.last = nn.Linear(8 * 4, 5, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(self.third(self.second(x).tanh()).sigmoid().flatten(1))


def constant(model: nn.Module, layer: str, units: list[int]) -> None:
    """Let units of a layer ignore their inputs."""
    with torch.no_grad():
        model.get_parameter(f"{layer}.weight")[units] = 0


@pytest.mark.parametrize("bias", [True, False])
def test_constant_units_are_removed_exactly(bias: bool) -> None:
    model = randomized(Plain(bias), 0).double()
    for layer, units in (("first", [1, 4]), ("third", [0, 6])):
        constant(model, layer, units)
    analysis = analyzed(model, BATCHES[0])
    plan = removing(analysis, {"first.weight:0": [1, 4], "third.weight:0": [[0], [2]]})
    pruned = fxprune.rewrite(analysis.traced, plan)
    x = torch.randn(4, 2, 4, 4, dtype=torch.float64)
    assert float((pruned(x) - model(x)).detach().abs().max()) > 1e-3
    report = compensate(analysis, plan, pruned, BATCHES)
    assert report.layers == ("second", "last")
    assert report.skipped == ()
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-10, atol=1e-10)


def test_zero_padding_is_made_up_for_inside_only() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)).double()
    with torch.no_grad():
        model.get_parameter("0.bias")[2] = 1.5
    constant(model, "0", [2])
    analysis = analyzed(model.eval(), BATCHES[0])
    plan = PruningPlan.build(analysis, {"0.weight:0": [0, 1, 3]})
    pruned = fxprune.rewrite(analysis.traced, plan)
    compensate(analysis, plan, pruned, BATCHES)
    difference = (pruned(BATCHES[0]) - model(BATCHES[0])).detach().abs().amax((0, 1))
    assert float(difference[1:-1, 1:-1].max()) < 1e-12
    assert float(difference[0, 0]) > 1e-3


def test_a_bias_takes_over_the_mean_of_what_was_removed() -> None:
    """By hand for the second layer: the mean over samples and positions of the data."""
    model = randomized(Plain(), 1).double()
    analysis = analyzed(model, BATCHES[0])
    plan = removing(analysis, {"first.weight:0": [0, 5], "third.weight:0": [[1], [1]]})
    pruned = fxprune.rewrite(analysis.traced, plan)
    weight, bias = model.get_parameter("second.weight"), model.get_parameter("second.bias")
    hidden = torch.cat([model.get_submodule("first")(batch).relu() for batch in BATCHES])
    means = hidden.mean((0, 2, 3))
    lost = sum(weight[:, unit].sum((1, 2)) * means[unit] for unit in (0, 5))
    compensate(analysis, plan, pruned, BATCHES)
    torch.testing.assert_close(pruned.get_parameter("second.bias"), bias + lost)


@torch.no_grad()
@pytest.mark.parametrize("sparsity", [0.4, 0.6])  # inputs of every group; a whole group, too
def test_a_grouped_convolution_reads_its_own_inputs(sparsity: float) -> None:
    model = randomized(Plain(), 2).double()
    analysis = analyzed(model, BATCHES[0])
    plan = fxprune.plan(analysis, "random", sparsity, groups=lambda g: "second" in g.name)
    pruned = fxprune.rewrite(analysis.traced, plan)
    before = pruned.get_parameter("third.bias").clone()
    compensate(analysis, plan, pruned, BATCHES)
    means = torch.cat([model.second(model.first(x).relu()).tanh() for x in BATCHES]).mean((0, 2, 3))
    masks = plan.masks()
    read = [m for name in plan.kept_units for m in plan.group(name).members]
    assert {m.parameter for m in read if m.role == "consumer"} >= {"third.weight"}
    weight = model.get_parameter("third.weight")
    rows = masks["third.bias"].nonzero()[:, 0] if "third.bias" in masks else torch.arange(8)
    assert len(rows) == (8 if sparsity < 0.5 else 4)
    lost = [
        sum(
            float(weight[row, column] * means[4 * (row // 4) + column])
            for column in range(4)
            if not masks["third.weight"][row, column]
        )
        for row in rows.tolist()
    ]
    after = pruned.get_parameter("third.bias")
    torch.testing.assert_close(after - before, torch.tensor(lost).double())


def test_the_outputs_of_a_linear_layer_keep_their_mean() -> None:
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    x = torch.randn(50, 4, dtype=torch.float64)
    analysis = analyzed(model, x)
    plan = fxprune.plan(analysis, "magnitude", sparsity=0.6)
    pruned = fxprune.rewrite(analysis.traced, plan)
    compensate(analysis, plan, pruned, [x])
    torch.testing.assert_close(pruned(x).mean(0), model(x).mean(0))


def test_a_norm_takes_the_place_of_a_bias() -> None:
    model = randomized(Residual(5, 4, nn.ReLU), 3).double()
    constant(model, "stem", [1])
    for block in (0, 1):
        constant(model, f"blocks.{block}.3", [1])  # unit 1 of the stream never sees the input
        constant(model, f"blocks.{block}.4", [1])
    analysis = analyzed(model, BATCHES[0])
    plan = removing(analysis, {"blocks.0.0.weight:0": [0, 2], "stem.weight:0": [1]})
    pruned = fxprune.rewrite(analysis.traced, plan)
    names = set(pruned.state_dict())
    before = pruned.get_buffer("blocks.0.1.running_mean").clone()
    report = compensate(analysis, plan, pruned, BATCHES)
    assert set(report.layers) == {"blocks.0.0", "blocks.1.0", "blocks.0.3", "same", "head"}
    assert set(pruned.state_dict()) == names
    assert not before.equal(pruned.get_buffer("blocks.0.1.running_mean"))


def test_what_other_ops_read_is_listed() -> None:
    model = Attentive().eval()
    tokens = torch.randint(11, (2, 4))
    analysis = analyzed(model, tokens)
    plan = fxprune.plan(analysis, "random", sparsity=0.5)
    pruned = fxprune.rewrite(analysis.traced, plan)
    report = compensate(analysis, plan, pruned, [tokens])
    assert "encoder.linear2" in report.layers
    assert "encoder.self_attn.out_proj.weight" in report.skipped


def test_the_original_stays_as_it_is() -> None:
    model = randomized(Residual(5, 4, nn.ReLU), 3).double().train()
    analysis = analyzed(model, BATCHES[0])
    before = copy.deepcopy(analysis.traced.state_dict())
    plan = fxprune.plan(analysis, "random", sparsity=0.5)
    pruned = fxprune.rewrite(analysis.traced, plan)
    compensate(analysis, plan, pruned, BATCHES)
    recalibrate(pruned, BATCHES)
    assert pruned.training
    assert analysis.traced.training
    after = analysis.traced.state_dict()
    assert all(before[name].equal(after[name]) for name in before)


def test_recalibrated_statistics_are_those_of_the_inputs() -> None:
    model = randomized(chain([4, 3], nn.ReLU), 4).double()
    analysis = analyzed(model, BATCHES[0])
    pruned = fxprune.rewrite(analysis.traced, fxprune.plan(analysis, "random", sparsity=0.5))
    inputs = [pruned.get_submodule("0")(batch) for batch in BATCHES]
    recalibrate(pruned, BATCHES)
    norm = pruned.get_submodule("1")
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert norm.momentum == 0.1
    assert not any(module.training for module in pruned.modules())


def test_recalibration_leaves_dropout_off() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.9), nn.BatchNorm1d(4), nn.Linear(4, 2))
    traced = fxprune.trace(model.eval(), torch.randn(8, 2))
    x = torch.randn(64, 2)
    recalibrate(traced, [(x, None)])
    expected = model.get_submodule("0")(x).mean(0)
    torch.testing.assert_close(traced.get_submodule("2").running_mean, expected)


def test_batches_by_name_may_hold_labels() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    traced = fxprune.trace(model.eval(), torch.randn(8, 2))
    recalibrate(traced, [{"input": torch.randn(8, 2), "labels": torch.zeros(8)}])


def test_what_cannot_be_done_is_an_error() -> None:
    bare = fxprune.trace(nn.Sequential(nn.Linear(2, 2)), torch.randn(2, 2))
    with pytest.raises(AnalysisError, match="no batch normalisation that keeps"):
        recalibrate(bare, [torch.randn(2, 2)])
    analysis = analyzed(randomized(chain([4, 3], nn.ReLU), 4), IMAGES)
    plan = fxprune.plan(analysis, "random", sparsity=0.5)
    pruned = fxprune.rewrite(analysis.traced, plan)
    with pytest.raises(AnalysisError, match="the data hold no batch"):
        compensate(analysis, plan, pruned, [])
    with pytest.raises(AnalysisError, match="the data hold no batch"):
        recalibrate(pruned, [])
    other = analyzed(randomized(chain([4, 4], nn.ReLU), 4), IMAGES)
    with pytest.raises(PlanError, match="another graph"):
        compensate(other, plan, pruned, [IMAGES])
