"""Run a graph with probes at its reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from fxprune.capture.metacopy import copy_module, set_mode
from fxprune.meta import plain_attributes
from fxprune.propagate import Propagation, Record, TensorAxes
from fxprune.replay import bindings, invoke, tensors_of
from fxprune.statistics.reads import Read
from fxprune.walks import named_tensors

Probe: TypeAlias = Callable[[Read, Tensor, Tensor | None], Tensor]
"""Sees a read, the tensor that is read and its weight; returns what the op reads instead."""


def scoring_copy(traced: fx.GraphModule, trainable: bool) -> nn.Module:
    """The module tree in eval mode with tensors of its own, so that `traced` is never touched.

    Parameters share memory with those of `traced`, whose gradients are left alone; buffers, which
    a model may write to, are copied.
    """
    memo: dict[int, Any] = {id(traced.graph): traced.graph}
    for _, tensor in named_tensors(traced):
        if isinstance(tensor, nn.Parameter):
            able = trainable and (tensor.is_floating_point() or tensor.is_complex())
            memo[id(tensor)] = nn.Parameter(tensor.detach(), requires_grad=able)
        else:
            memo[id(tensor)] = tensor.detach().clone()
    copy = nn.Module()
    for name, child in traced._modules.items():
        copy.add_module(name, child and copy_module(child, memo))
    for name, parameter in traced._parameters.items():
        copy.register_parameter(name, None if parameter is None else memo[id(parameter)])
    for name, buffer in traced._buffers.items():
        copy.register_buffer(name, None if buffer is None else memo[id(buffer)])
    for name, value in plain_attributes(traced).items():
        setattr(copy, name, value)
    set_mode(copy, False)
    return copy


class ProbedRun(fx.Interpreter):
    """Runs the graph node by node, with a probe at each read.

    A node that reads the values of other nodes runs as it is, on what the probes return. One that
    makes what it reads inside itself runs as its recorded ATen ops.
    """

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        propagation: Propagation,
        reads: Sequence[Read],
        probe: Probe,
    ) -> None:
        super().__init__(module, garbage_collect_values=True, graph=graph)
        self.propagation, self.probe = propagation, probe
        self.reads: dict[fx.Node, list[Read]] = {}
        for read in reads:
            self.reads.setdefault(read.site, []).append(read)
        inside = {read.site for read in reads if read.source is None}
        self.records: dict[fx.Node, list[Record]] = {site: [] for site in inside}
        for record in propagation.records:
            if record.site in inside:
                self.records[record.site].append(record)
        named = dict(named_tensors(module))
        self.parameters = {key: named[name] for key, name in propagation.sources.items()}
        self.device = next((t.device for t in named.values()), torch.device("cpu"))

    def run_node(self, n: fx.Node) -> Any:
        """The node's value."""
        if n in self.records:
            return self._replay(n)
        if n not in self.reads:
            return super().run_node(n)
        probed = self._probed_sources(n, self._tensors(n))
        original = {node: self.env[node] for node in probed}
        self.env.update(probed)
        try:
            return super().run_node(n)
        finally:
            self.env.update(original)

    def _probed_sources(
        self, node: fx.Node, tensors: Mapping[int, Tensor]
    ) -> dict[fx.Node, Tensor]:
        """What the probes make of the values that a node reads."""
        probed: dict[fx.Node, Tensor] = {}
        for read in self.reads[node]:
            if read.source is not None:
                value = probed.get(read.source, self.env[read.source])
                probed[read.source] = self._probed(read, value, tensors)
        return probed

    def _tensors(self, node: fx.Node) -> dict[int, Tensor]:
        """The parameters and the values that a node reads, by key."""
        tensors = dict(self.parameters)
        for source in node.all_input_nodes:
            tensors.update(bindings(self.propagation.nodes[source], self.env[source]))
        return tensors

    def _probed(self, read: Read, x: Tensor, known: Mapping[int, Tensor]) -> Tensor:
        return self.probe(read, x, None if read.weight is None else known.get(read.weight.key))

    def _replay(self, node: fx.Node) -> Any:
        tensors = self._tensors(node)
        for source, value in self._probed_sources(node, tensors).items():
            tensors[self.propagation.nodes[source].key] = value
        reads = [read for read in self.reads[node] if read.source is None]
        for record in self.records[node]:
            real = _Real(tensors)
            arguments = {n: tree_map(real, v) for n, v in record.call.arguments.items()}
            for read in reads:
                if read.record is record:
                    arguments[read.argument] = self._probed(read, arguments[read.argument], tensors)
            outputs = tensors_of(invoke(record, arguments, self.device))
            tensors.update(zip(record.outputs, outputs, strict=True))
        return tree_map(
            lambda leaf: tensors[leaf.key] if isinstance(leaf, TensorAxes) else leaf,
            self.propagation.nodes[node],
            is_leaf=lambda leaf: isinstance(leaf, TensorAxes),
        )


class _Real:
    """The real tensor in place of a meta tensor; constants stand for themselves."""

    def __init__(self, tensors: Mapping[int, Tensor]) -> None:
        self.tensors = tensors

    def __call__(self, value: Any) -> Any:
        return self.tensors.get(id(value), value) if isinstance(value, Tensor) else value
