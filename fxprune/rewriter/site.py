"""What a rewrite row sees: a node, the axes around it, and its copy in the new graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fxprune.axes import Axis
from fxprune.errors import RewriteError
from fxprune.propagate import Record, TensorAxes
from fxprune.rules.base import Layout
from fxprune.selection import Selection


@dataclass(frozen=True)
class Site:
    """One node on its way into the new graph.

    old      the node of the original graph
    new      its copy, whose arguments a row may change
    add      registers a constant tensor in the new module and returns its name
    records  the ATen ops that the old node executed
    """

    old: fx.Node
    new: fx.Node
    selection: Selection
    add: Callable[[Tensor], str]
    records: Sequence[Record]

    # -- axes --------------------------------------------------------------------------------------

    def axes(self, argument: Any) -> Layout:
        """The axes of a tensor argument (a node of the old graph); none for anything else."""
        if not isinstance(argument, fx.Node):
            return ()
        value = self.selection.analysis.propagation.nodes[argument]
        return value.axes if isinstance(value, TensorAxes) else ()

    @property
    def out(self) -> Layout:
        """The axes of the node's result, if it is one tensor."""
        return self.axes(self.old)

    @property
    def outs(self) -> list[Layout]:
        """The axes of the node's results, if it is a sequence of tensors."""
        value = self.selection.analysis.propagation.nodes[self.old]
        return [v.axes for v in value if isinstance(v, TensorAxes)]

    def width(self, axis: Axis) -> int:
        """The new size of an axis."""
        return self.selection.width(axis)

    def changed(self, axis: Axis) -> bool:
        """True if an axis shrinks."""
        return self.selection.changed(axis)

    # -- arguments ---------------------------------------------------------------------------------

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument of the old node, positional or by keyword."""
        if position < len(self.old.args):
            return self.old.args[position]
        return self.old.kwargs.get(name, default)

    def set(self, position: int, name: str, value: Any) -> None:
        """Change an argument of the new node in its place; append it as keyword if it has none."""
        if position < len(self.new.args):
            args = list(self.new.args)
            args[position] = value
            self.new.args = tuple(args)
        else:
            self.new.kwargs = {**self.new.kwargs, name: value}

    # -- gathers -----------------------------------------------------------------------------------

    def select(self, dim: int, source: Sequence[int]) -> None:
        """Make the new node ``index_select(x, dim, …)``.

        `source[i]` is the old position in x of old output index i. What stays of the output takes
        its elements from where they now are in x.
        """
        index = self.new_positions(self.axes(self.old.args[0])[dim], self.out[dim], source)
        with self.new.graph.inserting_before(self.new):
            constant = self.new.graph.get_attr(self.add(index))
        self.new.op, self.new.target = "call_function", torch.index_select
        self.new.args, self.new.kwargs = (self.new.args[0], dim, constant), {}

    def new_positions(self, axis: Axis, out: Axis, source: Sequence[int]) -> Tensor:
        """New positions in `axis` of the old positions `source`, for outputs that stay."""
        kept_in, kept_out = self.selection.mask(axis), self.selection.mask(out)
        old = torch.tensor(source, dtype=torch.int64)[kept_out]
        if not bool(kept_in[old].all()):
            raise RewriteError(
                f"node {self.old.name!r} reads indices of its input that the plan removes. This "
                "is a bug: the analysis should have coupled them."
            )
        return (torch.cumsum(kept_in, 0) - 1)[old]

    def record(self, *names: str) -> Record | None:
        """The first executed op of one of these names."""
        return next((r for r in self.records if r.call.name in names), None)


Row: TypeAlias = Callable[[Site], None]
"""Changes the arguments of `site.new`, or what it calls."""
