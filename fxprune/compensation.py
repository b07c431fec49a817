"""Recovery without training: what a pruned network lost on average, given back in one call.

    recalibrate(result.module, batches)
    compensate(result.analysis, result.plan, result.module, batches)

Batches are those of the criteria that need data: `(inputs, target)`, a mapping of inputs by name,
or a tensor. The pruned module is changed in place, the original is not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.analysis import Analysis
from fxprune.errors import AnalysisError
from fxprune.inputs import bind_inputs
from fxprune.plans import PruningPlan
from fxprune.slicing import members_by_parameter, slice_parameter
from fxprune.statistics.objective import read_batch

SPATIAL: Mapping[type[nn.Module], int] = MappingProxyType(
    {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
)
"""The layers whose bias can make up for inputs that are gone: how many dimensions are positions."""


@torch.no_grad()
def recalibrate(module: fx.GraphModule, data: Iterable[Any]) -> None:
    """Give the batch normalisations of a graph the statistics of their inputs as they are now.

    The running means and variances become the averages over the batches, each normalised by its own
    while it passes, as in training; everything else runs as in eval mode. Raises AnalysisError
    without batch normalisations that keep statistics, or without batches.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        raise AnalysisError("the graph has no batch normalisation that keeps running statistics.")
    modes = [(m, m.training) for m in module.modules()]
    momenta = [norm.momentum for norm in norms]
    kept = tuple(batch_inputs(module, data))
    module.eval()
    try:
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # a plain average
        for values in kept:
            module(*values)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for each, mode in modes:
            each.training = mode


@dataclass(frozen=True)
class CompensationReport:
    """What `compensate` changed.

    layers   the layers whose bias took over what removed inputs contributed on average
    skipped  parameters that read removed units and are no weight of a linear layer or convolution
    """

    layers: tuple[str, ...]
    skipped: tuple[str, ...]


@torch.no_grad()
def compensate(
    analysis: Analysis, plan: PruningPlan, pruned: fx.GraphModule, data: Iterable[Any]
) -> CompensationReport:
    """Add to each bias what the removed inputs contribute on average: b += W_P E[h_P].

    The averages are those of the original on the data, over samples and positions, in float64. A
    removed unit that is constant is made up for exactly, except where a convolution pads with
    zeros. A layer without bias gets one, unless a batch normalisation follows: then its running
    mean takes the opposite. Run it after `recalibrate`, or not with it: both correct the means.

    Raises PlanError if the plan is not for this analysis, AnalysisError without batches.
    """
    plan.check_fingerprint(analysis.fingerprint)
    weights = reading_weights(analysis.traced, plan)
    means = _input_means(analysis.traced, frozenset(weights), data)
    for layer in weights:
        if layer in means:
            shift = _lost(analysis.traced, plan, layer, means[layer])
            add_to_bias(pruned, layer, shift)
    return report_of(plan, tuple(layer for layer in weights if layer in means))


def report_of(plan: PruningPlan, done: tuple[str, ...]) -> CompensationReport:
    """These layers, and the parameters of no such layer that read what the plan removes."""
    named = {f"{layer}.weight" for layer in done}
    readers = {
        member.parameter
        for name in plan.kept_units
        for member in plan.group(name).members
        if member.role == "consumer"
    }
    return CompensationReport(done, tuple(sorted(readers - named)))


