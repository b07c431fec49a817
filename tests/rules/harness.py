"""Brute force on one op at a time: every tensor input is a parameter, every output axis stays free.

What the rules claim is checked by computing: a small graph is analysed, pruned by the rewriter and
compared, in float64, with the original whose outputs are sliced by their axes. The reading of axes
here is independent of the library's own: an axis is written out index by index, as the units that
must be kept for that index to stay.
"""

from __future__ import annotations

import copy
import functools
import operator
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fxprune import grouping
from fxprune import propagate as propagate_module
from fxprune.analysis import _CACHE, Analysis, _Cache, fingerprint
from fxprune.axes import Atom, Axis, leaves
from fxprune.groups import Group
from fxprune.plans import PruningPlan
from fxprune.propagate import Propagation, TensorAxes, propagate
from fxprune.rewriter import rewrite
from fxprune.rules import RULES
from tests.rules.survivors import Survivors

TOLERANCE = 1e-12


@dataclass(frozen=True)
class Input:
    """One tensor that an op reads.

    make   its value; floating ones become parameters, others buffers
    fixed  it is data: a graph input, whose dimensions may not change
    """

    make: Callable[[], Tensor]
    fixed: bool = False


@dataclass(frozen=True)
class Sample:
    """One use of one or more ops.

    ops      the rules that it must exercise, by their names in RULES or MODULE_RULES
    run      a function of the tensors, or makes a module whose forward is one
    inputs   the tensors
    random   results are random: only the structure can be compared
    module   `run` makes a module
    over_flagged   why zeroing may be exact although a group is flagged as not maskable
    over_frozen    why a dimension is frozen although slicing it commutes with the op
    """

    ops: str
    run: Callable[..., Any]
    inputs: tuple[Input, ...]
    random: bool = False
    module: bool = False
    over_flagged: str | None = None
    over_frozen: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.ops.split())


def write(tensor: Tensor, key: Any, value: Any) -> None:
    """``tensor[key] = value``, which a symbolic trace refuses to see."""
    tensor[key] = value


def create(beside: Tensor, name: str, *args: Any, **kwargs: Any) -> Any:
    """``torch.<name>(...)``, which a symbolic trace would run at once."""
    return getattr(torch, name)(*args, **kwargs)


# -- from a sample to an analysed graph ------------------------------------------------------------


def values_of(sample: Sample, seed: int = 0) -> list[Tensor]:
    """The input tensors, the same for the same seed."""
    torch.manual_seed(seed)
    return [given.make() for given in sample.inputs]


def graph_of(sample: Sample, values: Sequence[Tensor]) -> fx.GraphModule:
    """A graph of the sample in which inputs are parameters and buffers, save for the fixed ones."""
    torch.manual_seed(1)
    traced = fx.symbolic_trace(_module(sample) if sample.module else _plain(sample))
    traced.eval()
    for node in traced.graph.nodes:
        node.meta.pop("is_wrapped", None)
        if node.target is write:
            node.target = operator.setitem
        if node.target is create:
            _, name, *rest = node.args
            node.target, node.args = getattr(torch, str(name)), tuple(rest)
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    traced.meta["inputs"] = [f"in_{node.name}" for node in placeholders]
    for node, given, value in zip(placeholders, sample.inputs, values, strict=True):
        if given.fixed:
            node.meta["val"] = value.to("meta")
            continue
        name = f"in_{node.name}"
        if value.is_floating_point():
            traced.register_parameter(name, nn.Parameter(value, requires_grad=False))
        else:
            traced.register_buffer(name, value)
        with traced.graph.inserting_before(node):
            node.replace_all_uses_with(traced.graph.get_attr(name))
        traced.graph.erase_node(node)
    traced.recompile()
    return traced


def _module(sample: Sample) -> nn.Module:
    """The sample's module in eval mode, with nothing left at its initial zeros and ones."""
    module: nn.Module = sample.run().double().eval()
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.2, 0.8)
    return module


_PLAIN: Mapping[int, Callable[..., Any]] = {
    1: lambda f: lambda a: f(a),
    2: lambda f: lambda a, b: f(a, b),
    3: lambda f: lambda a, b, c: f(a, b, c),
    4: lambda f: lambda a, b, c, d: f(a, b, c, d),
}


def _plain(sample: Sample) -> Callable[..., Any]:
    """symbolic_trace takes Python functions only, and makes inputs of their defaults."""
    code = getattr(sample.run, "__code__", None)
    if code is not None and code.co_argcount == len(sample.inputs):
        return sample.run
    return _PLAIN[len(sample.inputs)](sample.run)  # type: ignore[no-any-return]


class _Open(propagate_module._Runner):
    """Leaves the axes of the graph's results as free as the rules left them."""

    def _freeze(self, value: Any, reason: str) -> None:
        if reason != "model output":
            super()._freeze(value, reason)


def analyze_open(traced: fx.GraphModule, contexts: bool = False) -> Analysis:
    """The analysis of a graph whose outputs may shrink; `rewrite` finds it in the graph.

    Without `contexts`, all groups choose the same units everywhere: where every dimension is free,
    almost every other one could be a context.
    """
    found = grouping.contexts if contexts else lambda _: {}
    with (
        patch.object(propagate_module, "_Runner", _Open),
        patch.object(grouping, "contexts", found),
    ):
        propagation = propagate(traced)
        analysis = Analysis(
            traced, fingerprint(traced), propagation, grouping.build_groups(propagation)
        )
    traced.meta[_CACHE] = _Cache(analysis)
    return analysis


def executed(propagation: Propagation) -> set[str]:
    """The names of the rules that were applied."""
    found: set[str] = set()
    for record in propagation.records:
        name = record.call.name.removeprefix("aten::").removeprefix("prims::")
        found.add(name if name in RULES or not name.endswith("_") else name[:-1])
    return found


