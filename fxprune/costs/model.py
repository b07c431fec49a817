"""The cost of a network as a function of its widths, and of any plan by arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from tabulate import tabulate
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fxprune.analysis import Analysis
from fxprune.costs.formulas import products
from fxprune.costs.polynomials import Compiled, Polynomial, Sizes, added
from fxprune.errors import PlanError
from fxprune.plans import PruningPlan
from fxprune.plans.values import weight_beside
from fxprune.propagate import Propagation, TensorAxes
from fxprune.slicing import Slicer


@dataclass(frozen=True)
class Amounts:
    """What a node, a unit or a network costs.

    macs               multiply-accumulates of matrix products, convolutions and recurrent layers
    parameters         number of parameter entries, tied ones counted once
    activation_memory  bytes of what the nodes of the graph return, views and inputs not counted:
                       what training keeps, not the peak of inference
    """

    macs: int
    parameters: int
    activation_memory: int


QUANTITIES = tuple(field.name for field in fields(Amounts))


@dataclass(frozen=True)
class NodeCost(Amounts):
    """The cost of one node of the graph, by its name; parameters count at the first node."""

    node: str
    target: str


@dataclass(frozen=True, repr=False)
class Cost(Amounts):
    """The cost of a network for one sample; print it to read it.

    batch  the number of samples in the example batch, along its free first dimension
    total  the exact cost of the example batch. MACs and bytes are `total / batch`, rounded up
           where samples share work, such as a table of relative positions.
    nodes  the same per sample for each node that costs anything, in graph order
    """

    batch: int
    total: Amounts
    nodes: tuple[NodeCost, ...]

    def __str__(self) -> str:
        rows = [
            (n.node, n.target, f"{n.macs:,}", f"{n.parameters:,}", f"{n.activation_memory:,}")
            for n in self.nodes
        ]
        rows.append(
            ("total", "", f"{self.macs:,}", f"{self.parameters:,}", f"{self.activation_memory:,}")
        )
        columns = ("node", "target", "MACs", "parameters", "activation bytes")
        align = ("left", "left", "right", "right", "right")
        return tabulate(rows, columns, "simple", colalign=align, disable_numparse=True)

    def __repr__(self) -> str:
        return (
            f"Cost(macs={self.macs}, parameters={self.parameters}, "
            f"activation_memory={self.activation_memory})"
        )


@dataclass(frozen=True, eq=False)
class CostModel:
    """Costs as polynomials in the widths of groups, from an analysis.

    batch  samples in the example batch
    sizes  the widths and their numbers
    nodes  per node of the graph: quantity → its polynomial, for the example batch
    """

    analysis: Analysis
    batch: int
    sizes: Sizes
    nodes: Mapping[str, Mapping[str, Polynomial]]

    @cached_property
    def totals(self) -> Mapping[str, Polynomial]:
        """Quantity → its polynomial for the whole network."""
        parts = self.nodes.values()
        return MappingProxyType({q: added(part[q] for part in parts) for q in QUANTITIES})

    @cached_property
    def compiled(self) -> Mapping[str, Compiled]:
        """Quantity → the network's polynomial, for quick evaluation."""
        return MappingProxyType({q: Compiled(p) for q, p in self.totals.items()})

    def widths(self, plan: PruningPlan | None) -> tuple[int, ...]:
        """All widths after a plan, or before any."""
        chosen = PruningPlan.build(self.analysis, {}) if plan is None else plan
        return tuple(width.after(chosen) for width in self.sizes.widths)

    def at(self, widths: Sequence[int] | Tensor) -> Amounts:
        """The cost of the example batch at these widths."""
        return Amounts(**{q: compiled.at(widths) for q, compiled in self.compiled.items()})

    def per_sample(self, amounts: Amounts) -> Amounts:
        """The share of one sample; parameters are shared by all."""
        return Amounts(
            -(-amounts.macs // self.batch),
            amounts.parameters,
            -(-amounts.activation_memory // self.batch),
        )

    def cost(self, plan: PruningPlan | None = None) -> Cost:
        """The cost of what a plan leaves."""
        widths, biases = self.widths(plan), self._added(plan)
        total = self.at(widths)
        total = replace(total, parameters=total.parameters + sum(biases.values()))
        targets = {n.name: _target(n) for n in self.analysis.traced.graph.nodes}
        rows = []
        for name, node in self.nodes.items():
            amounts = Amounts(**{q: value(polynomial, widths) for q, polynomial in node.items()})
            amounts = replace(amounts, parameters=amounts.parameters + biases.get(name, 0))
            if amounts != _NOTHING:
                each = self.per_sample(amounts)
                rows.append(NodeCost(**vars(each), node=name, target=targets.get(name, "")))
        each = self.per_sample(total)
        return Cost(**vars(each), batch=self.batch, total=total, nodes=tuple(rows))

    def _added(self, plan: PruningPlan | None) -> dict[str, int]:
        """By the node that reads them, how many entries are left of biases that a plan adds."""
        found: dict[str, int] = {}
        if plan is not None and plan.added:
            readers = _readers(self.analysis.traced)
            for name, bias in Slicer(plan).added_biases().items():
                node = _reader(readers, weight_beside(name) or name)
                found[node] = found.get(node, 0) + bias.numel()
        return found


_NOTHING = Amounts(0, 0, 0)


def cost(analysis: Analysis, plan: PruningPlan | None = None) -> Cost:
    """What the graph costs after a plan, or before any: MACs, parameters, activation bytes.

    Nothing runs: each number is a product of sizes that the analysis knows. MACs equal what torch's
    FlopCounterMode counts on the pruned module (half the flops, with attention as matrix products),
    and also those of recurrent layers, matrix-vector products and the like, which it leaves out.

    Raises PlanError if the plan was made for another graph.
    """
    _require_analysis(analysis)
    if plan is not None:
        plan.check_fingerprint(analysis.fingerprint)
    return cost_model(analysis).cost(plan)


def savings(analysis: Analysis, plan: PruningPlan | None = None) -> dict[str, Amounts]:
    """What one more unit of each group would save after a plan, for one sample as in `Cost`.

    Returns {group name: Amounts}, for the groups that have a unit to lose, in their order. Of a
    group with several contexts it is one unit of each. Where units of a group differ in cost, as
    they may where a tensor has only some of them, it is the group's last kept unit.

    Raises PlanError if the plan was made for another graph.
    """
    _require_analysis(analysis)
    chosen = PruningPlan.build(analysis, {}) if plan is None else plan
    chosen.check_fingerprint(analysis.fingerprint)
    model = cost_model(analysis)
    widths = list(model.widths(chosen))
    before = model.at(widths)
    result: dict[str, Amounts] = {}
    numbers: dict[str, list[int]] = {}
    for number, width in enumerate(model.sizes.widths):
        numbers.setdefault(width.group, []).append(number)
    for group in analysis.groups:
        last = int(chosen.kept(group).reshape(group.contexts, -1)[0, -1])
        own = [n for n in numbers[group.name] if model.sizes.widths[n].has(last)]
        if widths[own[0]] > 1:
            less = [w - (n in own) for n, w in enumerate(widths)]
            after = model.at(less)
            saved = Amounts(*(getattr(before, q) - getattr(after, q) for q in QUANTITIES))
            result[group.name] = model.per_sample(saved)
    return result


def _require_analysis(value: object) -> None:
    if not isinstance(value, Analysis):
        raise PlanError(
            "Costs are read from the analysis that fxprune.analyze returns, not from a "
            f"{type(value).__name__}."
        )


def cost_model(analysis: Analysis) -> CostModel:
    """The cost of an analysed graph as a function of its widths."""
    sizes = Sizes(analysis.grouped)
    macs, memory = _macs(analysis.propagation, sizes), _memory(analysis.propagation, sizes)
    parameters = _parameters(analysis, sizes)
    names = dict.fromkeys([*(n.name for n in analysis.traced.graph.nodes), *parameters])
    nodes = {
        name: MappingProxyType(
            {
                "macs": added(macs.get(name, ())),
                "parameters": added(parameters.get(name, ())),
                "activation_memory": added(memory.get(name, ())),
            }
        )
        for name in names
    }
    return CostModel(analysis, _batch(analysis.traced), sizes, MappingProxyType(nodes))


def _macs(propagation: Propagation, sizes: Sizes) -> dict[str, list[Polynomial]]:
    found: dict[str, list[Polynomial]] = {}
    for record in propagation.records:
        for factors in products(record):
            found.setdefault(record.site.name, []).append(sizes.product(factors))
    return found


def _memory(propagation: Propagation, sizes: Sizes) -> dict[str, list[Polynomial]]:
    """The bytes of each tensor that a node returns, if no earlier node returned its storage."""
    bytes_of = {
        key: tensor.element_size()
        for record in propagation.records
        for key, tensor in zip(record.outputs, record.call.outputs, strict=True)
    }
    seen = {propagation.storages[key] for key in propagation.sources}
    found: dict[str, list[Polynomial]] = {}
    for node, value in propagation.nodes.items():
        tensors = {leaf.key: leaf for leaf in tensors_in(value)}
        fresh = {key for key in tensors if propagation.storages[key] not in seen}
        seen |= {propagation.storages[key] for key in fresh}
        if node.op not in ("placeholder", "get_attr", "output"):
            found[node.name] = [
                added([sizes.product(tensors[key].axes)], bytes_of[key])
                for key in fresh & bytes_of.keys()
            ]
    return found


def _parameters(analysis: Analysis, sizes: Sizes) -> dict[str, list[Polynomial]]:
    """Each parameter at the first node that reads it, or under "" if none does."""
    readers = _readers(analysis.traced)
    found: dict[str, list[Polynomial]] = {}
    for name, parameter in analysis.traced.named_parameters():
        layout = analysis.propagation.layouts[name]
        size = sizes.product(layout) if parameter.numel() else {}
        found.setdefault(_reader(readers, name), []).append(size)
    return found


def _readers(traced: fx.GraphModule) -> dict[str, str]:
    """Path of a module or tensor → the first node that reads it."""
    readers: dict[str, str] = {}
    for node in traced.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            readers.setdefault(str(node.target), node.name)
    return readers


def _reader(readers: Mapping[str, str], name: str) -> str:
    """The first node that reads a parameter, or ""."""
    return next((readers[path] for path in _paths(name) if path in readers), "")


def _paths(name: str) -> Iterable[str]:
    """A parameter and the modules that it lies in, innermost first."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def tensors_in(value: Any) -> Iterable[TensorAxes]:
    """The tensors of a node's value, as `Propagation.nodes` states it."""
    leaves = [value] if isinstance(value, TensorAxes) else tree_leaves(value)
    return (leaf for leaf in leaves if isinstance(leaf, TensorAxes))


def _batch(traced: fx.GraphModule) -> int:
    """The size of the first free leading dimension among the inputs; 1 if there is none."""
    info = traced.meta.get("fxprune")
    dynamic = info.dynamic if info is not None else {}
    for node in traced.graph.nodes:
        example = node.meta.get("val")
        if isinstance(example, Tensor) and 0 in dynamic.get(str(node.target), ()):
            return max(example.shape[0], 1)
    return 1


def _target(node: fx.Node) -> str:
    named = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return str(named)


def value(polynomial: Polynomial, widths: Sequence[int]) -> int:
    """The value of one polynomial at widths."""
    total = 0
    for monomial, coefficient in polynomial.items():
        for number in monomial:
            coefficient *= widths[number]
        total += coefficient
    return total
