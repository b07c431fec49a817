"""A rule for an operator of your own: it says which axes the operator couples.

    python -m examples.custom_rule

Without a rule an operator is a barrier: what it touches is frozen, never guessed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune
from fxprune.rules import Call, Effect, Kind


@torch.library.custom_op("examples::swiglu", mutates_args=())
def swiglu(gate: Tensor, value: Tensor, scale: Tensor) -> Tensor:
    """[..., n], [..., n], [n] → [..., n], as a fused kernel might compute it."""
    return nn.functional.silu(gate) * value * scale


@swiglu.register_fake
def _(gate: Tensor, value: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(gate)


class Network(nn.Module):
    """A gated MLP with the operator in its middle."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(8, 32), nn.Linear(8, 32)
        self.scale = nn.Parameter(torch.ones(32))
        self.out = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(swiglu(self.gate(x), self.value(x), self.scale))


def swiglu_rule(call: Call) -> Effect:
    """All three have the same channels; a channel without weights stays zero."""
    gate, value, (scale,) = (call.axes(name) for name in ("gate", "value", "scale"))
    axes = tuple(call.algebra.unify(one, other) for one, other in zip(gate, value, strict=True))
    call.algebra.unify(axes[-1], scale)
    return Effect((axes,), Kind.POINTWISE)


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    traced = fxprune.trace(Network(), x)

    print("without a rule:", [group.name for group in fxprune.analyze(traced).groups])
    analysis = fxprune.analyze(traced, rules={"examples::swiglu": swiglu_rule})
    print("with it:       ", [group.name for group in analysis.groups])

    plan = fxprune.plan(analysis, sparsity=0.5)
    pruned = fxprune.rewrite(traced, plan)
    print(fxprune.verify(traced, plan, pruned, x))
    print({name: tuple(p.shape) for name, p in pruned.named_parameters()})


if __name__ == "__main__":
    main()
