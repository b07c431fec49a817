"""Masked equivalence as the tests compute it, from the masks alone; random plans."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

import fxprune
from fxprune import Analysis, Group, PruningPlan

TOLERANCE = 1e-9


def alive(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and eval mode, with random values that keep every path alive and visible."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(noise + 0.5 if "running_var" in name else (noise - 0.4))
    return model


def traced(model: nn.Module, *inputs: Any) -> tuple[fx.GraphModule, Analysis]:
    graph = fxprune.trace(model, inputs)
    return graph, fxprune.analyze(graph, strict=True)


def as_written(model: nn.Module, inputs: Tensor) -> tuple[fx.GraphModule, Analysis]:
    """The graph of torch's own symbolic trace, with the example that `analyze` needs."""
    graph = fx.symbolic_trace(model)
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            node.meta["val"] = inputs.to("meta")
    return graph, fxprune.analyze(graph, strict=True)


def rows(group: Group, kept: int, rng: random.Random) -> Any:
    """Random kept indices, chosen anew in each context."""
    chosen = [sorted(rng.sample(range(group.size), kept)) for _ in range(group.contexts)]
    return chosen if group.contexts > 1 else chosen[0]


def random_plan(
    analysis: Analysis,
    seed: int = 0,
    groups: Callable[[Group], bool] = lambda group: True,
    keep: float = 0.5,
) -> PruningPlan:
    """A random plan over all chosen groups, outer ones too; each loses units and keeps some."""
    rng = random.Random(seed)
    kept = {
        group.name: rows(group, min(max(round(group.size * keep), 1), group.size - 1), rng)
        for group in analysis.groups
        if groups(group)
    }
    assert kept, f"no group to prune among {[*analysis.groups, *analysis.frozen]}"
    return PruningPlan.build(analysis, kept)


def assert_random_plans_hold(graph: fx.GraphModule, analysis: Analysis, *inputs: Any) -> None:
    """`verify` of three random plans over all groups, on each of the inputs."""
    for seed in range(3):
        plan = random_plan(analysis, seed)
        pruned = fxprune.rewrite(graph, plan)
        for given in inputs:
            report = fxprune.verify(graph, plan, pruned, given)
            assert report.ok, str(report)


def masked(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model with the removed entries set to zero."""
    zeroed = copy.deepcopy(model)
    named = dict([*zeroed.named_parameters(), *zeroed.named_buffers()])
    assert set(masks) <= set(named)
    with torch.no_grad():
        for name, mask in masks.items():
            named[name].mul_(mask)
    return zeroed


def error(actual: Any, expected: Any) -> float:
    """max|a-b| / max|b| per tensor, the largest over all; infinite for NaN or other shapes."""
    pairs = [
        [leaf for leaf in tree_leaves(v) if isinstance(leaf, Tensor)] for v in (actual, expected)
    ]
    assert [t.shape for t in pairs[0]] == [t.shape for t in pairs[1]]
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*pairs, strict=True)]
    return max(e if e == e else float("inf") for e in errors)


def masked_error(model: nn.Module, plan: PruningPlan, pruned: nn.Module, *inputs: Any) -> float:
    """How far the pruned module is from the masked model."""
    with torch.no_grad():
        return error(pruned(*inputs), masked(model, plan.masks())(*inputs))
