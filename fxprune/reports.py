"""What pruning changed: groups, layers, parameters, MACs, memory and latency, before and after."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate
from torch import fx, nn

from fxprune.analysis import Analysis
from fxprune.costs import Amounts, Cost, CostModel, cost_model
from fxprune.groups import Group
from fxprune.plans import PruningPlan
from fxprune.timing import LatencyReport

OTHER = "(no weights)"
"""The name of the row of layers that holds what products without weights cost, as attention has."""


@dataclass(frozen=True)
class GroupRow:
    """What happened to one group: its units, and what the entries and ops with its units cost.

    What two groups share, as a convolution's input and output channels do, counts in both. MACs and
    activation bytes are for one sample.
    """

    name: str
    contexts: int
    units_before: int
    units_after: int
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    activation_memory_before: int
    activation_memory_after: int
    maskable: bool


@dataclass(frozen=True)
class LayerRow:
    """One layer: a module or parameter that makes units, how many, and its cost for one sample."""

    name: str
    width_before: int
    width_after: int
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int


@dataclass(frozen=True, repr=False)
class PruneReport:
    """What pruning changed; print it to read it.

    groups             one row per prunable group, also for those that lost nothing
    layers             one row per layer, in the order of the graph; the last one, `OTHER`, has the
                       MACs of products without weights
    frozen             number of groups that may not be pruned
    parameters_before  number of parameter entries of the original, tied ones counted once
    parameters_after   the same of the pruned module
    macs_before, macs_after, activation_memory_before, activation_memory_after
                       what `fxprune.cost` says, for one sample
    notes              what the plan says of how it was made, such as limits that bind
    latency            where the budget was one of latency: `.dense`, `.predicted`, `.measured`
    """

    groups: tuple[GroupRow, ...]
    layers: tuple[LayerRow, ...]
    frozen: int
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    activation_memory_before: int
    activation_memory_after: int
    notes: tuple[str, ...] = ()
    latency: LatencyReport | None = None

    def __str__(self) -> str:
        if not self._cut:
            return f"NOTHING WAS PRUNED.\n{self._summary}\n\n{self._totals('simple')}"
        parts = [self._table("simple"), self._summary, "", self._totals("simple"), *self.notes]
        return "\n".join(parts)

    def __repr__(self) -> str:
        return (
            f"PruneReport({len(self.groups)} groups, "
            f"{self.parameters_before} -> {self.parameters_after} parameters)"
        )

    def to_markdown(self) -> str:
        """The report as Markdown: totals, groups that lost units, and notes."""
        parts = [self._summary, self._totals("github")]
        parts += [self._table("github")] if self._cut else []
        parts += ["\n".join(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> str:
        """The report as JSON text, every number exact; `from_data` reads it back."""
        return json.dumps(self.as_data(), indent=2)

    def as_data(self) -> dict[str, Any]:
        """The report as plain data: dicts, lists, numbers, texts."""
        latency = None if self.latency is None else asdict(self.latency)
        plain = {name: value for name, value in vars(self).items() if name != "latency"}
        rows = {
            "groups": [asdict(row) for row in self.groups],
            "layers": [asdict(row) for row in self.layers],
        }
        return {**plain, **rows, "notes": list(self.notes), "latency": latency}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> PruneReport:
        """The report that `as_data` described. Raises TypeError or KeyError if it is none."""
        latency = data["latency"]
        rows = {
            "groups": tuple(GroupRow(**row) for row in data["groups"]),
            "layers": tuple(LayerRow(**row) for row in data["layers"]),
            "notes": tuple(map(str, data["notes"])),
            "latency": None if latency is None else LatencyReport(**latency),
        }
        return cls(**{**data, **rows})

    @property
    def _cut(self) -> list[GroupRow]:
        return [row for row in self.groups if row.units_after < row.units_before]

    @property
    def _summary(self) -> str:
        return (
            f"{len(self._cut)} of {len(self.groups)} prunable groups are smaller; {self.frozen} "
            "groups are frozen."
        )

    def _table(self, style: str) -> str:
        rows = [
            (
                row.name,
                f"{row.contexts} x " * (row.contexts > 1) + f"{row.units_before}",
                f"{row.contexts} x " * (row.contexts > 1) + f"{row.units_after}",
                _change(row.parameters_before, row.parameters_after),
                _change(row.macs_before, row.macs_after),
                _change(row.activation_memory_before, row.activation_memory_after),
                "yes" if row.maskable else "no",
            )
            for row in self._cut
        ]
        columns = ("group", "units", "kept", "parameters", "MACs", "bytes", "maskable")
        align = ("left", "right", "right", "right", "right", "right", "left")
        return tabulate(rows, columns, style, colalign=align, disable_numparse=True)

    def _totals(self, style: str) -> str:
        rows = [
            _total("parameters", self.parameters_before, self.parameters_after),
            _total("MACs", self.macs_before, self.macs_after),
            _total("activation bytes", self.activation_memory_before, self.activation_memory_after),
        ]
        if self.latency is not None:
            rows += [_latency("latency, predicted", self.latency.dense, self.latency.predicted)]
            rows += [_latency("latency, measured", self.latency.dense, self.latency.measured)]
        columns = ("network", "before", "after", "left")
        align = ("left", "right", "right", "right")
        return tabulate(rows, columns, style, colalign=align, disable_numparse=True)


def _total(name: str, before: int, after: int) -> tuple[str, str, str, str]:
    return name, f"{before:,}", f"{after:,}", f"{after / before:.1%}" if before else ""


def _latency(name: str, before: float, after: float) -> tuple[str, str, str, str]:
    return name, f"{before * 1e3:.3g} ms", f"{after * 1e3:.3g} ms", f"{after / before:.1%}"


def _change(before: int, after: int) -> str:
    return f"{compact(before)} → {compact(after)}"


def compact(number: int) -> str:
    """A number in three digits: 812, 73.9k, 1.81G."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            scaled = number / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{unit}"
    return str(number)


