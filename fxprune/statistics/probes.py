"""Probes: see the values and gradients that pass a read, and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxprune.statistics.parts import Part
from fxprune.statistics.reads import Read

Sink: TypeAlias = Callable[[Tensor, Tensor], None]


class GradientProbe(torch.autograd.Function):
    """The identity; in the backward pass it hands its input and the gradient to a sink.

    `anchor` is any tensor that requires grad, so that the pass gets here even if the input does
    not depend on a parameter that does.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, sink: Sink) -> Tensor:
        """Return `x`."""
        ctx.save_for_backward(x)
        ctx.sink = sink
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Pass the gradient on."""
        (x,), (gradient,) = ctx.saved_tensors, grads
        ctx.sink(x, gradient)
        return gradient if ctx.needs_input_grad[0] else None, None, None


class MaskGradients:
    """Collects ∂L/∂m of every read into one table [samples, slots] per group."""

    def __init__(
        self, tables: dict[str, Tensor], transform: Callable[[Tensor], Tensor] | None
    ) -> None:
        self.tables, self.transform = tables, transform

    def sink(self, read: Read) -> Sink:
        """Where the gradients at one read go: m multiplies the operand, so ∂L/∂m = Σ x ∂L/∂x."""

        def collect(x: Tensor, gradient: Tensor) -> None:
            product = products(x, gradient)
            if self.transform is not None:
                product = self.transform(product)
            for part, sums in summed(product, read.parts):
                part.collect(
                    sums if read.power == 1 else sums / read.power, self.tables[part.group.name]
                )

        return collect


def products(x: Tensor, gradient: Tensor) -> Tensor:
    """X · ∂L/∂x elementwise, real, in single precision or better."""
    if x.is_complex():
        return torch.view_as_real(x).mul(torch.view_as_real(gradient)).sum(-1)
    if x.element_size() < 4:
        return x.float() * gradient.float()
    return x * gradient


def summed(values: Tensor, parts: Sequence[Part]) -> list[tuple[Part, Tensor]]:
    """`values` summed over all dimensions that do not matter to a part, kept with size 1."""
    known: dict[tuple[int, ...], Tensor] = {}
    found = []
    for part in parts:
        if part.dims not in known:
            others = [d for d in range(values.dim()) if d not in part.dims]
            known[part.dims] = values.sum(others, keepdim=True) if others else values
        found.append((part, known[part.dims]))
    return found
