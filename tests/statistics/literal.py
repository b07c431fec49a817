"""The criteria, written out: one sample, one unit, one weight at a time, on the eager model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxprune import Group, Member
from tests.statistics.networks import Problem


@dataclass(frozen=True)
class Seen:
    """What one layer reads: its input and weight, and the unit of each of its input columns."""

    inputs: Tensor  # [samples, columns, ...]
    weight: Tensor  # [outputs, columns, ...]
    unit: Tensor  # [columns]

    def columns(self, unit: int) -> list[int]:
        return [j for j, u in enumerate(self.unit.tolist()) if u == unit]


def seen(problem: Problem, group: Group) -> list[Seen]:
    """What the layers that read a group see, from hooks on the eager model."""
    inputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
        for name, module in problem.model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        problem.model(problem.inputs)
    for hook in hooks:
        hook.remove()
    named = dict(problem.model.named_parameters())
    return [
        Seen(inputs[m.parameter.rpartition(".")[0]], named[m.parameter].detach(), m.unit)
        for m in group.members
        if m.role == "consumer"
    ]


def owned(member: Member) -> list[tuple[int, int]]:
    """The columns that belong to units, with their unit."""
    return [(column, unit) for column, unit in enumerate(member.unit.tolist()) if unit >= 0]


def mask_gradient(problem: Problem, group: Group, sample: int, unit: int) -> float:
    """The slope of one sample's loss when one unit's consumer weights are scaled: central
    differences of fourth order.
    """

    def loss(mask: float) -> float:
        factor = torch.ones(group.shape, dtype=torch.float64)
        factor[unit] = mask
        weights = {}
        for member in group.members:
            if member.role == "consumer":
                weight = problem.analysis.parameters[member.parameter]
                weights[member.parameter] = weight * member.spread(factor, group, 1.0, weight.dim())
        with torch.no_grad():
            return float(problem.losses(weights)[sample])

    h = 1e-3
    return (8 * (loss(1 + h) - loss(1 - h)) - (loss(1 + 2 * h) - loss(1 - 2 * h))) / (12 * h)


def gradients(problem: Problem, sample: int | None = None) -> dict[str, Tensor]:
    """The gradient of the mean loss, or of one sample's, by each parameter of the eager model."""
    outputs = problem.model(problem.inputs)
    losses = nn.functional.cross_entropy(outputs, problem.targets, reduction="none")
    loss = losses.mean() if sample is None else losses[sample]
    named = dict(problem.model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def values(view: Seen, unit: int) -> Iterator[tuple[int, Tensor]]:
    """Each column of a unit, with all values that it ever has."""
    for column in view.columns(unit):
        yield column, view.inputs[:, column].reshape(-1)


def apoz(problem: Problem, group: Group, unit: int) -> float:
    shares = []
    for view in seen(problem, group):
        entries = torch.cat([v for _, v in values(view, unit)]).tolist()
        shares.append(sum(entry != 0 for entry in entries) / len(entries))
    return sum(shares) / len(shares)


def mean_activation(problem: Problem, group: Group, unit: int) -> float:
    means = []
    for view in seen(problem, group):
        entries = torch.cat([v for _, v in values(view, unit)]).tolist()
        means.append(sum(abs(entry) for entry in entries) / len(entries))
    return sum(means) / len(means)


def hrank(problem: Problem, group: Group, unit: int) -> float | None:
    means = []
    for view in seen(problem, group):
        if view.inputs.dim() == 4:
            maps = [m for column in view.columns(unit) for m in view.inputs[:, column]]
            ranks = [int((torch.linalg.svdvals(m) > 1e-9).sum()) for m in maps]
            means.append(sum(ranks) / len(ranks))
    return sum(means) / len(means) if means else None


def wanda_sp(problem: Problem, group: Group, unit: int) -> float:
    total = 0.0
    for view in seen(problem, group):
        for column, entries in values(view, unit):
            norm = (sum(e * e for e in entries.tolist()) / len(entries)) ** 0.5
            total += sum(abs(w) * norm for w in view.weight[:, column].reshape(-1).tolist())
    return total


def flap(problem: Problem, group: Group, unit: int) -> float:
    total = 0.0
    for view in seen(problem, group):
        for column, entries in values(view, unit):
            mean = sum(entries.tolist()) / len(entries)
            variance = sum((e - mean) ** 2 for e in entries.tolist()) / len(entries)
            total += sum(w * w * variance for w in view.weight[:, column].reshape(-1).tolist())
    return total


def snip_weight(
    problem: Problem, group: Group, unit: int, roles: Sequence[str] = ("consumer",)
) -> float:
    named, slopes = dict(problem.model.named_parameters()), gradients(problem)
    total = 0.0
    for member in group.members:
        if member.role in roles:
            for place, owner in enumerate(member.unit.tolist()):
                if owner == unit:
                    weight, slope = (
                        tensors[member.parameter].select(member.dim, place).reshape(-1).tolist()
                        for tensors in (named, slopes)
                    )
                    total += sum(abs(w * s) for w, s in zip(weight, slope, strict=True))
    return total
