"""Measure how long a graph's nodes take on the user's device, at a grid of widths."""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fxprune.allocation.limits import Limits
from fxprune.analysis import Analysis
from fxprune.costs import cost_model
from fxprune.costs.latency import Latencies, LatencyModel, Sample
from fxprune.errors import PlanError
from fxprune.groups import innermost
from fxprune.inputs import bind_inputs
from fxprune.plans import PruningPlan
from fxprune.rewriter import rewrite

Clock: TypeAlias = Callable[[], float]

KEEP = (1.0, 0.89, 0.78, 0.67, 0.56, 0.45, 0.34, 0.23, 0.12)
"""The grid: fractions of their units that groups keep."""

SKEW = (1.0, 0.9)
"""At each of them all groups keep the same, and then every second one this much less."""

_FORMAT = "fxprune-latencies"
_VERSION = 2


@dataclass(frozen=True)
class LatencyReport:
    """What a plan's latency was predicted to be and is, in seconds for the example batch.

    dense      of the unpruned graph, timed in turns with the pruned module
    predicted  what the model says, times how much slower or faster the dense graph runs now than
               when the model was measured
    measured   of the pruned module
    """

    dense: float
    predicted: float
    measured: float


def measure_latencies(
    analysis: Analysis,
    example_inputs: Any,
    file: str | os.PathLike[str] | None = None,
    round_to: int = 1,
    repetitions: int = 4,
    clock: Clock = time.perf_counter,
) -> Latencies:
    """Time a graph at a grid of widths, node by node and as a whole, where the model lies.

    example_inputs  what the model takes, of the sizes to be timed
    file            where times are kept: JSON, for several graphs, devices and numbers of threads.
                    Times of this graph on this device are read from it; others are added.
    round_to        as it will be for `plan`: rounded widths are often faster
    repetitions     how often the grid is gone through; of the times of each node and each whole
                    the least counts, as all else that runs on the machine only adds

    Threads that wait for a processor of their own disturb times more than anything else: with
    OpenMP set OMP_PROC_BIND=true and OMP_WAIT_POLICY=passive before Python starts.

    The graph runs in eval mode, without gradients, 90 times for each repetition.
    Raises PlanError if the file holds something else.
    """
    inputs = bind_inputs(analysis.traced, example_inputs, PlanError)
    key = _key(analysis, inputs, round_to, clock)
    known = {} if file is None else _read(Path(file))
    if key not in known:
        known[key] = _measure(analysis, inputs, round_to, repetitions, clock)
        if file is not None:
            _write(Path(file), known)
    return known[key]


def time_modules(
    modules: Sequence[nn.Module],
    inputs: tuple[Any, ...],
    repetitions: int = 10,
    clock: Clock = time.perf_counter,
) -> list[list[float]]:
    """Seconds of each repetition for each module, in eval mode, without gradients.

    Modules take turns, so that what else the machine does meets them all alike; the first turn is
    to warm up and does not count.
    """
    modes = {m: m.training for module in modules for m in module.modules()}
    for module in modules:
        module.eval()
    times: list[list[float]] = [[] for _ in modules]
    with torch.no_grad():
        for _ in range(repetitions + 1):
            for module, own in zip(modules, times, strict=True):
                synchronise = _synchroniser(module)
                synchronise()
                start = clock()
                module(*inputs)
                synchronise()
                own.append(clock() - start)
    for each, mode in modes.items():
        each.training = mode
    return [own[1:] for own in times]


def compare_latency(
    analysis: Analysis,
    plan: PruningPlan,
    pruned: nn.Module,
    latencies: Latencies,
    example_inputs: Any,
    repetitions: int = 10,
) -> LatencyReport:
    """Predict the latency that a plan leaves, and time the module that it made, by least times."""
    inputs = bind_inputs(analysis.traced, example_inputs, PlanError)
    seconds = time_modules((analysis.traced, pruned), inputs, repetitions)
    dense, measured = map(min, seconds)
    predicted = LatencyModel(cost_model(analysis), latencies).after(plan)
    return LatencyReport(dense, predicted * dense / latencies.dense, measured)


def _measure(
    analysis: Analysis, inputs: tuple[Any, ...], round_to: int, repetitions: int, clock: Clock
) -> Latencies:
    plans = [_grid_plan(analysis, *at, round_to) for at in itertools.product(KEEP, SKEW)]
    least: list[dict[str, float]] = [{} for _ in plans]
    wholes = [math.inf for _ in plans]
    for _ in range(repetitions):  # one after the other, as loads of the machine come and go
        for at, plan in enumerate(plans):
            pruned = rewrite(analysis.traced, plan, share=True).eval()
            whole, nodes = _least_times(pruned, inputs, clock)
            wholes[at] = min(whole, wholes[at])
            for name, seconds in nodes.items():
                least[at][name] = min(seconds, least[at].get(name, seconds))
    model, names = cost_model(analysis), {node.name for node in analysis.traced.graph.nodes}
    samples = (
        Sample(model.widths(plan), _by_original(times, names), whole)
        for plan, times, whole in zip(plans, least, wholes, strict=True)
    )
    return Latencies(analysis.fingerprint, tuple(samples))


