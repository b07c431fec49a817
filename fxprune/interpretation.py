"""Masked interpretation: run a graph's recorded ops at full size, as if units were removed.

After every op the removed positions are set to zero, and an op that takes statistics over a pruned
axis runs on the kept positions only. Nothing of the rewriter is used: sizes stay as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from fxprune.propagate import Propagation, Record, TensorAxes
from fxprune.replay import bindings, invoke, tensors_of
from fxprune.rules.base import Kind, Layout
from fxprune.selection import Selection
from fxprune.walks import named_tensors

NodeValues: TypeAlias = Iterator[tuple[fx.Node, Any]]

_STATISTICS = frozenset({Kind.STATISTIC, Kind.BATCH_NORM})
"""Kinds of ops whose results depend on how many elements they run over."""


class Interpretation:
    """Executes the recorded ops, masking after each and compacting around statistics."""

    def __init__(
        self, original: fx.GraphModule, selection: Selection, values: tuple[Any, ...]
    ) -> None:
        self.original, self.selection, self.inputs = original, selection, values
        self.propagation: Propagation = selection.analysis.propagation
        self.tensors: dict[int, Tensor] = {}
        self._positions: dict[tuple[int, ...], Tensor | None] = {}
        named = dict(named_tensors(original))
        for key, name in self.propagation.sources.items():
            self.tensors[key] = named[name].detach()
        devices = {tensor.device for tensor in named.values()}
        self.device = next(iter(devices), torch.device("cpu"))

    def run(self) -> NodeValues:
        """Each node with its value at full size."""
        pending: dict[fx.Node, list[Record]] = {}
        for record in self.propagation.records:
            pending.setdefault(record.site, []).append(record)
        inputs = iter(self.inputs)
        with torch.no_grad():
            for node in self.original.graph.nodes:
                stated = self.propagation.nodes[node]
                if node.op == "placeholder":
                    self._bind(stated, next(inputs))
                for record in pending.get(node, ()):
                    self._execute(record)
                yield node, tree_map(self._value, stated)

    def _bind(self, stated: Any, value: Any) -> None:
        for key, tensor in bindings(stated, value):
            self.tensors[key] = tensor.clone()

    def _value(self, leaf: Any) -> Any:
        return self.tensors[leaf.key] if isinstance(leaf, TensorAxes) else leaf

    def _real(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return self.tensors.get(id(argument), argument)
        return argument

    def _execute(self, record: Record) -> None:
        if record.effect.kind is Kind.RECURRENT:
            outputs = self._run_module(record)
        else:
            arguments = {n: tree_map(self._real, v) for n, v in record.call.arguments.items()}
            if record.effect.kind in _STATISTICS and any(
                self.selection.changed(axis) for axis in record.effect.over
            ):
                outputs = self._compacted(record, arguments)
            else:
                outputs = tensors_of(invoke(record, arguments, self.device))
        for key, output, layout in zip(record.outputs, outputs, record.effect.outputs, strict=True):
            self.tensors[key] = self._masked(output, layout)

    def _masked(self, output: Tensor, layout: Layout) -> Tensor:
        """Zero the removed positions, in place so that views stay views of their base.

        An expanded tensor holds each element at many positions: it is copied first.
        """
        positions = self.positions(layout)
        # Kernels leave out statistics that nobody asked for: they are empty.
        if positions is None or output.numel() == 0:
            return output
        if any(s == 0 and n > 1 for s, n in zip(output.stride(), output.shape, strict=True)):
            output = output.clone()
        keep = output.new_zeros(output.numel(), dtype=torch.bool)
        keep[positions.reshape(-1)] = True
        return output.masked_fill_(~keep.reshape(output.shape), 0)

    def positions(self, layout: Layout) -> Tensor | None:
        """`Selection.positions`, computed once per layout."""
        key = tuple(map(id, layout))
        if key not in self._positions:
            found = self.selection.positions(layout)
            self._positions[key] = None if found is None else found.to(self.device)
        return self._positions[key]

    def _run_module(self, record: Record) -> list[Tensor]:
        args, kwargs = tree_map(
            lambda n: (
                tree_map(self._value, self.propagation.nodes[n]) if isinstance(n, fx.Node) else n
            ),
            (record.site.args, record.site.kwargs),
        )
        module = self.original.get_submodule(str(record.site.target))
        return tensors_of(module(*args, **kwargs))

    def _compacted(self, record: Record, arguments: dict[str, Any]) -> list[Tensor]:
        """Run a statistic on the kept entries only; its result is spread out again."""
        layouts = dict(record.inputs)
        for name, meta in record.call.arguments.items():
            if isinstance(meta, Tensor):
                positions = self.positions(layouts[id(meta)])
                if positions is not None:
                    arguments[name] = arguments[name].reshape(-1)[positions]
        resize = _RESIZED.get(record.call.name)
        if resize is not None:
            arguments |= resize(record, self.selection)
        results = tensors_of(invoke(record, arguments, self.device))
        return [self._spread(t, a) for t, a in zip(results, record.effect.outputs, strict=True)]

    def _spread(self, tensor: Tensor, layout: Layout) -> Tensor:
        positions = self.positions(layout)
        if positions is None:
            return tensor
        full = tensor.new_zeros([axis.size for axis in layout])
        full.view(-1)[positions] = tensor
        return full


def _layer_norm(record: Record, selection: Selection) -> dict[str, Any]:
    return {"normalized_shape": list(selection.shape(record.effect.over))}


def _group_norm(record: Record, selection: Selection) -> dict[str, Any]:
    channels, inner = record.effect.outputs[0][1], record.effect.over[0]
    positions = math.prod(selection.shape(record.effect.outputs[0])[2:])
    groups = selection.ratio(channels, inner)
    return {"C": selection.width(channels), "HxW": positions, "group": groups}


_RESIZED: Mapping[str, Callable[[Record, Selection], dict[str, Any]]] = MappingProxyType(
    {
        "aten::native_layer_norm": _layer_norm,
        "aten::_fused_rms_norm": _layer_norm,
        "aten::native_group_norm": _group_norm,
    }
)
"""Statistics that take sizes as arguments: what those become on the kept entries."""