def output_axes(analysis: Analysis) -> list[tuple[Axis, ...]]:
    """The axes of each tensor that the graph returns."""
    node = next(n for n in analysis.traced.graph.nodes if n.op == "output")
    stated = tree_leaves(analysis.propagation.nodes[node])
    return [v.axes for v in stated if isinstance(v, TensorAxes)]


def atoms_over(analysis: Analysis) -> set[Atom]:
    """The atoms that some op sums, normalises or otherwise mixes over."""
    records = analysis.propagation.records
    return {a for r in records for axis in r.effect.over for a in leaves(axis)}


def atoms_of(analysis: Analysis, group: Group) -> list[Atom]:
    """The atoms that a group's units belong to."""
    atoms: dict[Atom, None] = {}
    for member in group.members:
        for atom in leaves(analysis.propagation.layouts[member.parameter][member.dim]):
            if analysis.grouped.units.get(atom.key, ("", 0))[0] == group.name:
                atoms[atom] = None
    return list(atoms)


# -- plans and runs --------------------------------------------------------------------------------


def random_row(group: Group, generator: random.Random) -> Any:
    """Kept indices that leave out a unit or more: a row, or one per context."""
    count = generator.randint(1, group.size - 1)
    rows = [sorted(generator.sample(range(group.size), count)) for _ in range(group.contexts)]
    return rows[0] if group.contexts == 1 else rows


def run_graph(module: fx.GraphModule, data: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that a graph returns; random ops see the same seed every time."""
    torch.manual_seed(3)
    with torch.no_grad():
        return [t for t in tree_leaves(module(*data)) if isinstance(t, Tensor)]


def masked_copy(traced: fx.GraphModule, plan: PruningPlan, names: Sequence[str]) -> fx.GraphModule:
    """The graph with the entries zeroed that the plan removes in the named groups."""
    kept = {name: row for name, row in plan.kept_units.items() if name in names}
    part = PruningPlan(plan.groups, kept, plan.shapes, plan.fingerprint)
    masked = copy.deepcopy(traced)
    tensors = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
    with torch.no_grad():
        for name, mask in part.masks().items():
            tensors[name].masked_fill_(~mask, 0)
    return masked


def same(expected: Tensor, got: Tensor) -> bool:
    """Equal to 1e-12 relative to the largest entry; NaN equals NaN."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return False
    if not expected.is_floating_point() and not expected.is_complex():
        return torch.equal(expected, got)
    finite = expected[torch.isfinite(expected)]
    scale = float(finite.abs().max()) if finite.numel() else 1.0
    return torch.allclose(
        expected, got, rtol=TOLERANCE, atol=TOLERANCE * max(scale, 1.0), equal_nan=True
    )


@dataclass
class Case:
    """A sample's graph, its analysis, and what its groups are."""

    sample: Sample
    traced: fx.GraphModule
    analysis: Analysis
    data: tuple[Tensor, ...]

    @classmethod
    def build(
        cls,
        sample: Sample,
        change: Callable[[fx.GraphModule], None] | None = None,
        contexts: bool = False,
    ) -> Case:
        values = values_of(sample)
        traced = graph_of(sample, values)
        if change is not None:
            change(traced)
            traced.recompile()
        data = tuple(v for v, g in zip(values, sample.inputs, strict=True) if g.fixed)
        return cls(sample, traced, analyze_open(traced, contexts), data)

    def mixed(self) -> set[str]:
        """Names of the groups that some op mixes over."""
        over = atoms_over(self.analysis)
        groups = self.analysis.groups
        return {g.name for g in groups if any(a in over for a in atoms_of(self.analysis, g))}

    def plan(self, groups: Sequence[Group], generator: random.Random) -> PruningPlan:
        rows = {group.name: random_row(group, generator) for group in groups}
        return PruningPlan.build(self.analysis, rows)

    def pruned(self, plan: PruningPlan) -> list[Tensor]:
        return run_graph(rewrite(self.traced, plan), self.data)

    def reference(self, plan: PruningPlan, masked: Sequence[str]) -> list[Tensor]:
        """The original's outputs, with `masked` groups zeroed, sliced by the output axes."""
        survivors = Survivors(self.analysis, plan)
        full = run_graph(masked_copy(self.traced, plan, masked), self.data)
        result: list[Tensor] = []
        for value, layout in zip(full, output_axes(self.analysis), strict=True):
            result.append(survivors.cut(value, layout))
        return result

    def disagreement(self, plan: PruningPlan, masked: Sequence[str]) -> str | None:
        """None if the pruned graph returns what `reference` does."""
        pruned, reference = self.pruned(plan), self.reference(plan, masked)
        for position, (got, expected) in enumerate(zip(pruned, reference, strict=True)):
            if expected.numel() == got.numel() == 0:
                continue
            if got.shape != expected.shape or not (self.sample.random or same(expected, got)):
                shapes = f"{tuple(got.shape)} against {tuple(expected.shape)}"
                return f"output {position}: {shapes} under {plan}"
        return None


def is_exact(case: Case, group: Group, generator: random.Random, masked: bool = True) -> bool:
    """True if zeroing the removed units of a group gives what removing them gives, twice."""
    for _ in range(2):
        plan = case.plan([group], generator)
        try:
            if case.disagreement(plan, [group.name] if masked else []) is not None:
                return False
        except torch.linalg.LinAlgError:  # zeros make a matrix singular
            return False
    return True


@functools.cache
def plain_case(sample: Sample) -> Case:
    """The case of a sample as it is, built once."""
    return Case.build(sample)
