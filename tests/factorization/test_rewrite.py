"""Layers in factors compute what they must: exactly, wherever they stand."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.discrepancy import max_error
from fxprune.factorization import factored
from fxprune.plans import Bases, FactorizationPlan
from tests.factorization.networks import LAYERS, network, random_bases

EXACT = 1e-12
SIDES = [(True, True), (True, False), (False, True)]


def traced_with(
    model: nn.Module, x: Tensor, bases: dict[str, Bases]
) -> tuple[fx.GraphModule, FactorizationPlan, fx.GraphModule]:
    traced = fxprune.trace(model, x)
    plan = FactorizationPlan.build(fxprune.analyze(traced), bases)
    return traced, plan, factored(traced, plan)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("sides", SIDES, ids=["both", "outputs", "inputs"])
def test_nothing_changes_when_nothing_is_removed(name: str, sides: tuple[bool, bool]) -> None:
    model, x = network(name)
    outputs, inputs = model.layer.weight.shape[:2]
    bases = random_bases(model.layer, outputs * sides[0] or None, inputs * sides[1] or None)
    _, _, module = traced_with(model, x, {"layer": bases})
    wide = torch.cat([x, 1 + x, x.flip(-1)])
    assert max_error(module(wide), model(wide)) < EXACT
    assert "layer.weight" not in module.state_dict()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (3, 1), (None, 2), (1, None)])
def test_the_weight_is_projected(name: str, rows: int | None, columns: int | None) -> None:
    """Against the projection written down as matrices, put into the user's own model."""
    model, x = network(name)
    bases = random_bases(model.layer, rows, columns)
    traced, plan, module = traced_with(model, x, {"layer": bases})
    weight = model.layer.weight.detach()
    flat = weight.reshape(*weight.shape[:2], -1)
    for side, dim in ((bases.outputs, 0), (bases.inputs, 1)):
        if side is not None:
            flat = torch.tensordot(side @ side.T, flat, ([1], [dim])).movedim(0, dim)
    reference = copy.deepcopy(model)
    reference.layer.weight.data = flat.reshape(weight.shape)
    assert max_error(module(x), reference(x)) < EXACT
    assert max_error(module(x), model(x)) > 1e-3
    assert fxprune.verify(traced, plan, module, x).ok


@pytest.mark.parametrize("name", LAYERS)
def test_the_factors_cost_what_the_closed_form_says(name: str) -> None:
    model, x = network(name)
    outputs, inputs = model.layer.weight.shape[:2]
    traced = fxprune.trace(model, x)
    analysis = fxprune.analyze(traced)
    (layer,) = fxprune.factorization.factor_layers(analysis)[0].values()
    for rows, columns in product((None, 1, outputs - 1), (None, 2, inputs - 1)):
        if rows is None and columns is None:
            continue
        bases = random_bases(model.layer, rows, columns)
        module = factored(traced, FactorizationPlan.build(analysis, {"layer": bases}))
        found = fxprune.cost(fxprune.analyze(fxprune.trace(module, x)))
        ranks = torch.tensor(rows or 0), torch.tensor(columns or 0)
        bias = 0 if model.layer.bias is None else outputs
        assert found.total.macs == int(layer.sizes.macs(*ranks))
        assert found.parameters == int(layer.sizes.params(*ranks)) + bias


def test_names_and_order_are_readable() -> None:
    model, x = network("conv2d strided")
    _, _, module = traced_with(model, x, {"layer": random_bases(model.layer, 2, 3)})
    calls = [n for n in module.graph.nodes if n.op == "call_module"]
    assert [n.target for n in calls] == ["layer.reduce", "layer.core", "layer.expand"]
    assert [n.name for n in calls] == ["layer_reduce", "layer_core", "layer"]
    reduce, core, expand = (module.get_submodule(n.target) for n in calls)
    assert (reduce.kernel_size, reduce.stride, reduce.padding) == ((1, 1), (1, 1), (0, 0))
    assert (core.kernel_size, core.stride, core.padding) == ((3, 3), (2, 2), (1, 0))
    assert (reduce.bias, core.bias, expand.bias) == (None, None, None)


def test_the_bias_is_on_the_last_factor() -> None:
    for rows, columns in ((2, 2), (2, None), (None, 2)):
        model, x = network("conv2d padded")
        _, _, module = traced_with(model, x, {"layer": random_bases(model.layer, rows, columns)})
        parts = list(module.layer.children())
        assert [part.bias is not None for part in parts] == [False] * (len(parts) - 1) + [True]
        assert torch.equal(parts[-1].bias, model.layer.bias)