def batch_inputs(module: fx.GraphModule, data: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """What the graph takes of each batch."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    names = {str(node.target) for node in module.graph.nodes if node.op == "placeholder"}
    empty = True
    for raw in data:
        empty = False
        batch = read_batch(raw, 0, 0, device)
        inputs = batch.inputs
        if isinstance(inputs, Mapping) and not batch.paired:  # it may hold labels, too
            inputs = {name: value for name, value in inputs.items() if name in names}
        yield bind_inputs(module, inputs, AnalysisError)
    if empty:
        raise AnalysisError("the data hold no batch: pass a list of batches or a DataLoader.")


def reading_weights(traced: fx.GraphModule, plan: PruningPlan) -> list[str]:
    """The layers of `SPATIAL` whose weight reads units that the plan removes."""
    found = {
        member.parameter.rpartition(".")[0]
        for name in plan.kept_units
        for member in plan.group(name).members
        if member.role == "consumer" and member.parameter.rpartition(".")[2] == "weight"
    }
    modules = dict(traced.named_modules())
    return [name for name in modules if name in found and type(modules[name]) in SPATIAL]


class _Means(fx.Interpreter):
    """Runs a graph and sums up the inputs of some layers over samples and positions."""

    def __init__(self, module: fx.GraphModule, layers: frozenset[str]) -> None:
        super().__init__(module)
        self.layers = layers
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in self.layers:
            x: Tensor = args[0] if args else kwargs["input"]
            x = x.movedim(-1 - SPATIAL[type(self.fetch_attr(target))], -1)
            rows = x.reshape(-1, x.shape[-1])
            total = rows.sum(0, dtype=torch.float64)
            self.sums[target] = self.sums[target] + total if target in self.sums else total
            self.counts[target] = self.counts.get(target, 0) + len(rows)
        return super().call_module(target, args, kwargs)


def _input_means(
    traced: fx.GraphModule, layers: frozenset[str], data: Iterable[Any]
) -> Mapping[str, Tensor]:
    """The mean of each input feature or channel of the layers that run, float64."""
    runner = _Means(copy.deepcopy(traced).eval(), layers)
    for values in batch_inputs(traced, data):
        runner.run(*values, enable_io_processing=False)
    return {layer: total / runner.counts[layer] for layer, total in runner.sums.items()}


def _lost(traced: fx.GraphModule, plan: PruningPlan, layer: str, means: Tensor) -> Tensor:
    """What the removed inputs contribute to each output that stays, float64."""
    weight = traced.get_parameter(f"{layer}.weight").detach()
    kept = kept_inputs(plan, layer, weight)
    outputs, inputs = weight.shape[:2]  # a grouped convolution's inputs are those of one group
    blocks = means.reshape(-1, inputs).repeat_interleave(outputs * inputs // len(means), 0)
    removed = weight.double().masked_fill(kept, 0)
    shift = (removed.reshape(outputs, inputs, -1).sum(-1) * blocks).sum(1)
    return kept_outputs(plan, layer, weight, shift)


def kept_inputs(plan: PruningPlan, layer: str, weight: Tensor) -> Tensor:
    """Which entries of a layer's weight read units that stay: bool, broadcasts against it."""
    kept = torch.ones((1,) * weight.dim(), dtype=torch.bool)
    for group, member in members_by_parameter(plan)[f"{layer}.weight"]:
        if member.role == "consumer":
            kept = kept & member.spread(plan.kept_mask(group), group, True, weight.dim())
    return kept.to(weight.device)


def kept_outputs(plan: PruningPlan, layer: str, weight: Tensor, values: Tensor) -> Tensor:
    """Of one value per output of a layer, those of the outputs that stay."""
    spread = values.reshape(-1, *(1,) * (weight.dim() - 1)).expand(weight.shape)
    memberships = members_by_parameter(plan)[f"{layer}.weight"]
    return slice_parameter(spread, memberships, plan).flatten(1)[:, 0]


def add_to_bias(pruned: fx.GraphModule, layer: str, shift: Tensor) -> None:
    """Add to a layer's outputs, one number each: see `compensate` for where."""
    module = pruned.get_submodule(layer)
    norm = _norm_after(pruned, layer)
    bias = module.bias
    if isinstance(bias, Tensor):
        bias.add_(shift.to(bias.dtype))
    elif norm is not None and norm.running_mean is not None:
        norm.running_mean.sub_(shift.to(norm.running_mean.dtype))
    else:
        weight = module.weight
        assert isinstance(weight, Tensor)
        module.bias = nn.Parameter(shift.to(weight.dtype), weight.requires_grad)


def _norm_after(pruned: fx.GraphModule, layer: str) -> _BatchNorm | None:
    """The batch normalisation that alone reads the layer's only call, if there is one."""
    calls = [n for n in pruned.graph.nodes if n.op == "call_module" and n.target == layer]
    users = list(calls[0].users) if len(calls) == 1 else []
    if len(users) != 1 or users[0].op != "call_module":
        return None
    same = [n for n in pruned.graph.nodes if n.op == "call_module" and n.target == users[0].target]
    module = pruned.get_submodule(str(users[0].target))
    return module if isinstance(module, _BatchNorm) and len(same) == 1 else None
