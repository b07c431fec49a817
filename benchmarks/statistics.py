"""What a statistics pass costs beside a plain forward and backward over the same batches.

    python -m benchmarks.statistics

Plain: forward, cross-entropy, backward to all parameters, in eval mode. Statistics: the mask
gradients of all groups, from a fresh `Statistics` each time, so that finding the reads counts. Each
model has a process of its own with one thread; after a warm-up of both, the two alternate, and the
ratio of every pair is taken. Peak memory is that of processes that run one of the two alone, above
what they had before; the bound is the plain pass's, and a quarter more for what is in the making,
plus the tables of G. Results go to benchmarks/results/statistics.md.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

import fxprune
from tests import torchvision_shim  # noqa: F401

PAIRS = 5
BATCH, BATCHES, IMAGE, CLASSES = 8, 3, 224, 1000
LIMIT, MEMORY = 1.5, 1.25
RESULTS = Path(__file__).parent / "results" / "statistics.md"
MODELS = ("resnet18", "vit_tiny_patch16_224")
Data = list[tuple[Tensor, Tensor]]


def build(name: str) -> nn.Module:
    import timm
    import torchvision

    torch.manual_seed(0)
    known = getattr(torchvision.models, name, None)
    return (known() if known else timm.create_model(name)).eval()


def batches() -> Data:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(BATCH, 3, IMAGE, IMAGE, generator=generator),
            torch.randint(CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(BATCHES)
    ]


def plain(model: nn.Module, data: Data) -> None:
    for inputs, targets in data:
        nn.functional.cross_entropy(model(inputs), targets).backward()
    model.zero_grad()


def statistics_pass(analysis: fxprune.Analysis, data: Data) -> None:
    fxprune.Statistics(analysis, data).mask_grads(analysis.groups[0])


def cpu(run: Callable[..., None], *args: Any) -> float:
    start = time.process_time()
    run(*args)
    return time.process_time() - start


def prepared(name: str) -> tuple[nn.Module, fxprune.Analysis, Data]:
    torch.set_num_threads(1)
    model, data = build(name), batches()
    return model, fxprune.analyze(fxprune.trace(model, data[0][0][:2])), data


def timed(name: str) -> dict[str, Any]:
    model, analysis, data = prepared(name)
    plain(model, data[:1])
    statistics_pass(analysis, data[:1])
    pairs = [(cpu(plain, model, data), cpu(statistics_pass, analysis, data)) for _ in range(PAIRS)]
    ratios = [ours / theirs for theirs, ours in pairs]
    seconds = [median(column) for column in zip(*pairs, strict=True)]
    return {"plain": seconds[0], "ours": seconds[1], "ratio": median(ratios), "worst": max(ratios)}


def memory(name: str, which: str) -> dict[str, Any]:
    """Peak memory above what the process had before, in MiB, and what the tables of G take."""
    model, analysis, data = prepared(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if which == "plain":
        plain(model, data)
    else:
        statistics_pass(analysis, data)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    tables = 8 * BATCH * BATCHES * sum(group.slots for group in analysis.groups) / 2**20
    return {"peak": peak, "tables": tables}


def child(*args: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.statistics", *args], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    rows, worst, fits = [], 0.0, True
    for name in MODELS:
        times = child("time", name)
        base, ours = (child("memory", name, which) for which in ("plain", "statistics"))
        worst = max(worst, times["ratio"])
        fits &= ours["peak"] <= MEMORY * base["peak"] + ours["tables"]
        rows.append(
            (
                name,
                f"{times['plain']:.2f}",
                f"{times['ours']:.2f}",
                f"{times['ratio']:.2f}",
                f"{times['worst']:.2f}",
                f"{base['peak']:.0f}",
                f"{ours['peak']:.0f}",
                f"{ours['tables']:.2f}",
            )
        )
    columns = ("model", "plain s", "statistics s", "ratio", "worst", "plain MiB", "MiB", "tables")
    text = (
        f"# The cost of a statistics pass\n\nMask gradients of all groups by `python -m "
        f"benchmarks.statistics`, torch {torch.__version__}: {BATCHES} batches of {BATCH} images "
        f"of {IMAGE} x {IMAGE}, CPU seconds on one thread, medians of {PAIRS} pairs.\n\n"
        f"{tabulate(rows, columns, 'github', disable_numparse=True)}\n\n"
        f"Time: at most {LIMIT} x plain {'holds' if worst <= LIMIT else 'DOES NOT HOLD'}. "
        f"Memory: at most {MEMORY} x plain and the tables "
        f"{'holds' if fits else 'DOES NOT HOLD'}.\n"
    )
    print(text)
    RESULTS.write_text(text, encoding="utf-8")
    return int(worst > LIMIT or not fits)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    result = timed(sys.argv[2]) if sys.argv[1] == "time" else memory(*sys.argv[2:4])
    print(json.dumps(result))
