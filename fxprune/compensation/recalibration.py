"""Batch normalisations get the statistics of their inputs anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.compensation.edits import with_values_of
from fxprune.errors import AnalysisError
from fxprune.inputs import bind_inputs
from fxprune.plans import PruningPlan
from fxprune.rewriter import rewrite
from fxprune.statistics import Statistics, distributed
from fxprune.statistics.objective import read_batch


def recalibrate(module: fx.GraphModule, data: Iterable[Any]) -> None:
    """Give the batch normalisations of a graph the statistics of their inputs as they are now.

    The running means and variances become the averages over the batches, each normalised by its own
    while it passes, as in training; everything else runs as in eval mode. The module is changed in
    place; `prune(..., compensate="batch_norm")` has the same as edits of the plan.

    data  batches: `(inputs, target)`, a mapping of inputs by name, or a tensor

    Raises AnalysisError without batch normalisations that keep statistics, or without batches.
    """
    _recalibrate(module, tuple(_batch_inputs(module, data)))


def batch_norm(plan: PruningPlan, statistics: Statistics) -> PruningPlan:
    """The plan with new running means and variances, those that `recalibrate` finds after it."""
    traced = statistics.analysis.traced
    pruned = rewrite(traced, plan)
    kept = tuple(part.values for part in statistics.parts("recalibration"))
    names = _recalibrate(pruned, kept)
    buffers = [f"{name}.{buffer}" for name in names for buffer in ("running_mean", "running_var")]
    values = with_values_of(plan, traced, pruned, buffers)
    return plan.with_values(values, f"recalibrated {len(names)} batch normalisations")


@torch.no_grad()
def _recalibrate(module: fx.GraphModule, batches: Sequence[tuple[Any, ...]]) -> list[str]:
    """See `recalibrate`; the names of the batch normalisations. All ranks end with the same."""
    norms = {
        name: each
        for name, each in module.named_modules()
        if isinstance(each, _BatchNorm) and each.track_running_stats
    }
    if not norms:
        raise AnalysisError("the graph has no batch normalisation that keeps running statistics.")
    modes = [(each, each.training) for each in module.modules()]
    momenta = [norm.momentum for norm in norms.values()]
    module.eval()
    try:
        for norm in norms.values():
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # a plain average
        for values in batches:
            module(*(v.clone() if isinstance(v, Tensor) else v for v in values))
    finally:
        for norm, momentum in zip(norms.values(), momenta, strict=True):
            norm.momentum = momentum
        for each, mode in modes:
            each.training = mode
    if distributed.active():
        for norm in norms.values():
            _average_over_ranks(norm, len(batches))
    return list(norms)


def _average_over_ranks(norm: _BatchNorm, batches: int) -> None:
    """Each rank has seen batches of its own."""
    for buffer in (norm.running_mean, norm.running_var):
        assert buffer is not None
        count = distributed.summed(torch.tensor(float(batches), device=buffer.device))
        buffer.copy_(distributed.summed(buffer * batches) / count)


def _batch_inputs(module: fx.GraphModule, data: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
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
