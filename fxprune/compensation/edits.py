"""From what a pruned module has become back to new values in the original's shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx

from fxprune.plans import PruningPlan
from fxprune.slicing import Slicer
from fxprune.walks import named_tensors


def with_values_of(
    plan: PruningPlan, traced: fx.GraphModule, pruned: fx.GraphModule, names: Iterable[str]
) -> dict[str, Tensor]:
    """The values that make these tensors of the pruned module what they are.

    Entries that the plan removes keep the original's values; those of an added bias are zero.
    """
    originals = dict(named_tensors(traced))
    named = dict([*pruned.named_parameters(remove_duplicate=False), *pruned.named_buffers()])
    slicer, values = Slicer(plan), {}
    for name in sorted(names):
        own = named[name].detach()
        old = originals.get(name, own.new_zeros(plan.shape_of(name)))
        value = old.detach().clone(memory_format=torch.contiguous_format)
        value.view(-1)[slicer.kept_entries(name).reshape(-1)] = own.reshape(-1)
        values[name] = value
    return values


def note(method: str, layers: Sequence[str], left: Sequence[str]) -> str:
    """What a plan says of a method: how many layers it changed, and what it could not change."""
    text = f"compensated by {method} in {len(layers)} layers"
    return f"{text}; not in {', '.join(left)}" if left else text
