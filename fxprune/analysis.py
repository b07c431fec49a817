"""`analyze`: which parameter dimensions are coupled, which may be pruned, and why not the rest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate
from torch import Tensor, fx

from fxprune.collection import paused_collection
from fxprune.coverage import Coverage, coverage_of
from fxprune.errors import AnalysisError
from fxprune.explanations import Explainer
from fxprune.grouping import Grouped, build_groups
from fxprune.groups import Group
from fxprune.propagate import OWN_RULES, Propagation, propagate
from fxprune.rules import RULES
from fxprune.rules.base import Rule
from fxprune.walks import aliases, named_tensors

_REASONS = 8


@dataclass(frozen=True, eq=False, repr=False)
class Analysis:
    """The groups of a traced graph.

    traced       the graph that was analysed
    fingerprint  identifies the graph: plans made for another one are refused
    propagation  the axes of all tensors
    grouped      the groups and where each atom's units are among them
    """

    traced: fx.GraphModule
    fingerprint: str
    propagation: Propagation
    grouped: Grouped

    @property
    def groups(self) -> tuple[Group, ...]:
        """The prunable groups."""
        return self.grouped.free

    @property
    def frozen(self) -> tuple[Group, ...]:
        """The groups that may not be pruned, each with its `.reason`."""
        return self.grouped.frozen

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """All parameters and buffers of the graph, detached, by name."""
        return {name: tensor.detach() for name, tensor in named_tensors(self.traced)}

    @property
    def aliases(self) -> Mapping[str, str]:
        """The further names of tied parameters and buffers, each with the one in `parameters`."""
        return aliases(self.traced)

    def __str__(self) -> str:
        rows = [
            (
                g.name,
                " x ".join(map(str, g.shape)),
                len(g.members),
                "yes" if g.maskable else "no",
                g.outer or "",
            )
            for g in self.groups
        ]
        columns = ("group", "units", "members", "maskable", "inside")
        align = ("left", "right", "right", "left", "left")
        table = tabulate(rows, columns, "simple", colalign=align) if rows else "Nothing to prune."
        reasons = Counter(group.reason for group in self.frozen).most_common()
        shown = [f"  {count} x {reason}" for reason, count in reasons[:_REASONS]]
        if len(reasons) > _REASONS:
            shown.append(f"  and {len(reasons) - _REASONS} other reasons")
        colon = ":" if shown else "."
        total = f"{len(self.groups)} prunable groups, {len(self.frozen)} frozen{colon}"
        return "\n".join([table, total, *shown])

    def __repr__(self) -> str:
        return f"Analysis({len(self.groups)} prunable groups, {len(self.frozen)} frozen)"

    def explain(self, path: str) -> str:
        """Why a module's or parameter's dimensions are coupled, node by node, or frozen.

        `path` is a module ("layer1.0.conv2") or a parameter ("layer1.0.conv2.weight"). Raises
        AnalysisError if the graph has no parameter there.
        """
        return Explainer(self.traced, self.propagation, self.grouped).explain(path)

    def coverage(self) -> Coverage:
        """The share of the parameters that the groups reach, and why not the rest."""
        parameters = {name: p.detach() for name, p in self.traced.named_parameters()}
        return coverage_of(parameters, self.groups, self.frozen)


@paused_collection()
def analyze(
    traced: fx.GraphModule, strict: bool = False, rules: Mapping[str, Rule] | None = None
) -> Analysis:
    """Find the dependency groups of a graph that `fxprune.trace` returned.

    With `strict`, an op without a rule is an error; otherwise it freezes what it touches. `rules`
    are for operators of your own, by full names such as "mylib::gate"; they stay with the graph and
    with what is rewritten from it. They are trusted: `fxprune.verify` says if one is wrong.

    Raises AnalysisError for the name of an operator of torch's own, and where the graph does not
    run on the recorded examples.
    """
    _require_graph(traced)
    if rules is not None:
        _require_own(rules)
        traced.meta[OWN_RULES] = dict(rules)
    propagation = propagate(traced)
    if strict and propagation.barriers:
        node, op = propagation.barriers[0]
        raise AnalysisError(
            f"no rule for op {op} at node {node!r} ({len(propagation.barriers)} such ops in "
            "all). Without strict=True, what it touches is frozen."
        )
    analysis = Analysis(traced, fingerprint(traced), propagation, build_groups(propagation))
    traced.meta[_CACHE] = _Cache(analysis)
    return analysis


def _require_graph(value: object) -> None:
    if not isinstance(value, fx.GraphModule):
        raise AnalysisError(
            "The graph must be the GraphModule that fxprune.trace returns, not a "
            f"{type(value).__name__}. Call fxprune.trace(model, example_inputs) first."
        )


def _require_own(rules: Mapping[str, Rule]) -> None:
    for name in rules:
        if "::" not in name or name in RULES or name.startswith(("aten::", "prims::")):
            raise AnalysisError(
                f"rules= names {name!r}; it takes operators that fxprune has no rule for, of other "
                'libraries than torch, by full names such as "mylib::gate".'
            )


_CACHE = "fxprune_analysis"


class _Cache:
    """Holds a graph's analysis in its `meta`; copies and pickles of the graph start without."""

    def __init__(self, analysis: Analysis | None = None) -> None:
        self.analysis = analysis

    def __deepcopy__(self, memo: object) -> _Cache:
        return _Cache()

    def __reduce__(self) -> tuple[type[_Cache], tuple[()]]:
        return _Cache, ()


def analysis_of(traced: fx.GraphModule) -> Analysis:
    """The analysis of a graph, made once for as long as the graph is unchanged."""
    _require_graph(traced)
    known = traced.meta.get(_CACHE, _Cache()).analysis
    if known is not None and known.traced is traced and known.fingerprint == fingerprint(traced):
        return known  # type: ignore[no-any-return]
    return analyze(traced)


def fingerprint(traced: fx.GraphModule) -> str:
    """A digest of the graph's structure and its parameters' shapes; values do not matter."""
    lines: list[Any] = [
        (n.op, n.name, _target(n.target), repr(n.args), repr(n.kwargs)) for n in traced.graph.nodes
    ]
    lines += [(name, tuple(tensor.shape)) for name, tensor in named_tensors(traced)]
    return hashlib.sha256(repr(lines).encode()).hexdigest()[:32]


def _target(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(type(target)))
