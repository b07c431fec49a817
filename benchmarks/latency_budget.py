r"""Predicted against measured latency of networks pruned to a latency budget.

    OMP_NUM_THREADS=2 OMP_PROC_BIND=true OMP_WAIT_POLICY=passive \
        python -m benchmarks.latency_budget [network ...]

Each network is timed at a grid of widths, node by node and as a whole, planned to the budget,
rewritten, and timed in turns with the dense network: one run of each, many times. A pair gives one
ratio. What counts is the median ratio; quartiles say how much the machine disturbed the pairs, and
the ratio of the least times what is left when it disturbed nothing. The environment variables keep
each thread on a processor of its own; without them both may share one.

Where others keep the processors busy, `--clock process_time` counts what the processors did for
this process, of both threads together: no latency, but what a latency is made of when nobody
disturbs it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

import fxprune
from benchmarks import zoo_models  # noqa: F401  (makes torchvision importable)
from fxprune.costs import cost_model
from fxprune.costs.latency import LatencyModel
from fxprune.timing import time_modules

RESULTS = Path(__file__).parent / "results"
BUDGET = 0.6
BATCH = 8
THREADS = 2
CLOCKS: Mapping[str, Callable[[], float]] = {
    "perf_counter": time.perf_counter,
    "process_time": time.process_time,
}
NOTES = {
    "perf_counter": "",
    "process_time": "Those are processor seconds of both threads together, because others kept the "
    "machine busy: what a latency is made of, but not the latency itself. ",
}


def networks() -> Mapping[str, Callable[[], nn.Module]]:
    """Networks for images of 224 x 224."""
    from torchvision.models import resnet50, vit_b_16

    return {"ResNet-50": resnet50, "ViT-B/16": vit_b_16}


def measure(
    make: Callable[[], nn.Module], scope: str, options: argparse.Namespace
) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, 224, 224)
    analysis = fxprune.analyze(fxprune.trace(make().eval(), images))
    start = time.perf_counter()
    clock = CLOCKS[options.clock]
    latencies = fxprune.measure_latencies(
        analysis, images, options.latency_file, repetitions=options.repetitions, clock=clock
    )
    grid = time.perf_counter() - start
    budget = fxprune.Budget(latency=BUDGET)
    plan = fxprune.plan(analysis, scope=scope, budget=budget, latencies=latencies)
    pruned = fxprune.rewrite(analysis.traced, plan)
    model = LatencyModel(cost_model(analysis), latencies)
    dense, own = time_modules((analysis.traced, pruned), (images,), options.pairs, clock)
    ratios = sorted(after / before for before, after in zip(dense, own, strict=True))
    quartiles = statistics.quantiles(ratios)
    predicted, measured = model.after(plan) / latencies.dense, statistics.median(ratios)
    return {
        "scope": scope,
        "MACs": fxprune.cost(analysis, plan).macs / fxprune.cost(analysis).macs,
        "predicted": predicted,
        "measured": measured,
        "off by": predicted / measured - 1,
        "quartiles": [quartiles[0], quartiles[2]],
        "ratio of least": min(own) / min(dense),
        "dense seconds": {"least": min(dense), "median": statistics.median(dense)},
        "pruned seconds": {"least": min(own), "median": statistics.median(own)},
        "clock": options.clock,
        "pairs": options.pairs,
        "repetitions of the grid": options.repetitions,
        "block": model.block,
        "factor of the whole to the sum of nodes": {
            "dense": _factor(model, cost_model(analysis).widths(None)),
            "pruned": _factor(model, cost_model(analysis).widths(plan)),
        },
        "seconds for the grid": grid,
    }


def _factor(model: LatencyModel, widths: Sequence[int]) -> float:
    return model.at(widths) / model.nodes_at(widths)


def written(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    table = [
        (
            row["network"],
            row["scope"],
            f"{row['MACs']:.3f}",
            f"{row['predicted']:.3f}",
            f"{row['measured']:.3f}",
            f"{row['quartiles'][0]:.3f} to {row['quartiles'][1]:.3f}",
            f"{row['ratio of least']:.3f}",
            f"{row['off by']:+.1%}",
            f"{row['dense seconds']['least']:.3f}",
            row["pairs"],
        )
        for row in rows
    ]
    columns = ("network", "scope", "MACs", "predicted", "measured", "quartiles", "ratio of least")
    columns = (*columns, "off by", "dense s", "pairs")
    first, load = rows[0], max(row["load"][0] for row in rows)
    return (
        f"# Latency budgets\n\nBudget {BUDGET} of the dense latency; CPU, {THREADS} threads, batch "
        f"{BATCH}, 224 x 224. Seconds of `time.{first['clock']}`; load average up to {load:.0f} on "
        f"{os.cpu_count()} processors. All but seconds are fractions of the dense network. "
        f"{NOTES[first['clock']]}Measured: the median over pairs of a dense and a "
        "pruned run, one after the other; predicted: the sum of its nodes' times, interpolated at "
        "a grid of widths, and by that sum the time of the whole, interpolated likewise.\n\n"
        + tabulate(table, columns, "github", disable_numparse=True)
        + "\n\nMade by `python -m benchmarks.latency_budget`.\n"
    )


def main() -> None:
    """Print one row per network and scope; write the table and all numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(networks()))
    parser.add_argument("--scopes", nargs="*", default=["local"])
    parser.add_argument("--latency-file", type=Path, help="keep times of nodes here")
    parser.add_argument("--clock", choices=list(CLOCKS), default="perf_counter")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--repetitions", type=int, default=4, help="of the grid")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != str(THREADS):
        parser.error(f"start with OMP_NUM_THREADS={THREADS}, as the first lines of this file say")
    torch.set_num_threads(THREADS)
    rows = []
    for name in options.networks:
        for scope in options.scopes:
            row = measure(networks()[name], scope, options)
            rows.append(
                {"network": name, **row, "load": os.getloadavg(), "torch": torch.__version__}
            )
            print(json.dumps(rows[-1]), flush=True)
    text = written(rows)
    print(text)
    (options.output / "latency_budget.md").write_text(text, encoding="utf-8")
    (options.output / "latency_budget.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
