"""What Torch-Pruning 1.6.1 computes by default, written as criteria on fxprune's groups.

Where these scores are its own, up to rounding, what differs between both libraries' results is the
definition of the criterion and not the groups, the data or the allocation. All are means over the
layers of a group, divided by their mean over its units; depthwise convolutions count in none.

- l2, lamp: squared norms of producer rows, reader columns and the scales γ of batch normalisation
- fpgm: of producer rows and reader columns, squared entry by entry, the sums of distances
- taylor: Σ|θ ∂L/∂θ| over producers and readers, without γ; multivariable: Σ|Σ θ ∂L/∂θ|, the
  inner sum over a row or column of a weight
- hessian: Σ θ²(∂L/∂θ)² over all three, of the last sample alone: its accumulator looks for names
  among parameters, finds none, and begins anew with every sample
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from fxprune import Analysis, Group, Member, Statistics

Rows = Callable[[Tensor], Tensor]


def deviations(
    model: nn.Module,
    analysis: Analysis,
    gradient: Statistics,
    last: Statistics,
    found: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, float]:
    """The largest relative difference of each of Torch-Pruning's scores from its definition.

    gradient  of the data that its Taylor sees
    last      of the last sample that its Hessian sees
    """
    weights = {name: tensor.detach().double() for name, tensor in analysis.parameters.items()}
    signed = {n: g * weights[n] for n, g in gradient.param_grads().items()}
    taylor = {name: product.abs() for name, product in signed.items()}
    hessian = {n: (g * weights[n]).square() for n, g in last.param_grads().items()}
    squares = {name: tensor.square() for name, tensor in weights.items()}
    depthwise = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1
    }
    counted = {name for name in weights if name.endswith("weight")} - depthwise
    result: dict[str, float] = {}
    for group in analysis.groups:
        layers = [m for m in group.members if m.parameter in counted]
        own = {
            "l2": _normal(_mean(group, squares, layers, "norm")),
            "lamp": _lamp(_mean(group, squares, layers, "norm")),
            "fpgm": _normal(torch.stack(list(_distances(group, squares, layers))).mean(0)),
            "taylor": _normal(_mean(group, taylor, layers)),
            "taylor, multivariable": _normal(
                torch.stack(list(_changes(group, signed, layers))).mean(0)
            ),
            "hessian": _normal(_mean(group, hessian, layers, "norm")),
        }
        for name, scores in own.items():
            theirs = found[name][group.name]
            apart = float((scores - theirs).abs().max() / theirs.abs().max())
            result[name] = max(result.get(name, 0.0), apart)
    return result


def _mean(group: Group, entries: Mapping[str, Tensor], layers: list[Member], *also: str) -> Tensor:
    """The mean over layers of the sums over what each unit owns."""
    roles = {"producer", "consumer", *also}
    parts = [m.reduce(entries[m.parameter], group) for m in layers if m.role in roles]
    return torch.stack(parts).mean(0)


def _changes(group: Group, signed: Mapping[str, Tensor], layers: list[Member]) -> Iterator[Tensor]:
    for member in layers:
        if member.role in ("producer", "consumer"):
            rows = signed[member.parameter].movedim(member.dim, 0).flatten(1)
            yield member.collect(rows.sum(1).abs(), group)


def _distances(
    group: Group, squares: Mapping[str, Tensor], layers: list[Member]
) -> Iterator[Tensor]:
    for member in layers:
        if member.role in ("producer", "consumer"):
            rows = squares[member.parameter].movedim(member.dim, 0).flatten(1)
            yield member.collect(torch.cdist(rows, rows).sum(0), group)


def _normal(scores: Tensor) -> Tensor:
    return scores / scores.mean()


def _lamp(scores: Tensor) -> Tensor:
    order = scores.argsort(descending=True)
    shares = scores[order] / scores[order].cumsum(0)
    return torch.empty_like(scores).scatter_(0, order, shares)
