"""Gradients of a program's parameters, and whether torch computes them right."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tests.fuzz.case import tensors


def is_derivative(
    module: nn.Module, inputs: tuple[Tensor, ...], name: str, gradients: Mapping[str, Tensor]
) -> bool:
    """Whether a parameter's gradient is the slope of the loss, measured by central differences
    along the gradient itself and along a random direction.
    """
    own = gradients[name]
    moved = copy.deepcopy(module)
    parameter, start = moved.get_parameter(name), module.get_parameter(name).detach()
    directions = (own, torch.randn(own.shape, generator=_generator(), dtype=own.dtype))
    for direction in directions:
        step = 1e-6 / max(float(direction.abs().max()), 1e-300) * direction
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.copy_(start + sign * step)
                losses.append(float(_loss(moved, inputs)))
        slope, stated = (losses[0] - losses[1]) / 2, float((own * step).sum())
        if abs(slope - stated) > 1e-4 * max(abs(slope), abs(stated)) + 1e-12 * abs(losses[0]):
            return False
    return True


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _loss(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """The outputs, weighted at random."""
    generator, loss = _generator(), torch.zeros((), dtype=torch.float64)
    for output in tensors(module(*inputs)):
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        loss = loss + (output * weights).sum()
    return loss


def gradients_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The gradient of each parameter; zero where nothing depends on it."""
    parameters = dict(module.named_parameters())
    loss = _loss(module, inputs)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g
        for (n, p), g in zip(parameters.items(), found, strict=True)
    }
