"""Run the original and the pruned graph side by side, and look at what a layer reads in both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.statistics import Statistics, distributed
from fxprune.statistics.execution import scoring_copy
from fxprune.statistics.layers import Layer, input_of

_CHUNK = 1 << 22  # entries of patches that are in memory at once


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of patches a of the original and a' of the pruned network, float64.

    Both end with the constant 1; means over samples and positions; per group of the pruned layer.

    own    E[a' a'ᵀ], [groups, d', d']
    cross  E[a a'ᵀ], [groups, d, d'], with a of the group of the original that each comes from
    """

    own: Tensor
    cross: Tensor


class Lockstep:
    """Both graphs on all data, each up to the layer that was asked for last.

    The pruned module's parameters may change in between: what comes later sees them. What the data
    need in memory is alive for all batches at once, the activations at one place of each graph.
    """

    def __init__(self, statistics: Statistics, pruned: fx.GraphModule) -> None:
        traced = statistics.analysis.traced
        original = scoring_copy(traced, trainable=False)
        pruned.eval()
        values = [part.values for part in statistics.parts("compensation")]
        self.pairs = [
            (_Stepper(original, traced.graph, each), _Stepper(pruned, pruned.graph, each))
            for each in values
        ]

    @torch.no_grad()
    def moments(self, layer: Layer, twin: Layer, groups: Sequence[int]) -> Moments:
        """Of what a layer and its twin in the pruned graph read; both have one use.

        groups  the group of the original that each group of the pruned layer comes from
        """
        own: Any = 0
        cross: Any = 0
        count = 0
        for a, b in self._columns(layer, twin, groups):
            own, cross = own + b @ b.mT, cross + a @ b.mT
            count += a.shape[-1]
        total = distributed.summed(torch.tensor(float(count), device=own.device))
        return Moments(distributed.summed(own) / total, distributed.summed(cross) / total)

    @torch.no_grad()
    def means(self, layer: Layer, twin: Layer, groups: Sequence[int]) -> tuple[Tensor, Tensor]:
        """E[a], [groups, d], and E[a'], [groups, d'], as for `moments`, which has them, too."""
        before: Any = 0
        after: Any = 0
        count = 0
        for a, b in self._columns(layer, twin, groups):
            before, after = before + a.sum(-1), after + b.sum(-1)
            count += a.shape[-1]
        total = distributed.summed(torch.tensor(float(count), device=after.device))
        return distributed.summed(before) / total, distributed.summed(after) / total

    def _columns(
        self, layer: Layer, twin: Layer, groups: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The patches of both, [groups, d and d', positions], a chunk of samples at a time."""
        (here,), (there,) = layer.calls, twin.calls
        for original, pruned in self.pairs:
            pair = original.input_at(here), pruned.input_at(there)
            for x, y in _chunks(layer, twin, *pair):
                yield _columns(layer, x)[list(groups)], _columns(twin, y)


def _columns(layer: Layer, x: Tensor) -> Tensor:
    columns = layer.columns(x).double()
    return torch.cat([columns, torch.ones_like(columns[:, :1])], 1)


def _chunks(layer: Layer, twin: Layer, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Slices of both inputs with the same samples."""
    if layer.geometry is None or twin.geometry is None:
        yield x, y
        return
    x, y = layer.geometry.batched(x), twin.geometry.batched(y)
    step = max(1, _CHUNK // max(1, layer.inputs * layer.groups * layer.geometry.positions(x)))
    for start in range(0, len(x), step):
        yield x[start : start + step], y[start : start + step]


class _Stepper(fx.Interpreter):
    """Runs a graph a part at a time, and keeps alive only what later nodes read."""

    def __init__(self, module: nn.Module, graph: fx.Graph, values: Sequence[Any]) -> None:
        super().__init__(module, garbage_collect_values=True, graph=graph)
        self.args_iter = iter([v.clone() if isinstance(v, Tensor) else v for v in values])
        self.queue = iter(graph.nodes)
        self.waiting: fx.Node | None = next(self.queue)

    def input_at(self, call: fx.Node) -> Tensor:
        """What a layer's use reads: runs all nodes before it."""
        while self.waiting is not call:
            node = self.waiting
            assert node is not None
            self.env[node] = self.run_node(node)
            for done in self.user_to_last_uses.get(node, []):
                del self.env[done]
            self.waiting = next(self.queue)
        source = input_of(call)
        assert source is not None
        x: Tensor = self.env[source]
        return x