def build_report(analysis: Analysis, chosen: PruningPlan, pruned: nn.Module) -> PruneReport:
    """Compare the analysed graph with the module that a plan made of it."""
    model = cost_model(analysis)
    before, after = model.cost(), model.cost(chosen)
    shares = _shares(model, chosen)
    return PruneReport(
        groups=tuple(
            _row(group, int(chosen.kept(group).shape[-1]), *shares[group.name])
            for group in analysis.groups
        ),
        layers=tuple(_layers(analysis, pruned, before, after)),
        frozen=len(analysis.frozen),
        parameters_before=sum(p.numel() for p in analysis.traced.parameters()),
        parameters_after=sum(p.numel() for p in pruned.parameters()),
        macs_before=before.macs,
        macs_after=after.macs,
        activation_memory_before=before.activation_memory,
        activation_memory_after=after.activation_memory,
        notes=chosen.notes,
    )


def _shares(model: CostModel, chosen: PruningPlan) -> dict[str, tuple[Amounts, Amounts]]:
    """Group → what all ops and tensors that have its units cost per sample, before and after."""
    quantities = ("macs", "parameters", "activation_memory")
    groups = [width.group for width in model.sizes.widths]
    found = {name: [dict.fromkeys(quantities, 0) for _ in range(2)] for name in groups}
    for quantity in quantities:
        for place, plan in enumerate((None, chosen)):
            widths = model.widths(plan)
            for monomial, amount in model.totals[quantity].items():
                for number in monomial:
                    amount *= widths[number]
                for name in {groups[number] for number in monomial}:
                    found[name][place][quantity] += amount
    return {
        name: (model.per_sample(Amounts(**first)), model.per_sample(Amounts(**second)))
        for name, (first, second) in found.items()
    }


def _row(group: Group, kept: int, before: Amounts, after: Amounts) -> GroupRow:
    return GroupRow(
        name=group.name,
        contexts=group.contexts,
        units_before=group.size,
        units_after=kept,
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        macs_before=before.macs,
        macs_after=after.macs,
        activation_memory_before=before.activation_memory,
        activation_memory_after=after.activation_memory,
        maskable=group.maskable,
    )


# -- Layers ----------------------------------------------------------------------------------------


def _layers(analysis: Analysis, pruned: nn.Module, before: Cost, after: Cost) -> Iterable[LayerRow]:
    """The parameters of several dimensions that make units, by their module, in graph order."""
    old, new = dict(analysis.traced.named_parameters()), dict(pruned.named_parameters())
    graph = analysis.traced.graph
    calls = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    widths: dict[str, tuple[int, int]] = {}
    for group in (*analysis.groups, *analysis.frozen):
        for name, dim in ((m.parameter, m.dim) for m in group.members if m.role == "producer"):
            owner = name.rpartition(".")[0]
            if name in old and name in new and old[name].dim() > 1:
                sizes = old[name].shape[dim], new[name].shape[dim]
                widths.setdefault(owner if owner in calls else name, sizes)
    first, second = (_by_layer(graph, cost, widths) for cost in (before, after))
    order = dict.fromkeys(str(node.target) for node in graph.nodes)
    for layer in (name for name in order if name in widths):
        yield LayerRow(layer, *widths[layer], *_pairs(first[layer], second[layer]))
    if first[OTHER].macs:
        yield LayerRow(OTHER, 0, 0, *_pairs(first[OTHER], second[OTHER]))


def _pairs(before: Amounts, after: Amounts) -> tuple[int, int, int, int]:
    return before.parameters, after.parameters, before.macs, after.macs


def _by_layer(graph: fx.Graph, cost: Cost, layers: Iterable[str]) -> dict[str, Amounts]:
    """What each layer's nodes cost, and under OTHER those of no layer."""
    sums = {name: [0, 0] for name in (*layers, OTHER)}
    owners: dict[str, str] = {}  # of nodes that are, or are made of, the weights of one layer
    readers: dict[str, str] = {}  # of nodes that read one layer's weights among other things
    for node in graph.nodes:
        weights = {owners[n.name] for n in node.all_input_nodes if n.name in owners}
        if str(node.target) in sums:
            readers[node.name] = str(node.target)
        elif len(weights) == 1:
            readers[node.name] = min(weights)
        all_weights = all(n.name in owners for n in node.all_input_nodes)
        if node.name in readers and all_weights and node.op != "call_module":
            owners[node.name] = readers[node.name]
    for row in cost.nodes:
        owner = readers.get(row.node, OTHER)
        sums[owner][0] += row.macs
        sums[owner][1] += row.parameters
    return {name: Amounts(macs, parameters, 0) for name, (macs, parameters) in sums.items()}
