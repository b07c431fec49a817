"""Latency as a function of widths: times of each node at a grid of widths, interpolated.

A node's time is a function of its *work*: its MACs, or if it has none the elements that it reads
and writes. Both are sums of products of sizes, so a few measured networks, each of another width,
say what any plan takes: the sum over nodes of the time at the work that is left.

Devices compute in blocks: 51 channels may take as long as 64. Sizes are rounded up to multiples of
the block with which the measured times are most nearly linear in the work. And a node of several
products, as attention is, may have a kernel for equal sizes only: times where its products cost the
same say nothing of times where they do not.

A network as a whole takes another time than the sum of its nodes: memory is given back in between,
and caches hold more of a small network than of a large one. So the measured networks are timed as
wholes too, and the whole is interpolated by the sum.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fxprune.analysis import Analysis
from fxprune.costs.formulas import products
from fxprune.costs.model import CostModel, tensors_in, value
from fxprune.costs.polynomials import Polynomial, Sizes
from fxprune.errors import PlanError
from fxprune.plans import FrozenMap, PruningPlan

BLOCKS = (1, 4, 8, 16, 32)
"""Blocks that devices may compute in."""

Points: TypeAlias = tuple[tuple[float, float], ...]
"""(work, seconds), ascending in both."""

Work: TypeAlias = tuple[tuple[Polynomial, ...], ...]
"""A sum of products of sizes."""


@dataclass(frozen=True)
class Sample:
    """The seconds that each node takes at one choice of widths, and all of them in one run."""

    widths: tuple[int, ...]
    seconds: Mapping[str, float]
    whole: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", FrozenMap(self.seconds))


@dataclass(frozen=True)
class Latencies:
    """Measured times of an analysed graph on one device, for the example batch.

    fingerprint  of the analysed graph; they fit no other
    samples      times at a grid of widths, the first one of the unpruned graph
    """

    fingerprint: str
    samples: tuple[Sample, ...]

    @property
    def dense(self) -> float:
        """Seconds that the unpruned graph takes as a whole."""
        return self.samples[0].whole


class LatencyModel:
    """The seconds that a graph takes at any widths; they fall as widths do.

    block  sizes are rounded up to multiples of this

    Raises PlanError if the times are those of another graph.
    """

    def __init__(self, model: CostModel, latencies: Latencies) -> None:
        analysis = model.analysis
        if latencies.fingerprint != analysis.fingerprint:
            raise PlanError(
                "These latencies were measured for another graph: their fingerprint is "
                f"{latencies.fingerprint!r} and this graph's is {analysis.fingerprint!r}. Measure "
                "again with fxprune.measure_latencies."
            )
        self._model = model
        works = works_of(analysis, self._model.sizes)
        names = latencies.samples[0].seconds
        times = {name: [s.seconds[name] for s in latencies.samples] for name in names}
        grid = [sample.widths for sample in latencies.samples]
        self.block = min(BLOCKS, key=lambda b: _curvature(works, times, grid, b))
        self._nodes = [_Node(works[name], grid, times[name], self.block) for name in names]
        sums = [self.nodes_at(widths) for widths in grid]
        self._wholes = by_sum(zip(sums, (s.whole for s in latencies.samples), strict=True))

    def nodes_at(self, widths: Sequence[int] | Tensor) -> float:
        """The sum of the nodes' seconds at these widths, one for each number."""
        sizes = widths.tolist() if isinstance(widths, Tensor) else widths
        return sum(node.at(sizes) for node in self._nodes)

    def at(self, widths: Sequence[int] | Tensor) -> float:
        """Seconds of the whole at these widths."""
        return interpolated(self._wholes, self.nodes_at(widths))

    def after(self, plan: PruningPlan | None) -> float:
        """Seconds that a plan leaves."""
        return self.at(self._model.widths(plan))


