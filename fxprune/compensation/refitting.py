"""Layers that read removed units are refitted to the outputs that they had, by least squares."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxprune.compensation.edits import note, with_values_of
from fxprune.compensation.lockstep import Lockstep, Moments
from fxprune.plans import PruningPlan
from fxprune.plans.values import assign
from fxprune.rewriter import rewrite
from fxprune.slicing import Slicer
from fxprune.statistics import Statistics
from fxprune.statistics.layers import Layer, find_layers
from fxprune.walks import named_tensors


def least_squares(
    plan: PruningPlan, statistics: Statistics, damping: float = 1e-2, weights: bool = True
) -> PruningPlan:
    """Refit every layer that reads removed units to its outputs in the original.

    Minimises E‖W a - (V + Δ) a'‖² + λ‖Δ‖² over samples and positions, with a the patches that the
    layer reads in the original, a' those in the pruned network, V the weight that is left, and λ
    the share `damping` of the mean square of an entry of a'. Layers go one after the other: a' is
    what the pruned network computes by then. The constant is not damped; it goes to the layer's
    bias, else to the running mean of the batch normalisation that follows. Without `weights`, it
    alone changes, and a layer that has neither gets a bias.
    """
    traced = statistics.analysis.traced
    pruned = rewrite(traced, plan)
    twins = {layer.name: layer for layer in find_layers(pruned)}
    steps = Lockstep(statistics, pruned)
    slicer = Slicer(plan)
    done: list[str] = []
    touched: set[str] = set()
    left = _other_readers(plan, statistics)
    for layer in statistics.layers:
        index = slicer.kept_entries(layer.weight)
        if index.shape[1:] == layer.shape[1:]:
            continue  # it loses no inputs
        constant, twin = _constant_of(layer, may_add=not weights), twins.get(layer.name)
        simple = len(layer.calls) == 1 and layer.rows == (0, plan.shapes[layer.weight][0])
        if twin is None or not simple or not (weights or constant):
            left.append(layer.name)
            continue
        groups = index.reshape(twin.groups, -1)[:, 0] // (layer.outputs * layer.inputs)
        moments = steps.moments(layer, twin, groups.tolist())
        full = _with_bias(layer, traced).reshape(layer.groups, layer.outputs, -1)
        rows = index.reshape(twin.groups, twin.outputs, -1)[..., 0] // layer.inputs
        targets = full[groups[:, None], rows % layer.outputs] @ moments.cross
        own = _with_bias(twin, pruned)
        if weights:
            change = _refitted(own, targets, moments, damping, constant is not None)
        else:
            change = _shifted(own, targets, moments)
        touched |= _add(pruned, twin, change, constant)
        done.append(layer.name)
    values = with_values_of(plan, traced, pruned, touched)
    return plan.with_values(values, note("least squares" if weights else "biases", done, left))


def bias(plan: PruningPlan, statistics: Statistics) -> PruningPlan:
    """The special case of `least_squares` in which nothing but the constants changes.

    b += W_P E[a_P] for the entries P of patches that go, zeros of the padding included: the outputs
    keep their means over samples and positions, and what is constant is made up for exactly where
    nothing is padded.
    """
    return least_squares(plan, statistics, weights=False)


def _other_readers(plan: PruningPlan, statistics: Statistics) -> list[str]:
    """The parameters of no linear layer or convolution that read what the plan removes."""
    readers = {
        member.parameter
        for name in plan.kept_units
        for member in plan.group(name).members
        if member.role == "consumer"
    }
    return sorted(readers - {layer.weight for layer in statistics.layers})


def _with_bias(layer: Layer, module: fx.GraphModule) -> Tensor:
    """[outputs, entries of a patch and the bias], float64; zero without a bias."""
    weight = module.get_parameter(layer.weight).detach()[slice(*layer.rows)].double().flatten(1)
    own = weight.new_zeros(len(weight))
    if layer.bias is not None:
        own = module.get_parameter(layer.bias).detach()[slice(*layer.rows)].double()
    return torch.cat([weight, own[:, None]], 1)


def _constant_of(layer: Layer, may_add: bool) -> tuple[str, int] | None:
    """Which tensor takes what the layer's outputs change by, and with which sign."""
    if layer.bias is not None:
        return layer.bias, 1
    if layer.norm is not None:
        return f"{layer.norm}.running_mean", -1
    able = may_add and layer.calls[0].op == "call_module"
    return (f"{layer.name}.bias", 1) if able else None


def _refitted(
    weight: Tensor,
    targets: Tensor,
    moments: Moments,
    damping: float,
    offset: bool,
) -> Tensor:
    """The change Δ of a weight with its bias, if `offset` says that it can change: [outputs, d'].

    targets  E[W a a'ᵀ], [groups, outputs of each, d']
    """
    own = moments.own
    missing = _missing(weight, targets, moments)
    change = torch.zeros_like(missing)
    size = own.shape[-1] if offset else own.shape[-1] - 1
    diagonal = own.diagonal(dim1=1, dim2=2)[:, :-1].mean(1, keepdim=True)
    amount = torch.where(diagonal > 0, damping * diagonal, 1.0).repeat(1, size)
    if offset:
        amount[:, -1] = 0
    regular = own[:, :size, :size] + torch.diag_embed(amount)
    change[..., :size] = torch.linalg.solve(regular, missing[..., :size].mT).mT
    return change.flatten(0, 1)


def _shifted(weight: Tensor, targets: Tensor, moments: Moments) -> Tensor:
    """The change with which the means of the outputs are the targets': of the bias alone."""
    change = torch.zeros_like(targets)
    change[..., -1] = _missing(weight, targets, moments)[..., -1]
    return change.flatten(0, 1)


def _missing(weight: Tensor, targets: Tensor, moments: Moments) -> Tensor:
    """E[(W a - V a') a'ᵀ]: [groups, outputs of each, d']"""
    return targets - weight.reshape(*targets.shape[:2], -1) @ moments.own


@torch.no_grad()
def _add(
    pruned: fx.GraphModule, layer: Layer, change: Tensor, constant: tuple[str, int] | None
) -> set[str]:
    """Add Δ, [outputs, d'], to the pruned module's tensors; the names of those that change."""
    rows, steps = slice(*layer.rows), {layer.weight: change[:, :-1]}
    if constant is not None:
        name, sign = constant
        steps[name] = sign * change[:, -1]
    changed = {name: step for name, step in steps.items() if bool(step.any())}
    named = dict(named_tensors(pruned))
    for name, step in changed.items():
        if name in named:
            part = named[name][rows]
            part.copy_((part.double() + step.reshape(part.shape)).to(part.dtype))
        else:
            assign(pruned, name, step)
    return set(changed)
