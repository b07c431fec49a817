"""Time and memory of the K-FAC pass beside a plain forward and backward pass: ResNet-50.

    python -m benchmarks.kfac

64 images of 64x64 by default, on as many cores as OMP_NUM_THREADS says. Each pass runs in a process
of its own, so that its peak memory is its own. Results go to benchmarks/results/kfac.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from tabulate import tabulate

import fxprune
from tests import torchvision_shim  # noqa: F401  (before torchvision)

RESULTS = Path(__file__).parent / "results" / "kfac.md"
LIMIT_SECONDS, LIMIT_GB = 600, 8
PASSES = {
    "plain": "forward and backward",
    "kfac": "Kronecker factors of all layers",
    "scored": "factors and scores by Kron-OBS",
}


def measure(what: str, images: int, size: int) -> dict[str, float]:
    """Seconds (wall and CPU) of one pass, and the process's peak memory in GB."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    model = resnet50().eval()
    x, y = torch.randn(images, 3, size, size), torch.randint(1000, (images,))
    if what == "plain":
        start, cpu = time.perf_counter(), time.process_time()
        for xs, ys in zip(x.split(16), y.split(16), strict=True):
            torch.nn.functional.cross_entropy(model(xs), ys, reduction="sum").backward()
        return _taken(start, cpu)
    analysis = fxprune.analyze(fxprune.trace(model, x[:2]))
    statistics = fxprune.Statistics(analysis, [(x, y)], labels="model", micro_batch=16)
    start, cpu = time.perf_counter(), time.process_time()
    factors = statistics.kronecker(fold=True)
    taken = _taken(start, cpu)
    held = [block for one in factors.values() for block in one.input_blocks + one.output_blocks]
    taken["factors_gb"] = sum(block.numel() * 8 for block in held) / 1e9
    if what == "scored":
        fxprune.score(analysis, "kron_obs", statistics)
        taken = {**_taken(start, cpu), "factors_gb": taken["factors_gb"]}
    return taken


def _taken(start: float, cpu: float) -> dict[str, float]:
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--only", choices=tuple(PASSES))
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.images, options.size)))
        return
    arguments = ["--images", str(options.images), "--size", str(options.size)]
    rows = {}
    for what in PASSES:
        command = [sys.executable, "-m", "benchmarks.kfac", "--only", what, *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows[what] = json.loads(done.stdout.strip().splitlines()[-1])
    RESULTS.write_text(page(rows, options.images, options.size), encoding="utf-8")


def page(rows: dict[str, dict[str, float]], images: int, size: int) -> str:
    """The results as markdown."""
    table = [
        (
            text,
            f"{row['cpu_seconds']:.1f}",
            f"{row['cpu_seconds'] / rows['plain']['cpu_seconds']:.1f}",
            f"{row['seconds']:.1f}",
            f"{row['peak_gb']:.2f}",
        )
        for what, text in PASSES.items()
        for row in (rows[what],)
    ]
    columns = ("pass", "CPU s", "× plain", "wall s", "peak GB")
    last = rows["scored"]
    fits = last["seconds"] <= LIMIT_SECONDS and last["peak_gb"] <= LIMIT_GB
    verdict = "holds" if fits else "DOES NOT HOLD"
    return (
        f"# The cost of a K-FAC pass\n\nResNet-50 by `python -m benchmarks.kfac`, torch "
        f"{torch.__version__}, threads: {torch.get_num_threads()}. {images} images of {size} x "
        f"{size} in micro-batches of 16, batch normalisations folded, labels drawn from the model. "
        "Wall time depends on what else runs; CPU time hardly. "
        "Peak memory is that of a process of its own, with Python, torch and the model; the "
        f"factors, in float64, take {rows['kfac']['factors_gb']:.2f} GB of it.\n\n"
        f"{tabulate(table, columns, 'github', disable_numparse=True)}\n\n"
        f"Within {LIMIT_SECONDS // 60} minutes and {LIMIT_GB} GB: {verdict}.\n"
    )


if __name__ == "__main__":
    main()