class _Node:
    """The seconds of one node at any widths."""

    def __init__(
        self,
        work: Work,
        grid: Sequence[Sequence[int]],
        seconds: Sequence[float],
        block: int,
    ) -> None:
        self._work, self._block = work, block
        by_kind: dict[int, list[tuple[int, float]]] = {}
        for widths, time in zip(grid, seconds, strict=True):
            pair = amount(work, widths, block), time
            by_kind.setdefault(self._kind(widths), []).append(pair)
        self._all = ascending(pair for pairs in by_kind.values() for pair in pairs)
        self._points = {kind: ascending(pairs) for kind, pairs in by_kind.items()}

    def _kind(self, widths: Sequence[int]) -> int:
        """How many of the products differ."""
        return len({amount((product,), widths, 1) for product in self._work})

    def at(self, widths: Sequence[int]) -> float:
        """Seconds at these widths, from the times of samples of the same kind, if there are any."""
        points = self._points.get(self._kind(widths), self._all)
        return interpolated(points, amount(self._work, widths, self._block))


def works_of(analysis: Analysis, sizes: Sizes) -> Mapping[str, Work]:
    """The work of each node: MACs, or the elements that it reads and writes."""
    found: dict[str, list[tuple[Polynomial, ...]]] = {}
    for record in analysis.propagation.records:
        for factors in products(record):
            found.setdefault(record.site.name, []).append(tuple(map(sizes.of, factors)))
    values = analysis.propagation.nodes
    for node in analysis.traced.graph.nodes:
        if node.name not in found:
            layouts = [t.axes for n in (node, *node.all_input_nodes) for t in tensors_in(values[n])]
            found[node.name] = [tuple(map(sizes.of, layout)) for layout in layouts]
    return {name: tuple(work) for name, work in found.items()}


def amount(work: Work, widths: Sequence[int], block: int) -> int:
    """Work at widths, with sizes rounded up to multiples of a block."""
    total = 0
    for factors in work:
        product = 1
        for size in factors:
            exact = value(size, widths)
            product *= exact if _is_constant(size) else -(-exact // block) * block
        total += product
    return total


def _is_constant(size: Polynomial) -> bool:
    return all(not monomial for monomial in size)


def _curvature(
    works: Mapping[str, Work],
    times: Mapping[str, Sequence[float]],
    grid: Sequence[Sequence[int]],
    block: int,
) -> float:
    """How far times are from straight lines in the work: squared seconds, over all nodes."""
    total = 0.0
    for name, seconds in times.items():
        done = torch.tensor([amount(works[name], w, block) for w in grid], dtype=torch.float64)
        line = torch.stack([done / done.max().clamp_min(1), torch.ones_like(done)], 1)
        target = torch.tensor(seconds, dtype=torch.float64)[:, None]
        fitted = line @ torch.linalg.lstsq(line, target, driver="gelsd").solution
        total += float((fitted - target).square().sum())
    return total


def interpolated(points: Points, work: float) -> float:
    """Seconds at that work: linear between points, constant beyond them."""
    at = bisect_left(points, (work, -1.0))
    if at == 0 or at == len(points):
        return points[min(at, len(points) - 1)][1]
    (low, fast), (high, slow) = points[at - 1], points[at]
    return fast + (slow - fast) * (work - low) / (high - low)


def by_sum(times: Iterable[tuple[float, float]]) -> Points:
    """Points of (sum of nodes, whole), from such pairs of seconds; nothing takes no time.

    Noise only adds, so what a larger network was measured to take bounds what a smaller one does.
    """
    points: dict[float, float] = {}
    bound = math.inf
    for total, whole in sorted(times, reverse=True):
        points[total] = bound = min(bound, whole)
    return ((0.0, 0.0), *sorted(points.items()))


def ascending(times: Iterable[tuple[int, float]]) -> Points:
    """Points whose seconds do not fall as work rises: the closest ones to what was measured.

    Neighbours that are out of order are averaged, as are several times of equal work (isotonic
    regression by pooling).
    """
    by_work: dict[int, list[float]] = {}
    for work, seconds in times:
        by_work.setdefault(work, []).append(seconds)
    pools: list[tuple[list[int], float, int]] = []
    for work in sorted(by_work):
        pools.append(([work], sum(by_work[work]), len(by_work[work])))
        while len(pools) > 1 and pools[-2][1] / pools[-2][2] >= pools[-1][1] / pools[-1][2]:
            last = pools.pop()
            first = pools.pop()
            pools.append((first[0] + last[0], first[1] + last[1], first[2] + last[2]))
    return tuple((work, total / count) for inside, total, count in pools for work in inside)
