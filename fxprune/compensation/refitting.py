"""Layers that read removed units are brought back to the outputs that they had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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


def least_squares(plan: PruningPlan, statistics: Statistics, damping: float = 1e-2) -> PruningPlan:
    """Refit every layer that reads removed units to its outputs in the original.

    Minimises E‖W a - (V + Δ) a'‖² + λ‖Δ‖² over samples and positions, with a the patches that the
    layer reads in the original, a' those in the pruned network, V the weight that is left, and λ
    the share `damping` of the mean square of an entry of a'. Layers go one after the other: a' is
    what the pruned network computes by then. The constant is not damped; it goes to the layer's
    bias, else to the running mean of the batch normalisation that follows.
    """
    readers = _Readers(plan, statistics)
    for reader in readers:
        moments = readers.steps.moments(reader.layer, reader.twin, reader.groups)
        constant = _constant_of(reader.layer)
        change = _refitted(reader, moments, damping, constant is not None)
        readers.add(reader, change, constant)
    return readers.plan_with_values("least squares")


def bias(plan: PruningPlan, statistics: Statistics) -> PruningPlan:
    """Let constants take over what removed units contribute on average: b += W_P E[a_P].

    P are the entries of patches that go, zeros of the padding included: the outputs keep their
    means over samples and positions, and what is constant is made up for exactly where nothing is
    padded. Where `least_squares` has no place for a constant, the layer gets a bias.
    """
    readers = _Readers(plan, statistics)
    for reader in readers:
        constant = _constant_of(reader.layer) or _new_bias(reader.layer)
        if constant is None:
            readers.left.append(reader.layer.name)
            continue
        change = _shifted(reader, *readers.steps.means(reader.layer, reader.twin, reader.groups))
        readers.add(reader, change, constant)
    return readers.plan_with_values("biases")


@dataclass(frozen=True, eq=False)
class _Reader:
    """A layer that reads removed units, in the original and in the pruned network.

    groups  the group of the original that each group of the twin comes from
    dense   the original's weight with its bias, of the outputs that stay: [groups, outputs, d]
    weight  the twin's: [groups, outputs of each, d']
    """

    layer: Layer
    twin: Layer
    groups: tuple[int, ...]
    dense: Tensor
    weight: Tensor


class _Readers:
    """The layers that read removed units, one after the other, and what becomes of them.

    steps  runs both networks; what comes later sees how the layers before have changed
    left   layers and parameters that read removed units and stay as they are
    """

    def __init__(self, plan: PruningPlan, statistics: Statistics) -> None:
        self.plan, self.layers = plan, statistics.layers
        self.traced = statistics.analysis.traced
        self.pruned = rewrite(self.traced, plan)
        self.steps = Lockstep(statistics, self.pruned)
        self.left = _other_readers(plan, statistics)
        self._done: list[str] = []
        self._touched: set[str] = set()

    def __iter__(self) -> Iterator[_Reader]:
        slicer = Slicer(self.plan)
        twins = {layer.name: layer for layer in find_layers(self.pruned)}
        for layer in self.layers:
            index = slicer.kept_entries(layer.weight)
            if index.shape[1:] == layer.shape[1:]:
                continue  # it loses no inputs
            twin = twins.get(layer.name)
            whole = layer.rows == (0, self.plan.shapes[layer.weight][0])
            if twin is None or len(layer.calls) > 1 or not whole:
                self.left.append(layer.name)
                continue
            groups = index.reshape(twin.groups, -1)[:, 0] // (layer.outputs * layer.inputs)
            rows = index.reshape(twin.groups, twin.outputs, -1)[..., 0] // layer.inputs
            dense = _with_bias(layer, self.traced)[groups[:, None], rows % layer.outputs]
            weight = _with_bias(twin, self.pruned)
            yield _Reader(layer, twin, tuple(groups.tolist()), dense, weight)

    @torch.no_grad()
    def add(self, reader: _Reader, change: Tensor, constant: tuple[str, int] | None) -> None:
        """Add Δ, [groups, outputs, d'], to the pruned network; see `_constant_of` for the last."""
        flat, rows = change.flatten(0, 1), slice(*reader.twin.rows)
        steps = {reader.twin.weight: flat[:, :-1]}
        if constant is not None:
            name, sign = constant
            steps[name] = sign * flat[:, -1]
        named = dict(named_tensors(self.pruned))
        for name, step in steps.items():
            if not bool(step.any()):
                continue
            if name in named:
                part = named[name][rows]
                part.copy_((part.double() + step.reshape(part.shape)).to(part.dtype))
            else:
                assign(self.pruned, name, step)
            self._touched.add(name)
        self._done.append(reader.layer.name)

    def plan_with_values(self, method: str) -> PruningPlan:
        """The plan that makes the pruned network what it is now."""
        values = with_values_of(self.plan, self.traced, self.pruned, self._touched)
        return self.plan.with_values(values, note(method, self._done, self.left))


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
    """[groups, outputs of each, entries of a patch and the bias], float64; zero without a bias."""
    weight = module.get_parameter(layer.weight).detach()[slice(*layer.rows)].double().flatten(1)
    own = weight.new_zeros(len(weight))
    if layer.bias is not None:
        own = module.get_parameter(layer.bias).detach()[slice(*layer.rows)].double()
    return torch.cat([weight, own[:, None]], 1).reshape(layer.groups, layer.outputs, -1)


def _constant_of(layer: Layer) -> tuple[str, int] | None:
    """Which tensor takes what the layer's outputs change by, and with which sign."""
    if layer.bias is not None:
        return layer.bias, 1
    return None if layer.norm is None else (f"{layer.norm}.running_mean", -1)


def _new_bias(layer: Layer) -> tuple[str, int] | None:
    """The bias that a module may get; a function has no place for one."""
    return (f"{layer.name}.bias", 1) if layer.calls[0].op == "call_module" else None


def _shifted(reader: _Reader, before: Tensor, after: Tensor) -> Tensor:
    """The change of the constants alone with which the outputs have the means that they had.

    before, after  E[a], [groups, d], and E[a'], [groups, d']
    """
    change = torch.zeros_like(reader.weight)
    wanted = reader.dense @ before[..., None] - reader.weight @ after[..., None]
    change[..., -1] = wanted[..., 0]
    return change


def _refitted(reader: _Reader, moments: Moments, damping: float, has_constant: bool) -> Tensor:
    """The change Δ of a weight, and of its constant if it has one: [groups, outputs, d']."""
    own = moments.own
    missing = reader.dense @ moments.cross - reader.weight @ own
    change = torch.zeros_like(missing)
    size = own.shape[-1] if has_constant else own.shape[-1] - 1
    diagonal = own.diagonal(dim1=1, dim2=2)[:, :-1].mean(1, keepdim=True)
    amount = torch.where(diagonal > 0, damping * diagonal, 1.0).repeat(1, size)
    if has_constant:
        amount[:, -1] = 0
    regular = own[:, :size, :size] + torch.diag_embed(amount)
    change[..., :size] = torch.linalg.solve(regular, missing[..., :size].mT).mT
    return change
