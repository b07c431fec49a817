"""A program, its analysis and a plan; what follows from them is computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

import fxprune
from fxprune import Analysis, Group, PruningPlan
from fxprune.axes import Atom
from fxprune.contexts import contexts
from tests.fuzz import reference
from tests.fuzz.program import Program


class Refused(Exception):
    """A program that says nothing, with the reason."""


@dataclass(eq=False)
class Case:
    """A program, its analysis and kept units for its groups; what follows is computed once."""

    program: Program
    model: nn.Module
    traced: fx.GraphModule
    analysis: Analysis
    kept: Mapping[str, Any]

    @cached_property
    def maskable(self) -> Mapping[str, Any]:
        """The kept units of the maskable groups."""
        names = {group.name for group in self.analysis.groups if group.maskable}
        return {name: rows for name, rows in self.kept.items() if name in names}

    @cached_property
    def allowed_contexts(self) -> Mapping[Atom, frozenset[Atom]]:
        """Per atom, those that could be its contexts."""
        return contexts(self.analysis.propagation)

    def rows(self, group: Group) -> Sequence[Sequence[int]]:
        """The kept units of a group, per context."""
        return reference.rows_of(group, self.kept)

    @cached_property
    def plan(self) -> PruningPlan:
        return PruningPlan.build(self.analysis, self.kept)

    @cached_property
    def pruned(self) -> fx.GraphModule:
        return fxprune.rewrite(self.traced, self.plan)

    @cached_property
    def masked_plan(self) -> PruningPlan:
        """The plan over the maskable groups."""
        return PruningPlan.build(self.analysis, self.maskable)

    @cached_property
    def masked_pruned(self) -> fx.GraphModule:
        same = self.masked_plan == self.plan
        return self.pruned if same else fxprune.rewrite(self.traced, self.masked_plan)

    def keep(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """Which entries of each parameter stay: computed here, not by the library."""
        shapes = {name: tuple(t.shape) for name, t in reference.tensors_of(self.model).items()}
        return reference.masks(self.analysis.groups, kept, shapes)

    @cached_property
    def other(self) -> tuple[nn.Module, fx.GraphModule, Analysis]:
        """The same program with other weights, traced and analysed on its own."""
        model = self.program.build(seed=1)
        traced = trace(model, self.program)
        return model, traced, fxprune.analyze(traced)

    @cached_property
    def masked_model(self) -> nn.Module:
        return reference.masked(self.model, self.keep(self.maskable))


def prepare(program: Program) -> tuple[nn.Module, fx.GraphModule, Analysis]:
    """The module, its graph and its groups. Raises Refused for a program that is dead."""
    model = program.build()
    outputs = run(model, program.example(3, seed=1))
    for tensor in outputs:
        if not bool(torch.isfinite(tensor).all()):
            raise Refused("an output is not finite")
        if float((tensor - tensor[:1]).abs().max()) <= 1e-6 * float(tensor.abs().max()):
            raise Refused("an output does not depend on the input")
    traced = trace(model, program)
    return model, traced, fxprune.analyze(traced, strict=True)


def trace(model: nn.Module, program: Program) -> fx.GraphModule:
    """The graph of a program: for most, only the batch size is free, which is faster to find."""
    if len(program.source) % 4 == 0:
        return fxprune.trace(model, program.example())
    free = {v.name: {d: d == 0 for d in range(len(v.shape))} for v in program.inputs}
    return fxprune.trace(model, program.example(), free)


def run(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The tensors that a module returns."""
    with torch.no_grad():
        return tensors(module(*inputs))


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def bits(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: t.detach().clone() for name, t in reference.tensors_of(module).items()}


def same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)
