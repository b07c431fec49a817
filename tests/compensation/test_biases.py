"""Bias compensation: against the definition, and where it is exact."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune import PruningPlan, compensate
from tests.criteria.networks import (
    Attentive,
    Residual,
    analyzed,
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


def biased(
    analysis: fxprune.Analysis, plan: PruningPlan, data: Any = BATCHES
) -> tuple[PruningPlan, fx.GraphModule]:
    """The plan with new biases, and what it makes of the original."""
    fixed = compensate(plan, analysis, "bias", data)
    return fixed, fxprune.rewrite(analysis.traced, fixed)


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
    fixed, pruned = biased(analysis, plan)
    assert set(fixed.values) == {"second.bias", "last.bias"}
    assert fixed.added == (() if bias else ("last.bias", "second.bias"))
    assert fixed.notes == ("compensated by biases in 2 layers",)
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-10, atol=1e-10)


def test_zero_padding_counts_in_the_mean_that_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)).double()
    with torch.no_grad():
        model.get_parameter("0.bias")[2] = 1.5
    constant(model, "0", [2])
    analysis = analyzed(model.eval(), BATCHES[0])
    plan = PruningPlan.build(analysis, {"0.weight:0": [0, 1, 3]})
    _, pruned = biased(analysis, plan)
    x = torch.cat(BATCHES)
    difference = (pruned(x) - model(x)).detach()
    assert float(difference.mean((0, 2, 3)).abs().max()) < 1e-12
    # The unit is constant, so the error depends on how many taps are inside, and on nothing else.
    assert float((difference[..., 1:-1, 1:-1] - difference[:1, :, 1:2, 1:2]).abs().max()) < 1e-12
    assert float(difference[:, :, 0, 0].abs().max()) > 1e-3


def test_a_bias_takes_over_the_mean_of_what_was_removed() -> None:
    """By hand for the second layer: the mean over samples and positions of the data."""
    model = randomized(Plain(), 1).double()
    analysis = analyzed(model, BATCHES[0])
    plan = removing(analysis, {"first.weight:0": [0, 5], "third.weight:0": [[1], [1]]})
    weight, bias = model.get_parameter("second.weight"), model.get_parameter("second.bias")
    hidden = torch.cat([model.get_submodule("first")(batch).relu() for batch in BATCHES])
    lost = nn.functional.conv2d(hidden[:, [0, 5]], weight[:, [0, 5]]).mean((0, 2, 3))
    _, pruned = biased(analysis, plan)
    torch.testing.assert_close(pruned.get_parameter("second.bias"), bias + lost)


@torch.no_grad()
@pytest.mark.parametrize("sparsity", [0.4, 0.6])  # inputs of every group; a whole group, too
def test_a_grouped_convolution_reads_its_own_inputs(sparsity: float) -> None:
    model = randomized(Plain(), 2).double()
    analysis = analyzed(model, BATCHES[0])
    plan = fxprune.plan(analysis, "random", sparsity, groups=lambda g: "second" in g.name)
    before = fxprune.rewrite(analysis.traced, plan).get_parameter("third.bias")
    _, pruned = biased(analysis, plan)
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
    _, pruned = biased(analysis, plan, [x])
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
    fixed, pruned = biased(analysis, plan)
    layers = {"blocks.0.0": "blocks.0.1.running_mean", "blocks.1.0": "blocks.1.1.running_mean"}
    layers |= {"blocks.0.3": "blocks.0.3.bias", "same": "same.bias", "head": "head.bias"}
    assert set(fixed.values) == set(layers.values())
    assert fixed.notes == ("compensated by biases in 5 layers",)
    assert set(pruned.state_dict()) == names
    assert not before.equal(pruned.get_buffer("blocks.0.1.running_mean"))


def test_what_other_ops_read_is_listed() -> None:
    model = Attentive().eval()
    tokens = torch.randint(11, (2, 4))
    analysis = analyzed(model, tokens)
    plan = fxprune.plan(analysis, "random", sparsity=0.5)
    fixed, _ = biased(analysis, plan, [tokens])
    assert "encoder.linear2.bias" in fixed.values
    assert "not in encoder.self_attn.in_proj_weight[0:8]" in fixed.notes[-1]


def test_the_original_stays_as_it_is() -> None:
    model = randomized(Residual(5, 4, nn.ReLU), 3).double().train()
    analysis = analyzed(model, BATCHES[0])
    before = copy.deepcopy(analysis.traced.state_dict())
    plan = fxprune.plan(analysis, "random", sparsity=0.5)
    _, pruned = biased(analysis, plan)
    assert pruned.training
    assert analysis.traced.training
    after = analysis.traced.state_dict()
    assert all(before[name].equal(after[name]) for name in before)
