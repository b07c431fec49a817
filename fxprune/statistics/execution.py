"""Run a graph with probes at its reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from fxprune.meta import copy_with
from fxprune.propagate import Propagation, Record, TensorAxes
from fxprune.replay import bindings, invoke, tensors_of
from fxprune.rules.base import Kind
from fxprune.statistics.reads import Read
from fxprune.walks import named_tensors

Probe: TypeAlias = Callable[[Read, Tensor, Tensor | None], Tensor]
"""Sees a read, the tensor that is read and its weight; returns what the op reads instead."""


def scoring_copy(traced: fx.GraphModule, trainable: bool) -> nn.Module:
    """The module tree in eval mode with tensors of its own, so that `traced` is never touched.

    Parameters share memory with those of `traced`, whose gradients are left alone; buffers, which
    a model may write to, are copied.
    """
    tensors: dict[int, Tensor] = {}
    for _, tensor in named_tensors(traced):
        if isinstance(tensor, nn.Parameter):
            able = trainable and (tensor.is_floating_point() or tensor.is_complex())
            tensors[id(tensor)] = nn.Parameter(tensor.detach(), requires_grad=able)
        else:
            tensors[id(tensor)] = tensor.detach().clone()
    return copy_with(traced, tensors)


class ProbedRun(fx.Interpreter):
    """Runs the graph node by node, with a probe at each read.

    A node that reads the values of other nodes runs as it is, on what the probes return. One that
    makes what it reads inside itself runs as its recorded ATen ops; a recurrent module runs on what
    the probes return for its weights.
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
        inside = {read.site for read in reads if read.source is None and not _recurrent(read)}
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
            with self._probed_weights(n):
                return super().run_node(n)
        finally:
            self.env.update(original)

    @contextmanager
    def _probed_weights(self, node: fx.Node) -> Iterator[None]:
        """Let a recurrent module run on what the probes make of its weights."""
        reads = {read.argument: read for read in self.reads[node] if read.source is None}
        if not reads:
            yield
            return
        module: Any = self.fetch_attr(str(node.target))
        original = module._flat_weights  # what its kernels take
        named = zip(module._flat_weights_names, original, strict=True)
        try:
            module._flat_weights = [
                self._probed(reads[name], weight, {}) if name in reads else weight
                for name, weight in named
            ]
            yield
        finally:
            module._flat_weights = original

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

    def read(self, read: Read, arguments: Mapping[str, Any], known: Mapping[int, Tensor]) -> Tensor:
        """What a recorded op reads instead of its operand."""
        return self._probed(read, arguments[read.argument], known)

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
                    arguments[read.argument] = self.read(read, arguments, tensors)
            outputs = tensors_of(invoke(record, arguments, self.device))
            tensors.update(zip(record.outputs, outputs, strict=True))
        return tree_map(
            lambda leaf: tensors[leaf.key] if isinstance(leaf, TensorAxes) else leaf,
            self.propagation.nodes[node],
            is_leaf=lambda leaf: isinstance(leaf, TensorAxes),
        )


def _recurrent(read: Read) -> bool:
    return read.record.effect.kind is Kind.RECURRENT


class _Real:
    """The real tensor in place of a meta tensor; constants stand for themselves."""

    def __init__(self, tensors: Mapping[int, Tensor]) -> None:
        self.tensors = tensors

    def __call__(self, value: Any) -> Any:
        return self.tensors.get(id(value), value) if isinstance(value, Tensor) else value
