"""Real architectures: exact when nothing is removed, and at the budget when something is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.discrepancy import max_error
from fxprune.factorization import factor_layers, factored
from fxprune.plans import Bases, FactorizationPlan
from tests import torchvision_shim  # noqa: F401
from tests.factorization.networks import random_bases

from torchvision.models import mobilenet_v2, resnet18, vision_transformer  # isort: skip


def small_vit() -> nn.Module:
    return vision_transformer.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128
    )


@dataclass(frozen=True)
class Network:
    build: Callable[[], nn.Module]
    size: int
    layers: int


NETWORKS: Mapping[str, Network] = {
    "resnet18": Network(resnet18, 32, 21),
    "mobilenet_v2": Network(lambda: mobilenet_v2(width_mult=0.5), 32, 36),
    "vit": Network(small_vit, 32, 6),
}


def built(name: str) -> tuple[nn.Module, Tensor]:
    """A network with lively batch norms and head, float64, and images."""
    torch.manual_seed(0)
    model = NETWORKS[name].build().double().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    size = NETWORKS[name].size
    return model, torch.randn(2, 3, size, size, dtype=torch.float64)


def data_of(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x, torch.zeros(len(x), dtype=torch.int64))]


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_when_nothing_is_removed(name: str) -> None:
    """Every layer in factors of full rank, in random bases."""
    model, x = built(name)
    analysis = fxprune.analyze(fxprune.trace(model, x))
    layers, _ = factor_layers(analysis)
    assert len(layers) == NETWORKS[name].layers
    bases: dict[str, Bases] = {}
    for number, (layer, found) in enumerate(layers.items()):
        outputs, inputs = found.module.weight.shape[:2]
        bases[layer] = random_bases(found.module, outputs, inputs, seed=number)
    module = factored(analysis.traced, FactorizationPlan.build(analysis, bases))
    wider = torch.cat([x, x.flip(0) + 1])
    assert max_error(module(wider), model(wider)) < 1e-12


def one_rank_more(result: fxprune.FactorizeResult, layer: str, bases: Bases) -> int:
    """The fewest MACs that one more rank of a layer takes."""
    sizes = factor_layers(result.analysis)[0][layer].sizes
    columns, rows = (rank or 0 for rank in bases.ranks)
    raised = [(rows + 1, columns)] * bool(rows) + [(rows, columns + 1)] * bool(columns)
    costs = [int(sizes.macs(*map(torch.tensor, ranks))) for ranks in [(rows, columns), *raised]]
    return min(costs[1:]) - costs[0]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("resnet18", "tucker"),
        ("mobilenet_v2", "svd"),
        ("mobilenet_v2", "eigendamage"),
        ("vit", "svd"),
        ("vit", "eigendamage"),
    ],
)
def test_the_budget_is_met_to_within_one_rank(name: str, method: str) -> None:
    model, x = built(name)
    data = {"data": data_of(x)} if method == "eigendamage" else {}
    result = fxprune.factorize(model, x, method, budget=fxprune.Budget(macs=0.7), **data)
    dense = fxprune.cost(result.analysis)
    bound = int(0.7 * dense.total.macs)
    again = fxprune.analyze(fxprune.trace(result.module, x))
    found = fxprune.cost(again)
    assert found.total.macs <= bound
    assert (found.macs, found.parameters) == (
        result.report.macs_after,
        result.report.parameters_after,
    )
    if method != "eigendamage":  # of two images it sees few ranks, and more would gain nothing
        for layer, bases in result.plan.layers.items():
            assert found.total.macs + one_rank_more(result, layer, bases) > bound
    proof = fxprune.verify(result.analysis.traced, result.plan, result.module, x)
    assert proof.ok
    assert proof.max_error < 1e-12
    assert again.groups, "ranks are prunable units of the result"
