"""Forward and backward passes that show the inputs of layers and the gradients by their outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from fxprune.errors import AnalysisError
from fxprune.propagate import TensorAxes
from fxprune.statistics import distributed
from fxprune.statistics.execution import scoring_copy
from fxprune.statistics.layers import Layer, input_of
from fxprune.statistics.passes import Part, Passes, run_on
from fxprune.statistics.samples import SampleMaps


class Watcher(Protocol):
    """What adds up something over the samples of one layer."""

    def reset(self) -> None:
        """Forget all: another pass begins."""

    def begin(self, samples: int, positions: int) -> None:
        """A part with so many samples comes; positions are those of all uses together."""

    def forward(self, call: fx.Node, x: Tensor, known: Tensor) -> None:
        """A use reads `x`; `known` says which sample each of its indices belongs to."""

    def backward(self, call: fx.Node, gradient: Tensor) -> None:
        """The gradient of the summed loss by what a use returned."""

    def end(self) -> None:
        """The part is over."""


def accumulate(
    passes: Passes, layers: Sequence[Layer], fold: bool, title: str, watchers: Mapping[str, Watcher]
) -> float:
    """Show each layer's watcher all samples, and return their number over all ranks.

    A layer whose positions do not tell samples apart, as one that reads a table of positions, is
    shown them one by one in a second pass. With `fold` the gradients are by the outputs of the
    batch normalisations that follow.
    """
    left, count = list(layers), 0
    for limit in (None, 1):
        module = scoring_copy(passes.analysis.traced, trainable=False)
        mixed, count = torch.zeros(len(left), dtype=torch.int64), 0
        for part in passes.parts(title, limit):
            count += part.batch.size
            seen = _Seen(passes, part, left)
            mixed += torch.tensor([layer.name in seen.mixed for layer in left])
            able = [layer for layer, n in zip(left, mixed.tolist(), strict=True) if not n]
            _backward(passes, module, part, able, fold, seen, watchers)
        again = distributed.summed(mixed.to(passes.device)).tolist()
        left = [layer for layer, times in zip(left, again, strict=True) if times]
        if not left:
            break
        for layer in left:
            watchers[layer.name].reset()
    return float(distributed.summed(torch.tensor(float(count), device=passes.device)))


class _Seen:
    """Which sample each index of the layers' inputs belongs to, in one part."""

    def __init__(self, passes: Passes, part: Part, layers: Sequence[Layer]) -> None:
        self.nodes = part.sized.propagation.nodes
        maps = SampleMaps(part.sized.propagation, part.batch.size, passes.batch_dim)
        self.known: dict[fx.Node, Tensor] = {}
        self.mixed: set[str] = set()
        for layer in layers:
            for call in layer.calls:
                stated = self.nodes[source] if (source := input_of(call)) is not None else None
                known = maps.of(stated.axes) if isinstance(stated, TensorAxes) else None
                if known is not None and layer.tells_apart(known):
                    self.known[call] = known
                else:
                    self.mixed.add(layer.name)

    def positions(self, layer: Layer) -> int:
        """Over all uses of a layer."""
        total: int = sum(_entries(self.nodes[call]) for call in layer.calls)
        return total // layer.shape[0]


def _entries(stated: TensorAxes) -> int:
    return math.prod(axis.size for axis in stated.axes)


def _backward(
    passes: Passes,
    module: nn.Module,
    part: Part,
    layers: Sequence[Layer],
    fold: bool,
    seen: _Seen,
    watchers: Mapping[str, Watcher],
) -> None:
    """One forward and backward pass over a part."""
    if not layers:
        return
    for layer in layers:
        watchers[layer.name].begin(part.batch.size, seen.positions(layer))
    calls = {call: layer for layer in layers for call in layer.calls}
    with torch.enable_grad():
        runner = _Watched(module, passes.analysis.traced.graph, calls, fold, seen, watchers)
        total = passes.objective.total(run_on(runner, part), part.batch)
    if not total.requires_grad:
        raise AnalysisError(
            "the loss does not depend on the output of any linear layer or convolution through "
            "differentiable operations: there is no gradient."
        )
    total.backward()
    for layer in layers:
        watchers[layer.name].end()


