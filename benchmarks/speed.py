"""CPU time of a whole prune, in alternation with Torch-Pruning's.

    python -m benchmarks.speed               # what Torch-Pruning finishes (half an hour)
    python -m benchmarks.speed timm/resnet   # what starts with these
    python -m benchmarks.speed --all         # the whole zoo

fxprune: trace, analyze, plan with magnitude, rewrite. Torch-Pruning: construction of the pruner and
its step, on copies made beforehand. Each model has a process of its own with one thread; after a
warm-up of both, the two alternate, each as often in a row as takes a while, and the ratio of every
pair is taken. Neither waits for memory that the machine has yet to provide. Networks of
transformers have the sizes that they were published with. Without names it takes the models whose
prune by Torch-Pruning ended in the last sweep of the zoo, whatever the result computes. One on
which it raises, or takes over a minute, is listed and not counted.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

import fxprune
from benchmarks import zoo, zoo_peer
from benchmarks.zoo_entry import Entry
from benchmarks.zoo_huggingface import published
from benchmarks.zoo_models import entries

PAIRS = 5
ENOUGH = 0.2  # seconds of CPU time, which some systems count in steps of some milliseconds
IMAGE = 224
PEER_LIMIT = 60.0  # seconds of CPU time
LIMIT = 240  # seconds of CPU time for all the rounds of one model
RESULTS = Path(__file__).parent / "results" / "speed.json"

Found = dict[str, Any]


def finished() -> frozenset[str]:
    """The models of the zoo that Torch-Pruning's prune finishes, as the last sweep found."""
    rows = json.loads(zoo.RESULTS.read_text(encoding="utf-8"))
    return frozenset(row["model"] for row in rows if row.get("torch_pruning", {}).get("pruned"))


def models() -> list[Entry]:
    """The zoo, with the networks of transformers at the sizes that they were published with."""
    return [e for e in entries() if not e.name.startswith("huggingface/")] + published()


def prune(model: nn.Module, example: Mapping[str, Any]) -> nn.Module:
    """All the work of a prune by magnitude with fxprune; its result."""
    traced = fxprune.trace(model, example)
    plan = fxprune.plan(fxprune.analyze(traced), criterion="magnitude", sparsity=0.5)
    return fxprune.rewrite(traced, plan)


def _example(value: Any) -> Any:
    """In single precision; images at least as large as those of ImageNet."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    if value.dim() == 4 and value.shape[1] == 3 and value.shape[-1] < IMAGE:
        value = value.new_zeros(*value.shape[:2], IMAGE, IMAGE).normal_()
    return value.float()


def cpu_seconds(
    function: Callable[[nn.Module, Any], object], model: nn.Module, example: Any, times: int = 1
) -> float:
    """CPU time of a prune, the mean of so many in a row.

    A virtual machine is given memory when it first touches it, which takes several times as long as
    to fill it. As much as the model takes is touched before, and freed.
    """
    copies = [copy.deepcopy(model) for _ in range(times)]
    torch.ones(sum(parameter.numel() for parameter in model.parameters()))
    start = time.process_time()
    while copies:
        function(copies.pop(), example)
    return (time.process_time() - start) / times


def measure(entry: Entry) -> Iterator[Found]:
    """The warm-up's times, then those of all pairs."""
    torch.manual_seed(0)
    model = entry.build().eval()
    example = {name: _example(value) for name, value in entry.inputs(model, 1).items()}
    gc.collect()
    gc.freeze()  # else every collection walks through the libraries that were imported
    ours = cpu_seconds(prune, model, example)
    yield {"ours_first": ours}
    theirs = cpu_seconds(zoo_peer.prune, model, example)
    yield {"theirs_first": theirs}
    if theirs > PEER_LIMIT:
        raise TimeoutError(f"Torch-Pruning took {theirs:.0f} s")
    times = max(1, math.ceil(ENOUGH / min(ours, theirs)))
    pairs = [
        (
            cpu_seconds(prune, model, example, times),
            cpu_seconds(zoo_peer.prune, model, example, times),
        )
        for _ in range(PAIRS)
    ]
    yield {"ours": [ours for ours, _ in pairs], "theirs": [theirs for _, theirs in pairs]}


def ratios(row: Found) -> list[float]:
    """The ratio of every pair: ours over theirs."""
    return [ours / theirs for ours, theirs in zip(row["ours"], row["theirs"], strict=True)]


def markdown(rows: Sequence[Found]) -> str:
    """The table of the models that both finish, the summary, and what was not counted."""
    both = sorted((r for r in rows if "ours" in r), key=lambda r: statistics.median(ratios(r)))
    lines = [
        [
            row["model"],
            f"{statistics.median(row['ours']):.3f}",
            f"{statistics.median(row['theirs']):.3f}",
            f"{statistics.median(ratios(row)):.2f}",
            f"{min(ratios(row)):.2f} – {max(ratios(row)):.2f}",
        ]
        for row in both
    ]
    headers = ["model", "fxprune s", "Torch-Pruning s", "ratio", f"spread of {PAIRS} pairs"]
    parts = [tabulate(lines, headers, "github")]
    if both:
        medians = [statistics.median(ratios(row)) for row in both]
        parts.insert(
            0,
            f"{len(both)} models that both finish: median ratio {statistics.median(medians):.2f}, "
            f"from {min(medians):.2f} to {max(medians):.2f}.",
        )
    others = [
        [r["model"], str(r.get("error", ""))[:100].replace("\n", " ")]
        for r in rows
        if r not in both
    ]
    if others:
        parts.append(tabulate(others, ["not counted", "because"], "github"))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="beginnings of model names")
    parser.add_argument("--all", action="store_true", help="the whole zoo")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the JSON file")
    options = parser.parse_args()
    wanted = tuple(options.names) or ("",)
    known = None if options.all or options.names else finished()
    chosen = [
        entry
        for entry in models()
        if entry.name.startswith(wanted) and (known is None or entry.name in known)
    ]
    rows: list[Found] = []
    for entry in tqdm(chosen, file=sys.stderr):
        rows.append({"model": entry.name, **zoo.sweep_one(measure, entry, LIMIT)})
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        options.output.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