class Shared(nn.Module):
    """One layer called at two sizes, one tied to another, a grouped and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.tied, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.tied.weight
        self.grouped = nn.Conv2d(4, 4, 3, groups=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.scaled = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.grouped(torch.relu(self.twice(x)))[:, :, ::2])
        x = self.up(x).mean((2, 3))
        return self.scaled(self.other(self.tied(x))) + self.scaled.weight.sum()


def shared() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Shared().double().eval(), torch.randn(2, 4, 6, 6, dtype=torch.float64)


def test_a_shared_module_has_one_factorisation_for_all_calls() -> None:
    model, x = shared()
    traced, plan, module = traced_with(model, x, {"twice": random_bases(model.twice, 2, 3)})
    targets = [n.target for n in module.graph.nodes if str(n.target).startswith("twice")]
    assert targets == ["twice.reduce", "twice.core", "twice.expand"] * 2
    assert fxprune.verify(traced, plan, module, x).ok
    result = fxprune.factorize(model, x, "svd", energy=0.5)
    again = fxprune.cost(fxprune.analyze(fxprune.trace(result.module, x)))
    assert set(result.plan.layers) == {"twice"}
    assert again.macs == result.report.macs_after < result.report.macs_before


def test_what_cannot_become_factors_is_left_with_its_reason() -> None:
    model, x = shared()
    report = fxprune.factorize(model, x, "svd", energy=0.5, ignore="twice").report
    assert report.layers == ()
    assert dict(report.left) == {
        "twice": "ignored",
        "tied": "its weight is read by other.weight, too",
        "other": "its weight is read by tied.weight, too",
        "grouped": "it is a convolution in 2 groups",
        "up": "it is a transposed convolution",
        "scaled": "its weight is read by the graph itself, too",
    }
    assert "NOTHING WAS FACTORISED" in str(report)
    analysis = fxprune.analyze(fxprune.trace(model, x))
    plan = FactorizationPlan.build(analysis, {"grouped": random_bases(model.grouped, 2, None)})
    with pytest.raises(fxprune.PlanError, match="'grouped' cannot become factors: it is a convol"):
        factored(analysis.traced, plan)


def test_state_survives() -> None:
    """Dtype, memory format, requires_grad, modes and the original's tensors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 5))
    model.to(memory_format=torch.channels_last).train()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    x = torch.randn(2, 4, 6, 6)
    torch.set_rng_state(generator)
    bases = {"0": random_bases(model[0], 3, 2), "3": random_bases(model[3], 2, None)}
    traced, plan, module = traced_with(model, x, bases)
    assert torch.equal(torch.get_rng_state(), generator)
    core = module.get_submodule("0.core")
    assert core.weight.is_contiguous(memory_format=torch.channels_last)
    assert core.weight.dtype is torch.float32
    assert not core.weight.requires_grad
    assert all(p.requires_grad for p in module.get_submodule("3").parameters())
    assert all(m.training for m in module.modules())
    module.get_submodule("3.reduce").weight.data.zero_()
    bases["0"].inputs.sum()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert plan.layers["3"].outputs.abs().sum() > 0
    module(x).sum().backward()
    assert fxprune.verify(traced, factored_plan := plan, factored(traced, plan), x).ok
    assert factored_plan.layers.keys() == {"0", "3"}


def test_verify_finds_a_wrong_factor_and_a_wrong_wire() -> None:
    model, x = network("conv2d padded")
    traced, plan, module = traced_with(model, x, {"layer": random_bases(model.layer, 4, 2)})
    right = fxprune.verify(traced, plan, module, x)
    assert right.ok
    assert right.law == "dense reconstruction"
    assert right.max_error < EXACT
    wrong = copy.deepcopy(module)
    wrong.layer.core.weight.data[0, 0, 0, 0] += 0.01
    found = fxprune.verify(traced, plan, wrong, x)
    assert not found.ok
    assert "'layer': the product of its factors is off" in str(found)
    wrong = copy.deepcopy(module)
    wrong.layer.core.padding = (0, 2)  # the same number of positions, elsewhere
    wrong.recompile()
    found = fxprune.verify(traced, plan, wrong, x)
    assert not found.ok
    assert "node 'layer'" in str(found)
    with pytest.raises(fxprune.VerifyError, match="no factors"):
        fxprune.verify(traced, plan, fxprune.trace(model, x), x)


def test_float32_modules_verify_in_float64() -> None:
    model, x = network("conv2d padded")
    model, x = model.float(), x.float()
    traced, plan, module = traced_with(model, x, {"layer": random_bases(model.layer, 4, 2)})
    assert fxprune.verify(traced, plan, module, x, dtype=torch.float64).max_error < EXACT
