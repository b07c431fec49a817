"""What the zoo's tests have in common: live weights, random plans, comparisons of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

import fxprune
from fxprune import Analysis, Group, Member, PruningPlan

TOLERANCE = 1e-9


def enliven(model: nn.Module, example: Mapping[str, Any]) -> nn.Module:
    """Draw every parameter anew, so that no path is dead, and fit the running statistics.

    Models come with heads and layer scales that start at zero, and with scales so small that a
    wrong index behind them would stay below any tolerance.
    """
    model = model.double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_draw(name, parameter, generator))
        for norm in _batch_norms(model):
            if norm.bias is not None:
                norm.bias.add_(0.5)  # a ReLU behind it then rarely keeps a channel shut
    _fit_running_statistics(model, example)
    return model


def _draw(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    if name.endswith("bias"):
        return noise * 0.1
    if parameter.numel() == max(parameter.shape, default=1):  # a scale per channel, or for all
        return 1 + 0.1 * noise
    fan_in = parameter[0].numel()
    return noise * (2 / fan_in) ** 0.5


def _batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _fit_running_statistics(model: nn.Module, example: Mapping[str, Any]) -> None:
    """One pass in which only batch normalisations train, so that activations keep their scale."""
    norms = _batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(**example)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval().momentum = momentum
            if norm.running_var is not None:
                norm.running_var.clamp_(min=0.1)


def random_plan(analysis: Analysis, accept: Callable[[Group], bool], seed: int = 0) -> PruningPlan:
    """A plan that removes a random half of the units of every accepted group, nested or not."""
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, Any] = {}
    for group in analysis.groups:
        if accept(group) and group.size > 1:
            count = group.size - group.size // 2
            rows = [
                sorted(torch.randperm(group.size, generator=generator)[:count].tolist())
                for _ in range(group.contexts)
            ]
            kept[group.name] = rows if group.contexts > 1 else rows[0]
    return PruningPlan.build(analysis, kept)


def tensors(output: Any) -> list[Tensor]:
    """The floating tensors of a model's output."""
    if dataclasses.is_dataclass(output):
        output = vars(output)
    output = dict(output) if isinstance(output, Mapping) else output
    found = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return [leaf for leaf in found if leaf.is_floating_point()]


def structure(output: Any) -> Any:
    """Type, keys and tensor shapes of a model's output."""
    if dataclasses.is_dataclass(output):
        return type(output), structure(vars(output))
    if isinstance(output, Mapping):
        return type(output), {key: structure(value) for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        return type(output), [structure(value) for value in output]
    return tuple(output.shape) if isinstance(output, Tensor) else type(output)


def relative_error(actual: Any, expected: Any) -> float:
    """max|a-b| / max|b| per output tensor, the largest over outputs; NaN counts as infinite."""
    pairs = list(zip(tensors(actual), tensors(expected), strict=True))
    assert pairs, "the output has no floating tensor"
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    return worst if worst == worst else float("inf")


def run(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """The model's output, without gradients."""
    with torch.no_grad():
        return model(**inputs)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by each of their names."""
    named = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {name: tensor.data for name, tensor in named}


def apply_masks(model: nn.Module, plan: PruningPlan) -> None:
    """Set what the plan removes to zero."""
    named = named_tensors(model)
    for name, mask in plan.masks().items():
        if mask.dtype is torch.bool and not bool(mask.all()):
            named[name].copy_(named[name] * mask)


def prepared(
    build: Callable[[], nn.Module], example: Callable[[], Mapping[str, Any]]
) -> tuple[nn.Module, fx.GraphModule, Analysis]:
    """A model with live weights, its graph and its analysis.

    A test draws the same numbers afterwards, whether this was remembered or not.
    """
    with torch.random.fork_rng():
        torch.manual_seed(1)
        inputs = example()
        model = enliven(build(), inputs)
        traced = fxprune.trace(model, inputs)
    return model, traced, fxprune.analyze(traced, strict=True)


def assert_alive(output: Any) -> None:
    """The output must depend on the input: it differs between the samples of a batch."""
    for tensor in tensors(output):
        spread = (tensor - tensor[:1]).abs().max() / tensor.abs().max()
        assert spread > 1e-3, f"an output hardly depends on the input: {float(spread):.1e}"


def assert_heard(pruned: nn.Module, group: Group, inputs: Mapping[str, Any]) -> None:
    """The weights of a unit of the group must change the output."""
    _noticed(pruned, group, inputs, lambda units, n: units[n] + torch.randn_like(units[n]))


def _noticed(
    pruned: nn.Module,
    group: Group,
    inputs: Mapping[str, Any],
    changed: Callable[[Tensor, int], Tensor],
) -> tuple[Tensor, Tensor]:
    """The weights of a unit that change the output if they become `changed`; and what they become.

    changed  is given the weights of all units, and the unit's number
    """
    before = run(pruned, inputs)
    member = _weight_member(group)
    units = named_tensors(pruned)[member.parameter].movedim(member.dim, 0)
    for number, unit in enumerate(units[:16]):
        saved, other = unit.clone(), changed(units, number).clone()
        unit.copy_(other)
        change = relative_error(run(pruned, inputs), before)
        unit.copy_(saved)
        if change > 100 * TOLERANCE:
            return unit, other
    raise AssertionError(f"the output ignores the weights of {group.name}")


def _weight_member(group: Group) -> Member:
    """The parameter dimension that says most about a group: one that produces its units, if any."""
    roles = ("producer", "consumer", "norm", "bias")
    return min(group.members, key=lambda member: roles.index(member.role))


def spoil(pruned: nn.Module, group: Group, inputs: Mapping[str, Any]) -> None:
    """Give one parameter of `pruned` one wrong index: a unit gets another one's entries.

    A unit for which that changes the output: two that an activation cuts off are as good.
    """
    unit, other = _noticed(pruned, group, inputs, lambda units, n: units[(n + 1) % len(units)])
    unit.copy_(other)


def train_one_step(pruned: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Back-propagate and take one step of SGD in train mode; what was pruned must move."""
    pruned.train()
    before = {name: p.detach().clone() for name, p in pruned.named_parameters()}
    optimiser = torch.optim.SGD(pruned.parameters(), lr=0.01)
    loss = torch.stack([t.square().mean() for t in tensors(pruned(**inputs))]).sum()
    loss.backward()
    trainable = {name: p for name, p in pruned.named_parameters() if p.requires_grad}
    for name, parameter in trainable.items():
        assert parameter.grad is not None, f"{name} got no gradient"
        assert bool(torch.isfinite(parameter.grad).all()), f"the gradient of {name} is not finite"
    optimiser.step()
    moved = [name for name, p in pruned.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) > 0.5 * len(trainable), f"only {moved} of {len(trainable)} moved"


def verify_all(
    traced: fx.GraphModule, plan: PruningPlan, pruned: fx.GraphModule, inputs: Mapping[str, Any]
) -> fxprune.EquivalenceReport:
    """The report of `fxprune.verify` at this file's tolerance."""
    return fxprune.verify(traced, plan, pruned, dict(inputs), tolerance=TOLERANCE)
