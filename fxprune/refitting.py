"""Least squares without training: the weights that stay make up for the inputs that are gone.

    refit(result.analysis, result.plan, result.module, batches)

Each linear layer and convolution that lost inputs gets the weights and the bias that best predict
what it returned before from the inputs it has left, on the data. ThiNet ends with this step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxprune.analysis import Analysis
from fxprune.compensation import (
    SPATIAL,
    CompensationReport,
    add_to_bias,
    batch_inputs,
    kept_inputs,
    kept_outputs,
    reading_weights,
    report_of,
)
from fxprune.plans import PruningPlan
from fxprune.slicing import members_by_parameter, slice_parameter


@torch.no_grad()
def refit(
    analysis: Analysis,
    plan: PruningPlan,
    pruned: fx.GraphModule,
    data: Iterable[Any],
    damping: float = 0.0,
) -> CompensationReport:
    """Refit each layer that lost inputs to what it returned, by least squares, in place.

    W' minimises E|W a - W' a_S|² over the inputs a of the original on the data, a_S those that are
    left, each with a 1 for the bias: W' = W A[:, S] A[S, S]⁻¹ with A = E[a aᵀ]. In float64; a
    convolution's a is a patch, zeros of its padding included. `damping` adds that share of the mean
    diagonal of A[S, S] to it; without damping the smallest solution is taken where there are many.

    A layer without bias gets one, or the batch normalisation after it a new mean, as `compensate`
    does; do not use both. It takes inputs² numbers of memory per layer. Raises PlanError if the
    plan is not for this analysis, AnalysisError without batches.
    """
    plan.check_fingerprint(analysis.fingerprint)
    layers = reading_weights(analysis.traced, plan)
    runner = _Products(copy.deepcopy(analysis.traced).eval(), frozenset(layers))
    for values in batch_inputs(analysis.traced, data):
        runner.run(*values, enable_io_processing=False)
    done = tuple(layer for layer in layers if layer in runner.products)
    memberships = members_by_parameter(plan)
    for layer in done:
        weight = analysis.traced.get_parameter(f"{layer}.weight").detach()
        kept = kept_inputs(plan, layer, weight).expand(weight.shape)
        new, shift = _refitted(weight.double(), kept, runner.products[layer], damping)
        target = pruned.get_parameter(f"{layer}.weight")
        target.copy_(slice_parameter(new, memberships[f"{layer}.weight"], plan).to(target.dtype))
        add_to_bias(pruned, layer, kept_outputs(plan, layer, weight, shift))
    return report_of(plan, done)


class _Products(fx.Interpreter):
    """Runs a graph and sums up a aᵀ over samples and positions, for the inputs of some layers.

    products    by layer: float64 [groups, d + 1, d + 1], the last of d + 1 is the constant 1
    """

    def __init__(self, module: fx.GraphModule, layers: frozenset[str]) -> None:
        super().__init__(module)
        self.layers = layers
        self.products: dict[str, Tensor] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's result."""
        if target in self.layers:
            x: Tensor = args[0] if args else kwargs["input"]
            rows = _patches(self.fetch_attr(target), x).double()
            rows = F.pad(rows, (0, 1), value=1.0)
            total = rows.mT @ rows
            self.products[target] = self.products.get(target, 0) + total
        return super().call_module(target, args, kwargs)


def _patches(layer: Any, x: Tensor) -> Tensor:
    """What a layer multiplies its weights with: [groups, samples · positions, inputs · taps]."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    spatial = SPATIAL[type(layer)]
    batched = x if x.dim() == spatial + 2 else x.unsqueeze(0)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    windows = F.pad(batched, _padding(layer), mode)
    steps = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    for dim, (taps, stride, dilation) in enumerate(steps, start=2):
        windows = windows.unfold(dim, dilation * (taps - 1) + 1, stride)[..., ::dilation]
    # [samples, channels, positions..., taps...] → [groups, samples, positions..., inputs, taps...]
    split = windows.unflatten(1, (layer.groups, -1)).movedim(1, 0).movedim(2, 2 + spatial)
    patches: Tensor = split.flatten(2 + spatial).flatten(1, -2)
    return patches


def _padding(layer: Any) -> list[int]:
    """The padding of a convolution as `F.pad` takes it."""
    if layer.padding == "valid":
        return [0] * (2 * len(layer.kernel_size))
    if layer.padding == "same":
        return list(layer._reversed_padding_repeated_twice)
    return [size for size in reversed(layer.padding) for _ in range(2)]


def _refitted(
    weight: Tensor, kept: Tensor, products: Tensor, damping: float
) -> tuple[Tensor, Tensor]:
    """The new weight, with zeros where inputs are gone, and what to add to the bias."""
    groups, size = products.shape[:2]
    rows = F.pad(weight.reshape(groups, -1, size - 1), (0, 1))  # the bias stays out of it
    new = torch.zeros_like(rows)
    for group, stay in enumerate(kept.reshape(groups, -1, size - 1)[:, 0]):
        left = F.pad(stay, (0, 1), value=True)
        own = products[group][left][:, left]
        own = own + damping * own.diagonal().mean() * torch.eye(len(own)).to(own)
        inverse = torch.linalg.pinv(own, hermitian=True)
        new[group][:, left] = rows[group] @ products[group][:, left] @ inverse
    return new[..., :-1].reshape(weight.shape), new[..., -1].flatten()
