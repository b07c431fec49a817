"""Importances of Torch-Pruning score here as they do there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.interop.torch_pruning import TorchPruning

tp = pytest.importorskip("torch_pruning")
importance = tp.importance


class Branches(nn.Module):
    """A residual sum, a depthwise and a grouped convolution, and a flatten before the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.inner = nn.Conv2d(8, 12, 1)
        self.outer = nn.Conv2d(12, 8, 1)
        self.hidden = nn.Linear(8 * 4, 10)
        self.head = nn.Linear(10, 5)
        nn.init.uniform_(self.norm.weight, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(self.depthwise(x)).relu())
        return self.head(self.hidden(x.flatten(1)).relu())


IMPORTANCES: dict[str, Callable[[], Any]] = {
    "magnitude": lambda: importance.GroupMagnitudeImportance(),
    "l1 of the first": lambda: importance.GroupMagnitudeImportance(
        p=1, group_reduction="first", normalizer=None
    ),
    "largest": lambda: importance.GroupMagnitudeImportance(group_reduction="max", normalizer="max"),
    "with biases": lambda: importance.GroupMagnitudeImportance(bias=True, normalizer="sum"),
    "lamp": lambda: importance.LAMPImportance(),
    "bn scale": lambda: importance.BNScaleImportance(),
    "fpgm": lambda: importance.FPGMImportance(),
    "taylor": lambda: importance.GroupTaylorImportance(),
}


ROOTS = {
    "stem": tp.prune_conv_out_channels,
    "inner": tp.prune_conv_out_channels,
    "hidden": tp.prune_linear_out_channels,
}


@pytest.mark.parametrize("name", IMPORTANCES)
def test_scores_are_those_of_torch_pruning(name: str) -> None:
    torch.manual_seed(0)
    model, x = Branches().eval(), torch.randn(2, 3, 2, 2)
    model(x).square().sum().backward()
    graph = tp.DependencyGraph().build_dependency(model, x)
    rule = IMPORTANCES[name]()
    expected = {}
    for layer, prune_outputs in ROOTS.items():
        root = model.get_submodule(layer)
        group = graph.get_pruning_group(root, prune_outputs, list(range(len(root.weight))))
        scores = rule(group)
        if scores is not None:
            expected[layer] = scores
    analysis = fxprune.analyze(fxprune.trace(model, x))
    if name == "bn scale":
        with pytest.warns(fxprune.LeftWholeWarning, match="scores none of its layers"):
            found = fxprune.score(analysis, TorchPruning(rule))
    else:
        found = fxprune.score(analysis, TorchPruning(rule))
    assert {key.removesuffix(".weight:0") for key in found} == set(expected)
    for layer, scores in expected.items():
        mine = found[f"{layer}.weight:0"]
        torch.testing.assert_close(mine, scores, rtol=1e-5, atol=1e-7)


def test_channels_of_a_grouped_convolution() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2))
    x = torch.randn(2, 3, 4, 4)
    rule = importance.GroupMagnitudeImportance()
    graph = tp.DependencyGraph().build_dependency(model, x)
    expected = rule(graph.get_pruning_group(model[0], tp.prune_conv_out_channels, list(range(8))))
    analysis = fxprune.analyze(fxprune.trace(model, x))
    (found,) = fxprune.score(analysis, TorchPruning(rule)).values()
    torch.testing.assert_close(found, expected.view(2, 4), rtol=1e-5, atol=1e-7)


def test_a_network_is_pruned_by_one() -> None:
    torch.manual_seed(0)
    model, x = Branches().eval(), torch.randn(2, 3, 2, 2)
    criterion = TorchPruning(importance.GroupMagnitudeImportance())
    result = fxprune.prune(model, x, sparsity=0.5, criterion=criterion)
    assert result.plan.criterion == "TorchPruning"
    assert fxprune.verify(result.analysis.traced, result.plan, result.module, x).ok
    scores = fxprune.score(result.analysis, criterion)
    for name, kept in result.plan.kept_units.items():
        best = scores[name].argsort(descending=True)[: len(kept)]
        assert sorted(best.tolist()) == list(kept)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, n, 8))


def test_heads_score_the_mean_of_their_channels() -> None:
    torch.manual_seed(0)
    model = Heads().eval()
    analysis = fxprune.analyze(fxprune.trace(model, torch.randn(2, 3, 8)))
    rule = importance.GroupMagnitudeImportance(normalizer=None, group_reduction="sum")
    found = fxprune.score(analysis, TorchPruning(rule))
    weights = [model.q.weight, model.k.weight, model.v.weight]
    rows = sum(w.square().sum(1) for w in weights) + model.out.weight.square().sum(0)
    (heads,) = (g for g in analysis.groups if g.outer is None and g.size == 2)
    torch.testing.assert_close(found[heads.name], rows.detach().view(2, 4).mean(1))
    inner = [g for g in analysis.groups if g.outer == heads.name]
    assert sorted(found[g.name].shape for g in inner) == [(2, 4), (2, 4)]
    queries = (model.q.weight.square().sum(1) + model.k.weight.square().sum(1)).detach().view(2, 4)
    assert any(torch.allclose(found[g.name], queries) for g in inner)


def test_attributes_on_the_layers_of_the_model() -> None:
    torch.manual_seed(0)
    model, x = Branches().eval(), torch.randn(4, 3, 2, 2)
    analysis = fxprune.analyze(fxprune.trace(model, x))
    rule = importance.ActivationImportance(normalizer=None, group_reduction="sum")
    with rule.compute_importance(model):
        model(x)
    found = fxprune.score(analysis, TorchPruning(rule, model))
    assert torch.allclose(found["hidden.weight:0"], model.head._importance)  # type: ignore


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = fxprune.analyze(fxprune.trace(Branches(), torch.randn(2, 3, 2, 2)))
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(fxprune.PlanError, match="pip install torch-pruning"):
        fxprune.score(analysis, TorchPruning(object()))


def test_wrong_scores_are_refused() -> None:
    analysis = fxprune.analyze(fxprune.trace(Branches(), torch.randn(2, 3, 2, 2)))
    with pytest.raises(fxprune.PlanError, match=r"returned \(3,\), expected one score for each"):
        fxprune.score(analysis, TorchPruning(lambda group: torch.ones(3)))