class _Watched(fx.Interpreter):
    """Runs a graph and shows watchers what their layers read, and later the gradients."""

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        calls: Mapping[fx.Node, Layer],
        fold: bool,
        seen: _Seen,
        watchers: Mapping[str, Watcher],
    ) -> None:
        super().__init__(module, garbage_collect_values=True, graph=graph)
        self.calls, self.seen, self.watchers = calls, seen, watchers
        # The node whose result has the gradient → the call.
        self.sites = {_site(call, layer, fold): call for call, layer in calls.items()}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value."""
        if n in self.calls:
            source = input_of(n)
            assert source is not None
            with torch.no_grad():
                watcher = self.watchers[self.calls[n].name]
                watcher.forward(n, self.env[source].detach(), self.seen.known[n])
        value = super().run_node(n)
        call = self.sites.get(n)
        if call is None:
            return value
        watcher = self.watchers[self.calls[call].name]

        if not value.requires_grad:
            value = value.requires_grad_().clone()  # no leaf, which no op could change in place
        value.register_hook(partial(_hand_over, watcher, call))
        return value


def _hand_over(watcher: Watcher, call: fx.Node, gradient: Tensor) -> None:
    with torch.no_grad():
        watcher.backward(call, gradient.detach())


def _site(call: fx.Node, layer: Layer, fold: bool) -> fx.Node:
    """The node whose output is the layer's, with a norm that is folded into it."""
    return next(iter(call.users)) if fold and layer.norm is not None else call


class PerSample:
    """A watcher that is shown all positions of a sample at once, over all uses of the layer."""

    def __init__(self, layer: Layer, has_constant: bool, most: int) -> None:
        self.layer, self.has_constant, self.most = layer, has_constant, most
        self.inputs: dict[fx.Node, tuple[Tensor, Tensor]] = {}
        self.outputs: dict[fx.Node, Tensor] = {}
        self.samples = self.positions = 0

    def add(self, columns: Tensor, gradients: Tensor) -> None:
        """Patches [groups, inputs, samples, positions] and gradients [groups, outputs, ...]."""
        raise NotImplementedError

    def begin(self, samples: int, positions: int) -> None:
        """A part with so many samples comes."""
        self.samples, self.positions = samples, positions

    def forward(self, call: fx.Node, x: Tensor, known: Tensor) -> None:
        """A use reads `x`."""
        self.inputs[call] = x.clone(), known  # a later op may write to it

    def backward(self, call: fx.Node, gradient: Tensor) -> None:
        """The gradient by what a use returned."""
        self.outputs[call] = gradient
        if len(self.outputs) == len(self.inputs):
            self.end()

    def end(self) -> None:
        """The part is over. Uses that the loss does not depend on have a gradient of zero."""
        each = self.positions * (self.layer.inputs + self.layer.outputs) * self.layer.groups
        each = max(each // max(self.samples, 1), math.prod(self.layer.shape), 1)
        step = max(1, self.most // each)
        for first in range(0, self.samples if self.inputs else 0, step):
            last = min(first + step, self.samples)
            columns, gradients = [], []
            for call, (x, known) in self.inputs.items():
                patches = self.layer.columns(self.layer.of_samples(known, x, first, last))
                columns.append(self._by_sample(patches.double(), last - first))
                gradient = self.outputs.get(call)
                if gradient is None:
                    zeros = patches.new_zeros(self.layer.groups, self.layer.outputs, 1)
                    slopes = zeros.expand(-1, -1, patches.shape[-1])
                else:
                    own = self.layer.of_samples(known, gradient, first, last)
                    slopes = self.layer.gradients(own)
                gradients.append(self._by_sample(slopes.double(), last - first))
            patches = torch.cat(columns, -1)
            if self.has_constant:
                patches = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
            self.add(patches, torch.cat(gradients, -1))
        self.inputs.clear()
        self.outputs.clear()

    def _by_sample(self, columns: Tensor, samples: int) -> Tensor:
        return columns.reshape(*columns.shape[:2], samples, -1)
