"""Least squares: against a solver on the stacked inputs, and where nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune import PruningPlan, compensate
from fxprune.compensation.refitting import least_squares
from tests.criteria.networks import IMAGES, Residual, analyzed, randomized


def refitted(
    analysis: fxprune.Analysis, plan: PruningPlan, data: Any, damping: float = 0.0
) -> fx.GraphModule:
    """The original with the plan's units removed and the readers refitted."""
    fixed = least_squares(plan, fxprune.Statistics(analysis, data), damping)
    return fxprune.rewrite(analysis.traced, fixed)


DATA = [torch.randn(n, 2, 6, 6, dtype=torch.float64) for n in (30, 20)]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padding": {"padding": 1},
    "stride": {"stride": 2, "padding": 1},
    "dilation": {"dilation": 2},
    "same": {"padding": "same"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "no bias": {"bias": False},
}


def two(options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 5, 1), nn.Tanh(), nn.Conv2d(5, 3, 3, **options)).double()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_new_layer_is_the_least_squares_solution(options: dict[str, Any]) -> None:
    model = two(options)
    analysis = analyzed(model, DATA[0][:2])
    plan = PruningPlan.build(analysis, {"0.weight:0": [0, 3, 4]})
    pruned = fxprune.rewrite(analysis.traced, plan)
    x = torch.cat(DATA)
    before = (pruned(x) - model(x)).square().sum()
    pruned = refitted(analysis, plan, DATA)
    after = pruned(x) - model(x)
    assert float(after.detach().square().sum()) < 0.7 * float(before.detach())
    # At a minimum the residual is orthogonal to all inputs of the layer and to the constant.
    slopes = torch.autograd.grad(after.square().sum(), list(pruned.get_submodule("2").parameters()))
    assert len(slopes) == (2 if options.get("bias", True) else 1)
    for slope in slopes:
        assert float(slope.abs().max()) < 1e-8


def test_columns_of_a_flattened_channel_go_together() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)).double()
    analysis = analyzed(model, DATA[0][:2])
    plan = PruningPlan.build(analysis, {"0.weight:0": [1, 2]})
    pruned = refitted(analysis, plan, DATA)
    x = torch.cat(DATA)
    hidden = model[:3](x)
    left = F.pad(hidden.unflatten(1, (5, 16))[:, [1, 2]].flatten(1), (0, 1), value=1.0)
    best = torch.linalg.lstsq(left, model(x)).solution
    torch.testing.assert_close(pruned(x), left @ best, rtol=1e-8, atol=1e-8)


def test_a_grouped_convolution_refits_group_by_group() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 6, 1), nn.Tanh(), nn.Conv2d(6, 4, 3, groups=2))
    model = nn.Sequential(*layers).double()
    analysis = analyzed(model, DATA[0][:2])
    plan = fxprune.plan(analysis, "l2", 0.4)
    (name,) = plan.kept_units
    kept = plan.kept(name)
    assert kept.shape == (2, 2)
    pruned = refitted(analysis, plan, DATA)
    x = torch.cat(DATA)
    hidden, results = model[:2](x), model(x)
    for group in range(2):
        own = hidden[:, 3 * group : 3 * group + 3][:, kept[group]]
        rows = F.pad(F.unfold(own, 3).mT.reshape(-1, 18), (0, 1), value=1.0)
        wanted = results[:, 2 * group : 2 * group + 2].flatten(2).mT.reshape(-1, 2)
        found = pruned(x)[:, 2 * group : 2 * group + 2].flatten(2).mT.reshape(-1, 2)
        best = torch.linalg.lstsq(rows, wanted).solution
        torch.testing.assert_close(found, rows @ best, rtol=1e-8, atol=1e-8)


def test_copies_and_constants_are_made_up_for_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 2 * model[0].weight[0], 2 * model[0].bias[0]
        model[0].weight[5], model[0].bias[5] = 0, 3.0
    x = torch.randn(50, 4, dtype=torch.float64)
    analysis = analyzed(model, x[:2])
    plan = PruningPlan.build(analysis, {"0.weight:0": [0, 2, 3, 4]})
    pruned = refitted(analysis, plan, [x])
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-9, atol=1e-9)


def test_it_recovers_more_than_biases_alone_and_leaves_the_original() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)).double()
    x = torch.randn(200, 6, dtype=torch.float64)
    analysis = analyzed(model, x[:2])
    plan = fxprune.plan(analysis, "thinet", 0.5, data=[x])
    before = {name: tensor.clone() for name, tensor in analysis.traced.state_dict().items()}
    errors = {}
    for method in (None, "bias", "least_squares"):
        fixed = plan if method is None else compensate(plan, analysis, method, [x])
        pruned = fxprune.rewrite(analysis.traced, fixed)
        errors[method] = float((pruned(x) - model(x)).detach().square().mean())
    assert errors["least_squares"] < 0.5 * errors["bias"] < errors[None]
    state = analysis.traced.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in before.items())


def test_damping_shrinks_the_weights() -> None:
    model = two({})
    analysis = analyzed(model, DATA[0][:2])
    plan = PruningPlan.build(analysis, {"0.weight:0": [0, 3]})

    def norm(damping: float) -> Tensor:
        return refitted(analysis, plan, DATA, damping).get_parameter("2.weight").norm()

    assert norm(10.0) < norm(0.1) < norm(0.0)


def test_a_residual_network_is_refitted_where_layers_read() -> None:
    model = randomized(Residual(6, 4, nn.ReLU), 0).double()
    analysis = analyzed(model, IMAGES.double())
    plan, data = fxprune.plan(analysis, "l2", 0.5), [torch.randn(40, 2, 4, 4).double()]
    fixed = compensate(plan, analysis, "least_squares", data)
    layers = {"blocks.0.0", "blocks.0.3", "blocks.1.0", "blocks.1.3", "same", "head"}
    assert {n.removesuffix(".weight") for n in fixed.values if n.endswith(".weight")} == layers
    assert fixed.notes == ("compensated by least squares in 6 layers",)
