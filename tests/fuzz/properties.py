"""What must hold for every program and every plan. Each property is one function of a `Case`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

import fxprune
from fxprune import Analysis, PruningPlan
from tests.fuzz import reference
from tests.fuzz.program import Program

TOLERANCE = 1e-9
BATCHES = (3, 1)


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
        return fxprune.rewrite(self.traced, self.masked_plan)

    def keep(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """Which entries of each parameter stay: computed here, not by the library."""
        shapes = {name: tuple(t.shape) for name, t in reference.tensors_of(self.model).items()}
        return reference.masks(self.analysis.groups, kept, shapes)

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
    traced = fxprune.trace(model, program.example())
    return model, traced, fxprune.analyze(traced, strict=True)


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


# -- the properties --------------------------------------------------------------------------------


def masked_equivalence(case: Case) -> None:
    """The pruned module is the original with removed entries at zero, at other batch sizes too."""
    for batch in BATCHES:
        inputs = case.program.example(batch, seed=batch)
        expected = run(case.masked_model, inputs)
        error = reference.relative_error(run(case.masked_pruned, inputs), expected)
        assert error <= TOLERANCE, f"batch {batch}: relative error {error:.1e}"


def masked_interpretation(case: Case) -> None:
    """With every kind of group pruned, `verify` agrees at another batch size."""
    inputs = case.program.example(3, seed=3)
    report = fxprune.verify(case.traced, case.plan, case.pruned, inputs)
    assert report.ok, str(report)


def original_untouched(case: Case) -> None:
    """Neither the model nor its graph changes by a bit."""
    fresh = case.program.build()
    assert same_bits(bits(case.model), bits(fresh)), "the model's state changed"
    code, state = case.traced.code, bits(case.traced)
    fxprune.rewrite(case.traced, case.plan)
    assert case.traced.code == code, "the graph changed"
    assert same_bits(bits(case.traced), state), "the graph's state changed"


PROPERTIES: Mapping[str, Callable[[Case], None]] = {
    f.__name__: f for f in (masked_equivalence, masked_interpretation, original_untouched)
}


class PropertyError(AssertionError):
    """A property does not hold; shows the program and the plan."""


def check(case: Case) -> None:
    """All properties. The error names the one that fails and shows how to see it again."""
    for name, holds in PROPERTIES.items():
        try:
            holds(case)
        except Exception as error:
            raise PropertyError(
                f"{name}: {type(error).__name__}: {error}\n{case.program!r}"
                f"# kept units: {dict(case.kept)}"
            ) from error
