"""`rewrite`: apply a plan to a graph.

Every parameter is sliced, every module's attributes and every literal size follow the axes, and
nothing else changes. The result is checked: each node's shape on meta tensors must be what the axes
say.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fxprune.analysis import Analysis, analysis_of
from fxprune.assembly import assemble, copy_node
from fxprune.collection import paused_collection
from fxprune.errors import RewriteError
from fxprune.meta import plain_attributes, shapes_on_meta
from fxprune.plans import PruningPlan
from fxprune.plans.values import assign
from fxprune.propagate import Record, TensorAxes
from fxprune.rewriter.modules import FIXES, ModuleCopier
from fxprune.rewriter.rows import find_row
from fxprune.rewriter.site import Site
from fxprune.rules.base import Layout
from fxprune.selection import Selection
from fxprune.walks import module_at

_BY_POSITION = frozenset(
    "aten::slice aten::select aten::roll aten::index aten::index_select".split()
)
"""Ops that are told positions, which their results' shapes do not show."""


@paused_collection()
def rewrite(traced: fx.GraphModule, plan: PruningPlan, share: bool = False) -> fx.GraphModule:
    """The pruned graph: a new GraphModule with the units that `plan` keeps.

    `traced` is not modified. Parameters that keep all their entries are copied, or shared with
    `traced` if `share` is true. Parameter names, dtypes, devices, memory formats, `requires_grad`,
    ties between parameters and the training mode survive; hooks do not.

    Raises PlanError if the plan was made for another graph, RewriteError if a node cannot take its
    new sizes.
    """
    analysis = analysis_of(traced)
    plan.check_fingerprint(analysis.fingerprint)
    return _Rewriter(analysis, plan, share).run()


class _Rewriter:
    def __init__(self, analysis: Analysis, plan: PruningPlan, share: bool) -> None:
        self.analysis = analysis
        self.selection = Selection(analysis, plan)
        self.traced = analysis.traced
        self.copier = ModuleCopier(self.traced, self.selection.slicer, share)
        self.added = self.selection.slicer.added_biases()
        self.root = nn.Module().train(self.traced.training)
        self.graph = fx.Graph()
        self.nodes: dict[fx.Node, fx.Node] = {}
        self.records: dict[fx.Node, list[Record]] = {}
        self.constants = 0

    def run(self) -> fx.GraphModule:
        for record in self.analysis.propagation.records:
            self.records.setdefault(record.site, []).append(record)
        self._copy_root()
        for name in self.added:
            assign(self.root, name, self.added[name])
        for node in self.traced.graph.nodes:
            self._copy_node(node)
        self.graph.set_codegen(self.traced.graph._codegen)
        pruned = assemble(self.root, self.graph, type(self.traced).__name__)
        for path in self._replaced():
            pruned.delete_submodule(path)
        pruned.meta = copy.deepcopy(self.traced.meta)
        self._check(pruned)
        return pruned

    def _copy_root(self) -> None:
        for name, child in self.traced._modules.items():
            self.root.add_module(name, child and self.copier.copy(child))
        for name, parameter in self.traced._parameters.items():
            self.root.register_parameter(name, self.copier.tensor(parameter))
        for name, buffer in self.traced._buffers.items():
            persistent = name not in self.traced._non_persistent_buffers_set
            self.root.register_buffer(name, self.copier.tensor(buffer), persistent)
        for name, value in plain_attributes(self.traced).items():
            setattr(self.root, name, value)

    def _copy_node(self, node: fx.Node) -> None:
        new = copy_node(self.graph, node, self.nodes)
        self.nodes[node] = new
        fix = find_row(node)
        if node.op == "call_module":
            module = module_at(self.root, str(node.target))
            module_fix = FIXES.get(type(module))
            fix = None if module_fix is None else lambda site: module_fix(module, site)
        records = self.records.get(node, ())
        if fix is None:
            self._refuse_positions(node, records)
        elif self._touched(node):
            fix(Site(node, new, self.selection, self._add_constant, records))

    def _refuse_positions(self, node: fx.Node, records: Sequence[Record]) -> None:
        """Nothing renumbers the positions that an op without a row picks inside."""
        for record in records:
            if record.call.name in _BY_POSITION and any(map(self.selection.changed, record.moved)):
                raise RewriteError(
                    f"node {node.name!r} ({node.op} {node.target}) picks positions of a dimension "
                    f"that loses some, by {record.call.name}, and has no rewrite row. Leave the "
                    "groups around it out of the plan (groups=), and report the op."
                )

    def _replaced(self) -> set[str]:
        """Modules that were called, and whose calls have all become something else."""
        calls = [(old, new) for old, new in self.nodes.items() if old.op == "call_module"]
        kept = {new.target for _, new in calls if new.op == "call_module"}
        return {str(old.target) for old, _ in calls if old.target not in kept}

    def _touched(self, node: fx.Node) -> bool:
        """True if an axis of the tensors that the node reads and makes changes.

        Every unit of a module that has a fix is a unit of what it reads or makes.
        """
        around = (layout for n in (node, *node.all_input_nodes) for layout in self._layouts(n))
        return any(self.selection.changed(axis) for layout in around for axis in layout)

    def _layouts(self, node: fx.Node) -> list[Layout]:
        """The axes of the tensors in a node's value."""
        value = self.analysis.propagation.nodes[node]
        leaves = [value] if isinstance(value, TensorAxes) else tree_leaves(value)
        return [leaf.axes for leaf in leaves if isinstance(leaf, TensorAxes)]

    def _add_constant(self, tensor: Tensor) -> str:
        name = f"_index{self.constants}"
        while hasattr(self.root, name):
            self.constants += 1
            name = f"_index{self.constants}"
        device = next((p.device for p in self.traced.parameters()), torch.device("cpu"))
        self.root.register_buffer(name, tensor.to(device))
        return name

    def _check(self, pruned: fx.GraphModule) -> None:
        """Every node's executed shape must be the shape that its axes have after the plan."""
        originals = {new: old for old, new in self.nodes.items()}
        try:
            shapes = shapes_on_meta(pruned)
        except Exception as error:
            first = str(error).strip().split("\n")[0]
            raise RewriteError(
                f"the graph does not run at its new sizes: {first}. Leave the groups around the op "
                "that fails out of the plan (groups=), and report the op."
            ) from error
        for new, executed in shapes.items():
            old = originals.get(new)
            if old is None:
                continue
            expected = [self.selection.shape(axes) for axes in self._layouts(old)]
            if expected != executed:
                raise RewriteError(self._mismatch(old, expected, executed))

    def _mismatch(self, node: fx.Node, expected: Any, executed: Any) -> str:
        return (
            f"node {node.name!r} ({node.op} {node.target}) has result shapes {executed} after "
            f"pruning, but its axes say {expected}: this op has sizes among its arguments and no "
            "rewrite row. Leave the groups around it out of the plan (groups=), and report the op."
        )
