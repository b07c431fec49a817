"""Compensation as part of a plan: what stays takes over what removed units contributed.

    least_squares  each layer that reads removed units is refitted, with its bias, to the outputs
                   that it had; layer by layer, on what the pruned network computes by then
    bias           the same with the bias alone: FLAP's correction
    obs            each layer that loses rows changes those that stay as OBS says, by K-FAC

The result is a plan with new values for parameters, in the original's shapes: a value edit stands
before the index edits, so the plan and the original's weights give the compensated network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.analysis import Analysis
from fxprune.criteria.quadratic import Fold, damped, inverse, matrix
from fxprune.criteria.sides import find_side
from fxprune.errors import NotApplicableError, PlanError
from fxprune.lockstep import Lockstep, Moments
from fxprune.plans import PruningPlan
from fxprune.rewriter import rewrite
from fxprune.slicing import members_by_parameter, slice_parameter
from fxprune.statistics import KroneckerFactors, Labels, Loss, Statistics
from fxprune.statistics.layers import Layer, find_layers


def compensated(
    plan: PruningPlan,
    analysis: Analysis,
    method: str,
    data: Iterable[Any] | Statistics | None,
    loss: Loss | None = None,
    labels: Labels | None = None,
) -> PruningPlan:
    """The plan with new values for parameters, so that what stays makes up for what goes.

    method         "least_squares", "bias" or "obs"
    data           an iterable of batches, or a `Statistics`
    loss, labels   as for `Statistics`; "obs" alone reads them. None for labels from the model.

    Layers that it cannot change are in the plan's notes. Raises PlanError for another method,
    without data, and for a plan that gives parameters new values already.
    """
    check_method(method, data)
    if plan.values:
        raise PlanError("The plan gives parameters new values already: compensate it once.")
    plan.check_fingerprint(analysis.fingerprint)
    if not isinstance(data, Statistics):
        assert data is not None
        data = Statistics(analysis, data, loss, "model" if labels is None else labels)
    return plan if plan.is_empty else COMPENSATORS[method](plan, data)


def check_method(method: object, data: object) -> None:
    """Raise PlanError unless there is such a compensation, and data for it."""
    if method not in COMPENSATORS:
        names = ", ".join(map(repr, COMPENSATORS))
        raise PlanError(f"There is no compensation {method!r}; use None or one of {names}.")
    if data is None:
        raise PlanError(f"compensate={method!r} needs data=, an iterable of batches.")


def least_squares(
    plan: PruningPlan, statistics: Statistics, damping: float = 1e-2, weights: bool = True
) -> PruningPlan:
    """Refit every layer that reads removed units to its outputs in the original.

    Minimises E‖W a - (V + Δ) a'‖² + λ‖Δ‖² over samples and positions, with a the patches that the
    layer reads in the original, a' those in the pruned network, V the weight that is left, and λ
    the share `damping` of the mean square of an entry of a'. The bias is not damped. A layer
    without bias has the mean of the batch normalisation that follows shifted, if one does. Without
    `weights`, the bias alone changes.
    """
    traced = statistics.analysis.traced
    pruned = rewrite(traced, plan)
    twins = {layer.name: layer for layer in find_layers(pruned)}
    steps = Lockstep(statistics, pruned)
    edits = _Edits(plan, traced)
    left = []
    for layer in statistics.layers:
        index = edits.kept(layer.weight)
        if index.shape[1:] == layer.shape[1:]:
            continue  # it loses no inputs
        twin, offset = twins.get(layer.name), _offset(layer)
        simple = len(layer.calls) == 1 and layer.rows == (0, plan.shapes[layer.weight][0])
        if twin is None or not simple or not (weights or offset):
            left.append(layer.name)
            continue
        groups = index.reshape(twin.groups, -1)[:, 0] // (layer.outputs * layer.inputs)
        moments = steps.moments(layer, twin, groups.tolist())
        full = _with_bias(layer, traced).reshape(layer.groups, layer.outputs, -1)
        rows = index.reshape(twin.groups, twin.outputs, -1)[..., 0] // layer.inputs
        targets = full[groups[:, None], rows % layer.outputs] @ moments.cross
        change = _refitted(_with_bias(twin, pruned), targets, moments, damping, weights, offset)
        _shift(pruned, twin, change, edits)
    note = "least squares" if weights else "biases"
    return plan.with_values(edits.values(pruned), _note(note, edits.layers, left))


def bias(plan: PruningPlan, statistics: Statistics) -> PruningPlan:
    """The special case of `least_squares` in which nothing but the biases changes."""
    return least_squares(plan, statistics, weights=False)


def obs(plan: PruningPlan, statistics: Statistics, damping: float = 1e-3) -> PruningPlan:
    """Rows of a layer that stay make up for those that go: ΔW = -S⁻¹[:, P] (S⁻¹[P, P])⁻¹ W[P].

    Where a group is scored by what reads it (see `fxprune.criteria.sides`), the columns that stay
    do. `damping` is a share, see `fxprune.criteria.quadratic.Damping`.
    """
    gone: dict[tuple[str, bool], Tensor] = {}
    left = []
    for name in plan.kept_units:
        group = plan.group(name)
        try:
            side = find_side(group, statistics.analysis, statistics.layers, "producer")
        except NotApplicableError:
            left.append(name)
            continue
        out = torch.cat([~plan.kept_mask(group).reshape(-1), torch.zeros(1, dtype=torch.bool)])
        for piece in side.slices:
            key = piece.layer.name, piece.rows
            gone[key] = gone.get(key, torch.tensor(False)) | out[piece.slots]
    found = statistics.kronecker(fold=True)
    edits = _Edits(plan, statistics.analysis.traced)
    for layer in statistics.layers:
        mine = {
            rows: gone[layer.name, rows] for rows in (True, False) if (layer.name, rows) in gone
        }
        if mine:
            factors = damped(found[layer.name], damping)
            weight = matrix(factors, statistics)
            edits.unfolded(factors, obs_update(factors, weight, mine) - weight)
    return plan.with_values(edits.edited, _note("OBS", edits.layers, left))


def obs_update(factors: KroneckerFactors, weight: Tensor, gone: Mapping[bool, Tensor]) -> Tensor:
    """The weight [groups, d_S, d_A] after its rows (True) and columns (False) in `gone`, bool
    [groups, n], went and the rest made up for them. What went is zero.
    """
    result = weight.clone()
    for number in range(factors.groups):
        for rows, out in gone.items():
            blocks = factors.output_blocks if rows else factors.input_blocks
            target = result[number] if rows else result[number].mT
            low = 0
            for block in blocks:
                high = low + block.shape[-1]
                p = out[number, low:high].nonzero()[:, 0].to(weight.device)
                if len(p):
                    m = inverse(block[number])
                    part = target[low:high]
                    part -= m[:, p] @ torch.linalg.solve(m[p[:, None], p], part[p])
                    part[p] = 0
                low = high
    return result


COMPENSATORS: Mapping[str, Callable[[PruningPlan, Statistics], PruningPlan]] = MappingProxyType(
    {"least_squares": least_squares, "bias": bias, "obs": obs}
)


def _with_bias(layer: Layer, module: fx.GraphModule) -> Tensor:
    """[outputs, entries of a patch and the bias], float64; zero without a bias."""
    weight = module.get_parameter(layer.weight).detach()[slice(*layer.rows)].double().flatten(1)
    own = weight.new_zeros(len(weight))
    if layer.bias is not None:
        own = module.get_parameter(layer.bias).detach()[slice(*layer.rows)].double()
    return torch.cat([weight, own[:, None]], 1)


def _offset(layer: Layer) -> bool:
    """Whether something of the layer can take a constant: its bias, or a mean after it."""
    return layer.bias is not None or layer.norm is not None


def _refitted(
    weight: Tensor,
    targets: Tensor,
    moments: Moments,
    damping: float,
    weights: bool,
    offset: bool,
) -> Tensor:
    """The change Δ of a weight with its bias: [outputs, d'].

    targets  E[W a a'ᵀ], [groups, outputs of each, d']
    """
    own = moments.own
    missing = targets - weight.reshape(*targets.shape[:2], -1) @ own
    change = torch.zeros_like(missing)
    if not weights:
        change[..., -1] = missing[..., -1]
        return change.flatten(0, 1)
    size = own.shape[-1] if offset else own.shape[-1] - 1
    diagonal = own.diagonal(dim1=1, dim2=2)[:, :-1].mean(1, keepdim=True)
    amount = torch.where(diagonal > 0, damping * diagonal, 1.0).repeat(1, size)
    if offset:
        amount[:, -1] = 0
    regular = own[:, :size, :size] + torch.diag_embed(amount)
    change[..., :size] = torch.linalg.solve(regular, missing[..., :size].mT).mT
    return change.flatten(0, 1)


@torch.no_grad()
def _shift(pruned: fx.GraphModule, twin: Layer, change: Tensor, edits: _Edits) -> None:
    """Add Δ to the pruned module's parameters, and note which."""
    rows, steps = slice(*twin.rows), [(twin.weight, change[:, :-1])]
    if twin.bias is not None:
        steps.append((twin.bias, change[:, -1]))
    elif twin.norm is not None:
        steps.append((f"{twin.norm}.running_mean", -change[:, -1]))
    named = dict([*pruned.named_parameters(), *pruned.named_buffers()])
    for name, step in steps:
        if bool(step.any()):
            part = named[name][rows]
            part.copy_((part.double() + step.reshape(part.shape)).to(part.dtype))
            edits.touched.add(name)
    edits.layers.append(twin.name)


class _Edits:
    """New values in the original's shapes."""

    def __init__(self, plan: PruningPlan, traced: fx.GraphModule) -> None:
        self.plan, self.traced = plan, traced
        self.members = members_by_parameter(plan)
        self.layers: list[str] = []
        self.touched: set[str] = set()
        self.edited: dict[str, Tensor] = {}
        self.tensors = dict([*traced.named_parameters(), *traced.named_buffers()])

    def kept(self, name: str) -> Tensor:
        """Where in the original's parameter the entries that stay are: flat indices."""
        shape = self.plan.shapes[name]
        index = torch.arange(torch.Size(shape).numel()).reshape(shape)
        memberships = self.members.get(name)
        return index if memberships is None else slice_parameter(index, memberships, self.plan)

    def values(self, pruned: fx.GraphModule) -> Mapping[str, Tensor]:
        """Those that make the touched parameters of the pruned module what they are."""
        named = dict([*pruned.named_parameters(), *pruned.named_buffers()])
        for name in sorted(self.touched):
            value = self.tensors[name].detach().clone(memory_format=torch.contiguous_format)
            value.view(-1)[self.kept(name).reshape(-1)] = named[name].detach().reshape(-1)
            self.edited[name] = value
        return self.edited

    def unfolded(self, factors: KroneckerFactors, change: Tensor) -> None:
        """Change a layer's parameters by what its weight as the factors see it changes by."""
        layer = factors.layer
        rows, flat = slice(*layer.rows), change.flatten(0, 1)
        weight, constant = flat[:, : layer.inputs], flat[:, layer.inputs :].sum(1)
        if factors.folded:
            assert layer.norm is not None
            scale = Fold.of(self.traced, layer.norm).scale
            weight = torch.where(scale[:, None] == 0, 0.0, weight / scale[:, None])
            if f"{layer.norm}.bias" in self.tensors:
                self._add(f"{layer.norm}.bias", constant, rows)
            else:
                self._add(f"{layer.norm}.running_mean", -constant / scale, rows)
        elif layer.bias is not None:
            self._add(layer.bias, constant, rows)
        self._add(layer.weight, weight, rows)
        self.layers.append(layer.name)

    def _add(self, name: str, change: Tensor, rows: slice) -> None:
        value = self.edited.setdefault(name, self.tensors[name].detach().clone())
        part = value[rows]
        part.copy_((part.double() + change.reshape(part.shape)).to(part.dtype))


def _note(method: str, layers: Sequence[str], left: Sequence[str]) -> str:
    note = f"compensated by {method} in {len(layers)} layers"
    return f"{note}; not in {', '.join(left)}" if left else note
