"""SynFlow: how much of the flow from the inputs to the outputs passes through a unit. No data."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from fxprune.analysis import Analysis
from fxprune.criteria.binding import Scorer
from fxprune.criteria.linearized import Linearized
from fxprune.errors import AnalysisError
from fxprune.groups import Group
from fxprune.meta import unpacked
from fxprune.ranking import lowest, removal_order, runs
from fxprune.roles import roles_of
from fxprune.schedules import exponential
from fxprune.statistics.execution import ProbedRun
from fxprune.statistics.probes import GradientProbe, MaskGradients
from fxprune.statistics.reads import Read, find_reads
from fxprune.walks import named_tensors


class SynapticFlow:
    """A positive, linear copy of a graph (see `Linearized`), whose units can be switched off.

    Weights are replaced by their absolute values and biases by 0, in float64; the input is ones,
    of the example's size, and R is the sum of the outputs. Nothing of the original is changed.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.graph: fx.GraphModule = copy.deepcopy(analysis.traced).eval().double()
        self.tensors = dict(named_tensors(self.graph))
        biases = roles_of(analysis.propagation).biases
        for name, tensor in self.tensors.items():
            floating = tensor.is_floating_point()
            if floating:
                tensor.requires_grad_(False)
                tensor.copy_(torch.zeros_like(tensor) if name in biases else tensor.abs())
        self.device = next((t.device for t in self.tensors.values()), torch.device("cpu"))
        self.analysis = analysis
        self.reads = tuple(_reads_without_weights(analysis))

    def scores(self, groups: Iterable[Group]) -> dict[str, Tensor]:
        """The flow m dR/dm, m a factor on a unit's reads: the sum of w dR/dw over its consumers.

        Where no weight reads a group, as where queries meet keys, the factor is on one operand of
        what reads it. Raises AnalysisError if R overflows.
        """
        total, products, reads = self._flows()
        if not bool(torch.isfinite(total)):
            raise AnalysisError(
                f"SynFlow: the sum of the outputs is {float(total)}, too large for float64. The "
                "network is too deep or its weights are too large; use another criterion."
            )
        return {
            group.name: reads[group.name].reshape(group.shape)
            if group.name in reads
            else _consumed(group, products)
            for group in groups
        }

    def total(self) -> float:
        """R, the sum of the outputs."""
        return float(self._flows()[0])

    def products(self) -> dict[str, Tensor]:
        """By parameter w that R depends on, w dR/dw, of the parameter's shape."""
        return self._flows()[1]

    def switch_off(self, group: Group, removed: Tensor) -> None:
        """Set to zero what the removed units (bool, of the group's shape) own."""
        for member in group.members:
            tensor = self.tensors[member.parameter]
            if tensor.is_floating_point():
                gone = member.spread(removed, group, fill=False, rank=tensor.dim())
                tensor.masked_fill_(gone.to(tensor.device), 0)

    def _flows(self) -> tuple[Tensor, dict[str, Tensor], Mapping[str, Tensor]]:
        """R; w dR/dw by parameter; and the flows at `self.reads` by group."""
        parameters = dict(self.graph.named_parameters())
        leaves = [p for p in parameters.values() if p.is_floating_point()]
        flows = MaskGradients(self._tables(), None)
        for leaf in leaves:
            leaf.requires_grad_(True)
        try:
            with torch.enable_grad(), Linearized():
                outputs = self._run(flows)
            found = [leaf for leaf in tree_leaves(unpacked(outputs)) if isinstance(leaf, Tensor)]
            total = sum((t.sum() for t in found if t.is_floating_point()), torch.tensor(0.0))
            if not total.requires_grad:
                raise AnalysisError("SynFlow: no output depends on the graph's parameters.")
            gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        finally:
            for leaf in leaves:
                leaf.requires_grad_(False)
        known = {id(leaf): g for leaf, g in zip(leaves, gradients, strict=True) if g is not None}
        products = {
            name: (p * known[id(p)]).detach() for name, p in parameters.items() if id(p) in known
        }
        return total.detach(), products, flows.tables

    def _tables(self) -> dict[str, Tensor]:
        """Zeros for the flows of the groups that no weight reads."""
        parts = {part.group.name: part for read in self.reads for part in read.parts}
        return {
            name: torch.zeros(1, part.group.slots, dtype=torch.float64, device=self.device)
            for name, part in parts.items()
        }

    def _run(self, flows: MaskGradients) -> object:
        """The graph's output on ones, with a probe at each of `self.reads`."""
        if not self.reads:
            return self.graph(*self._ones())
        anchor = torch.zeros((), device=self.device, requires_grad=True)

        def probe(read: Read, x: Tensor, weight: Tensor | None) -> Tensor:
            probed: Tensor = GradientProbe.apply(x, anchor, flows.sink(read))  # type: ignore
            return probed

        graph, propagation = self.analysis.traced.graph, self.analysis.propagation
        runner = ProbedRun(self.graph, graph, propagation, self.reads, probe)
        return runner.run(*self._ones(), enable_io_processing=False)

    def _ones(self) -> list[object]:
        """The inputs: ones wherever the examples have numbers."""

        def one(value: object) -> object:
            if not isinstance(value, Tensor):
                return value
            dtype = torch.float64 if value.is_floating_point() else value.dtype
            return torch.ones(value.shape, dtype=dtype, device=self.device)

        nodes = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        return [tree_map(one, node.meta["val"]) for node in nodes]