def _grid_plan(analysis: Analysis, keep: float, skew: float, round_to: int) -> PruningPlan:
    """Every innermost group keeps about that fraction of its units, every second one less."""
    kept: dict[str, Any] = {}
    for group, factor in zip(
        innermost(analysis.groups), itertools.cycle((1.0, skew)), strict=False
    ):
        widths = [group.size, *Limits(round_to=round_to).widths(group.size)]
        distances = [abs(width - keep * factor * group.size) for width in widths]
        row = list(range(widths[distances.index(min(distances))]))
        kept[group.name] = [row] * group.contexts if group.contexts > 1 else row
    return PruningPlan.build(analysis, kept)


def _least_times(
    module: fx.GraphModule, inputs: tuple[Any, ...], clock: Clock
) -> tuple[float, Mapping[str, float]]:
    """The least seconds of the whole and of each node in two runs each, after one to warm up."""
    wholes = time_modules((module,), inputs, 2, clock)[0]
    timer = _Timer(module, _synchroniser(module), clock)
    runs = []
    for _ in range(2):
        timer.seconds = {}
        with torch.no_grad():
            timer.run(*inputs, enable_io_processing=False)
        runs.append(timer.seconds)
    return min(wholes), {name: min(run[name] for run in runs) for name in runs[0]}


def _by_original(times: Mapping[str, float], names: set[str]) -> dict[str, float]:
    """Seconds of the original's nodes; those that rewriting added count with the next one."""
    result: dict[str, float] = {}
    extra = 0.0
    for name, seconds in times.items():
        extra += seconds
        if name in names:
            result[name], extra = extra, 0.0
    return result


class _Timer(fx.Interpreter):
    def __init__(
        self, module: fx.GraphModule, synchronise: Callable[[], None], clock: Clock
    ) -> None:
        super().__init__(module)
        self.synchronise, self.clock = synchronise, clock
        self.seconds: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("placeholder", "output"):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        self.synchronise()
        start = self.clock()
        result = getattr(self, n.op)(n.target, args, kwargs)
        self.synchronise()
        self.seconds[n.name] = self.clock() - start
        return result


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _synchroniser(module: nn.Module) -> Callable[[], None]:
    device = _device(module)
    if device.type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)


# -- the file --------------------------------------------------------------------------------------


def _key(analysis: Analysis, inputs: Iterable[Any], round_to: int, clock: Clock) -> str:
    """What times depend on."""
    device = _device(analysis.traced)
    on = platform.processor() or platform.machine()
    if device.type == "cuda":
        on = torch.cuda.get_device_name(device)
    shapes = [f"{t.dtype}{list(t.shape)}" for t in tree_leaves(inputs) if isinstance(t, Tensor)]
    dtypes = sorted({str(p.dtype) for p in analysis.traced.parameters()})
    threads = f"{torch.get_num_threads()} threads"
    measured = f"round_to {round_to}", f"torch {torch.__version__}", clock.__name__
    return "; ".join([analysis.fingerprint, str(device), on, threads, *dtypes, *shapes, *measured])


def _read(path: Path) -> dict[str, Latencies]:
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if (data["format"], data["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"it has format {data['format']!r}, version {data['version']!r}")
        return {key: _entry(entry) for key, entry in data["latencies"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(
            f"{str(path)!r} is no file of latencies: {error!r}. Delete it, or name another one."
        ) from error


def _entry(entry: Any) -> Latencies:
    samples = tuple(
        Sample(tuple(map(int, widths)), {str(n): float(s) for n, s in nodes.items()}, float(whole))
        for widths, nodes, whole in entry["samples"]
    )
    if not samples or any(s.seconds.keys() != samples[0].seconds.keys() for s in samples):
        raise ValueError("times of nodes are missing")
    return Latencies(str(entry["fingerprint"]), samples)


def _write(path: Path, known: Mapping[str, Latencies]) -> None:
    latencies = {
        key: {
            "fingerprint": one.fingerprint,
            "samples": [(s.widths, dict(s.seconds), s.whole) for s in one.samples],
        }
        for key, one in known.items()
    }
    text = json.dumps({"format": _FORMAT, "version": _VERSION, "latencies": latencies})
    path.write_text(text, encoding="utf-8")
