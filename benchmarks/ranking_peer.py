"""The importances of Torch-Pruning, as scores of fxprune's groups."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.ranking_models import Digits
from fxprune import Analysis

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch_pruning as tp

SAMPLES = 512
"""How many training samples Torch-Pruning's Hessian sees: it takes a backward pass for each."""

Importance = Callable[[list[object]], Tensor | None]


def peer_scores(model: nn.Module, analysis: Analysis, digits: Digits) -> dict[str, Scores]:
    """Per criterion of Torch-Pruning {group name: Tensor}, with its default options.

    Only "taylor, multivariable" has another: it sums w ∂w before it takes the absolute value.
    """
    found: dict[str, Scores] = {}
    for name, make in _MAKERS.items():
        clone = copy.deepcopy(model)
        importance = make()
        _prepare(importance, clone, digits)
        found[name] = _scores(importance, clone, analysis)
    return found


Scores = Mapping[str, Tensor]

_MAKERS: Mapping[str, Callable[[], Importance]] = {
    "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "lamp": lambda: tp.importance.LAMPImportance(p=2),
    "fpgm": lambda: tp.importance.FPGMImportance(p=2),
    "bn_scale": lambda: tp.importance.BNScaleImportance(),
    "taylor": lambda: tp.importance.GroupTaylorImportance(),
    "taylor, multivariable": lambda: tp.importance.GroupTaylorImportance(multivariable=True),
    "hessian": lambda: tp.importance.GroupHessianImportance(),
}


def _prepare(importance: Importance, model: nn.Module, digits: Digits) -> None:
    """Gradients, as Torch-Pruning's documentation says to make them."""
    if isinstance(importance, tp.importance.GroupHessianImportance):
        importance.zero_grad()
        pairs = zip(digits.train[:SAMPLES], digits.train_labels[:SAMPLES], strict=True)
        for image, label in pairs:
            model.zero_grad()
            F.cross_entropy(model(image[None]), label[None]).backward()
            importance.accumulate_grad(model)
    elif isinstance(importance, tp.importance.GroupTaylorImportance):
        for images, labels in digits.batches():
            (F.cross_entropy(model(images), labels) * len(images) / len(digits.train)).backward()


def _scores(importance: Importance, model: nn.Module, analysis: Analysis) -> Scores:
    names = {module: name for name, module in model.named_modules()}
    graph = tp.DependencyGraph().build_dependency(model, torch.zeros(1, 1, 8, 8))
    (head,) = (m for m in model.modules() if isinstance(m, nn.Linear))
    found: dict[str, Tensor] = {}
    for peer in graph.get_all_groups(ignored_layers=[head], root_module_types=[nn.Conv2d]):
        values = importance(peer)
        root = f"{names[peer[0].dep.target.module]}.weight"
        for group in analysis.groups:
            for member in group.members:
                if (member.parameter, member.dim) == (root, 0) and values is not None:
                    scores = torch.zeros(group.size, dtype=torch.float64)
                    found[group.name] = scores.index_add(0, member.unit, values.detach().double())
    missing = [group.name for group in analysis.groups if group.name not in found]
    if missing:
        raise RuntimeError(f"Torch-Pruning has no importance for {missing}")
    return found