def _consumed(group: Group, products: Mapping[str, Tensor]) -> Tensor:
    """What the group's consumers read: zero where R does not depend on them."""
    total = torch.zeros(group.shape, dtype=torch.float64)
    for member in group.members:
        if member.role == "consumer" and member.parameter in products:
            total = total + member.reduce(products[member.parameter], group).cpu()
    return total


def _reads_without_weights(analysis: Analysis) -> Iterator[Read]:
    """The reads of groups without consumers, such as head dimensions where queries meet keys."""
    groups = {group.name: group for group in analysis.groups}
    alone = {
        name
        for name, group in groups.items()
        if all(member.role != "consumer" for member in group.members)
    }
    if alone:
        for read in find_reads(analysis.propagation, analysis.grouped, 1, 0):
            own = tuple(part for part in read.parts if part.group.name in alone)
            if own:
                yield replace(read, parts=own)


@dataclass(frozen=True)
class SynFlow:
    """Iterative SynFlow: round by round the units of the least flow go, and flows are rescored.

    rounds  each is one forward and backward pass on an example of ones
    keep    the share of the units that outlasts the last round, None for as many units as there are
            groups; the shares in between fall exponentially

    A unit's score is its place in the order of removal, a multiple of 1/units, so that one scoring
    serves every sparsity. Nothing keeps a group from losing its last unit (a plan does). Groups
    nested in one another are never scored in one run: each has a run with all that are not nested.

    On networks of linear and normalisation layers and activations, flows are conserved. They are
    not where flows are multiplied with each other: by gates (squeeze and excitation), in attention.
    """

    rounds: int = 100
    keep: float | None = None

    def bind(self, analysis: Analysis) -> Scorer:
        """The criterion for the groups of an analysis: one run when the first group is scored."""
        scores: dict[str, Tensor] = {}

        def score(group: Group, parameters: Mapping[str, Tensor]) -> Tensor:
            if not scores:
                scores.update(self.score_all(analysis))
            return scores[group.name]

        return score

    def score_all(self, analysis: Analysis) -> dict[str, Tensor]:
        """Scores of the shape of each prunable group, float64 in (0, 1]."""
        scores: dict[str, Tensor] = {}
        for together, new in runs(analysis.groups):
            order = self._order(SynapticFlow(analysis), together)
            scores |= {group.name: order[group.name] for group in new}
        return scores

    def _order(self, flow: SynapticFlow, groups: Sequence[Group]) -> dict[str, Tensor]:
        total = sum(group.size for group in groups)
        keep = len(groups) / total if self.keep is None else self.keep
        order = {g.name: torch.zeros(g.shape, dtype=torch.float64) for g in groups}
        gone = 0
        for ratio in (*exponential(keep, self.rounds), None):  # at last rank what is left
            goal = total if ratio is None else total - round(ratio * total)
            if goal == gone:
                continue
            scores = flow.scores(groups)
            left = {
                name: torch.where(ranks == 0, scores[name].cpu(), math.inf)
                for name, ranks in order.items()
            }
            for group, places in lowest(groups, left, goal - gone):
                numbers = (places + (gone + 1)).double() / total
                units = removal_order(left[group.name])[..., : len(places)]
                order[group.name].scatter_(-1, units, numbers.expand(units.shape))
                flow.switch_off(group, order[group.name] > 0)
            gone = goal
        return order
