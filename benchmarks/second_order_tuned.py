"""Second-order pruning after fine-tuning: more seeds, for few methods.

    python -m benchmarks.second_order_tuned            # an hour of one core
    python -m benchmarks.second_order_tuned --add      # measure what the results lack

On digits all methods come near the unpruned network after five epochs, and five seeds do not tell
them apart. The methods that `benchmarks.second_order` found good before fine-tuning, and
Torch-Pruning's, are measured here on seeds that played no part in finding them: accuracy and loss
on the test images after fine-tuning. Results go to benchmarks/results/second_order_tuned.json, .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

from benchmarks.ranking_models import MODELS, Digits, load
from benchmarks.second_order import EPOCHS, ITERATED, LEVELS, METHODS, PEER, Bench
from benchmarks.second_order_table import best_table, half_interval

FIRST_SEED = 5
"""`benchmarks.second_order` has those before it."""
OURS = (
    *(ITERATED, "tucker", "l2 / mean + least_squares", "mask_fisher, local, rounds"),
    *("mask_fisher, local + least_squares", "mask_fisher, local, rounds + least_squares"),
)
CHOSEN = frozenset({*OURS, *(f"tp {name}" for name in PEER)})
RESULTS = Path(__file__).parent / "results" / "second_order_tuned.json"

Row = dict[str, Any]


def accuracy(row: Mapping[str, Any], method: str, level: float) -> float:
    """Test accuracy in percent after fine-tuning."""
    return 100 * float(row["methods"][method][str(level)]["accuracy"])


def loss(row: Mapping[str, Any], method: str, level: float) -> float:
    """Loss on the test images after fine-tuning."""
    return float(row["methods"][method][str(level)]["loss"])


def measure(name: str, digits: Digits, seed: int) -> Row:
    """One network, by all methods."""
    bench = Bench(name, digits, seed)
    methods: dict[str, dict[str, dict[str, float]]] = {}
    for method, level, module in bench.versions(METHODS - CHOSEN):
        tuned = bench.tuned(module)
        cell = {"accuracy": bench.accuracy(tuned), "loss": bench.test_loss(tuned)}
        methods.setdefault(method, {})[str(level)] = cell
    dense = {"accuracy": bench.accuracy(bench.model), "loss": bench.test_loss(bench.model)}
    return {"model": name, "seed": seed, **dense, "methods": methods}


def page(found: Mapping[str, Any]) -> str:
    """The results as markdown."""
    rows = found["rows"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    counts = [sum(row["model"] == model for row in rows) for model in models]
    parts = [
        "# Second-order pruning after fine-tuning",
        f"Scikit-learn's digits, {' / '.join(map(str, counts))} seeds of {', '.join(models)} that "
        "[second_order.md](second_order.md) does not have, by `python -m "
        f"benchmarks.second_order_tuned` (torch {found['torch']}, {found['cpu_seconds'] / 60:.0f} "
        f"minutes of CPU time). Each pruned network is fine-tuned for {EPOCHS} epochs, all by the "
        "same recipe; one of the 450 test images is 0.22%.",
        "Per network and level the method of the highest mean test accuracy (or the lowest mean "
        "test loss) of each side, and the mean of the paired differences ± half its 95% "
        "interval; in the last column the methods are chosen for each seed on the other seeds. "
        "*Italic* where ours is better outside the interval, **bold** where it is worse.",
        "## Test accuracy",
        best_table(found, OURS, accuracy, higher=True),
        "## Test loss",
        best_table(found, OURS, loss, higher=False),
    ]
    for model in models:
        parts += [f"## {model}", _means([row for row in rows if row["model"] == model])]
    return "\n\n".join(parts) + "\n"


def _means(rows: list[Row]) -> str:
    """Mean over seeds ± half the 95% interval."""
    table = []
    for method in sorted(CHOSEN):
        cells = []
        for value, places in ((accuracy, 2), (loss, 4)):
            for level in LEVELS:
                values = [value(row, method, level) for row in rows]
                mean, half = statistics.fmean(values), half_interval(values)
                cells.append(f"{mean:.{places}f} ± {half:.{places}f}")
        table.append((method, *cells))
    dense = [
        f"unpruned: test accuracy {100 * statistics.fmean(row['accuracy'] for row in rows):.2f}%, "
        f"test loss {statistics.fmean(row['loss'] for row in rows):.4f}"
    ]
    columns = [f"{what} {level:.0%}" for what in ("test %", "loss") for level in LEVELS]
    text = tabulate(table, ("method", *columns), "github", disable_numparse=True)
    return "\n\n".join([*dense, text])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--add", action="store_true", help="keep what is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    old: Row = json.loads(options.output.read_text(encoding="utf-8")) if options.add else {}
    rows = list(old.get("rows", []))
    known = {(row["model"], row["seed"]) for row in rows}
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    jobs = [(name, seed) for seed in seeds for name in MODELS if (name, seed) not in known]
    digits, started = load(), time.process_time()
    for name, seed in tqdm(jobs, unit="network"):
        rows.append(measure(name, digits, seed))
        spent = old.get("cpu_seconds", 0.0) + time.process_time() - started
        found = {"cpu_seconds": spent, "levels": LEVELS, "torch": torch.__version__, "rows": rows}
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        options.output.with_suffix(".md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
