"""Layer collapse: how far criteria can go with no guard, and what empties on the way.

    python -m benchmarks.collapse    # a few minutes

Untrained networks, as in the paper on SynFlow. Criteria are rescored after every round, which
removes one unit, or 2% of those left where a criterion needs data; "one-shot" ones, as their
authors use them, are scored once. The critical compression is the
largest one at which every group has a unit; the maximal one has one unit in every group. Results go
to benchmarks/results/collapse.json, .md and .png.
"""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import torch
from matplotlib import pyplot as plt
from tabulate import tabulate
from tqdm import tqdm

import fxprune
from benchmarks.ranking_models import MODELS, Digits, load
from fxprune.collapse import CollapseReport, critical_compression
from fxprune.criteria import Criterion, SynFlow

RESULTS = Path(__file__).parent / "results" / "collapse.json"
SEEDS = 5
SAMPLES = 100

# One round per removal makes the rounds inside SynFlow superfluous: it ranks the present flows.
CRITERIA: Mapping[str, tuple[str | Criterion, float]] = {
    "synflow": (SynFlow(rounds=1, keep=1.0), 0.0),
    "magnitude": ("magnitude", 0.0),
    "lamp": ("lamp", 0.0),
    "random": ("random", 0.0),
    "snip": ("snip", 0.02),
    "grasp": ("grasp", 0.02),
    "snip, one-shot": ("snip", 0.0),
    "grasp, one-shot": ("grasp", 0.0),
}
Row = dict[str, Any]


def measure(model: str, name: str, seed: int, digits: Digits) -> tuple[Row, CollapseReport]:
    torch.manual_seed(seed)
    traced = fxprune.trace(MODELS[model]().eval(), digits.train[:2])
    criterion, share = CRITERIA[name]
    batches = [(digits.train[:SAMPLES], digits.train_labels[:SAMPLES])]
    analysis = fxprune.analyze(traced)
    if name.endswith("one-shot"):
        scores = fxprune.score(analysis, criterion, batches)
        report = critical_compression(analysis, lambda group, _: scores[group.name])
    else:
        report = critical_compression(analysis, criterion, share, data=batches)
    row = {
        "model": model,
        "criterion": name,
        "seed": seed,
        "critical": report.critical,
        "maximal": report.maximal,
        "emptied": report.emptied,
    }
    return row, report


def page(rows: Sequence[Row]) -> str:
    """The results as markdown."""
    lines = [
        "# Layer collapse",
        "",
        f"By `python -m benchmarks.collapse`: untrained networks, {SEEDS} seeds, no guard. "
        "Critical compression (parameters before / after) is the largest at which no group is "
        "empty: median and range over seeds. `emptied first`: how often a group was the first to "
        "empty.",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        table = []
        for name in CRITERIA:
            mine = [r for r in rows if (r["model"], r["criterion"]) == (model, name)]
            values = [row["critical"] for row in mine]
            firsts = [row["emptied"][0][0] for row in mine]
            counts = sorted({first: firsts.count(first) for first in firsts}.items())
            table.append(
                (
                    name,
                    f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})",
                    ", ".join(f"{first} {count}x" for first, count in counts),
                )
            )
        best = next(row["maximal"] for row in rows if row["model"] == model)
        columns = ("criterion", f"critical (maximal is {best:.1f})", "emptied first")
        lines += ["", f"## {model}", "", tabulate(table, columns, "github", disable_numparse=True)]
    lines += [
        "",
        "The order in which SynFlow empties the groups, at which compression (seed 0):",
        "",
    ]
    for row in rows:
        if (row["criterion"], row["seed"]) == ("synflow", 0):
            order = ", ".join(
                f"{name.removesuffix('.weight:0')} {at:.0f}" for name, at in row["emptied"]
            )
            lines.append(f"- {row['model']}: {order}")
    lines += ["", "![units left against compression, SynFlow](collapse.png)", ""]
    return "\n".join(lines)


def draw(reports: Mapping[str, CollapseReport], path: Path) -> None:
    """Units left of each group against compression, a panel per network."""
    figure, panels = plt.subplots(
        1, len(reports), figsize=(5 * len(reports), 3.8), layout="constrained", sharey=True
    )
    for axes, (model, report) in zip(panels, reports.items(), strict=True):
        rounds = [r for r in report.rounds if r.compression < 1e6]
        names = list(rounds[0].widths)
        colors = mpl.colormaps["viridis"].resampled(len(names)).colors
        for name, color in zip(names, colors, strict=True):
            full = rounds[0].widths[name]
            # An empty group would be off a logarithmic scale: it ends at its last unit, marked.
            alive = [r for r in rounds if r.widths[name] > 0]
            left = [r.widths[name] / full for r in alive]
            label = f"{name.removesuffix('.weight:0')} ({full})"
            axes.plot([r.compression for r in alive], left, color=color, label=label, lw=1.4)
            axes.plot(alive[-1].compression, left[-1], color=color, marker="x", ms=6)
        axes.axvline(report.maximal, color="#22303c", lw=0.8, ls=":")
        axes.text(report.maximal, 1.15, "maximal", ha="right", fontsize=8, color="#22303c")
        axes.set(title=f"{model}, SynFlow", xlabel="compression (parameters)")
        axes.set(xscale="log", yscale="log", ylim=(0.008, 1.6))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7, loc="lower left")
    panels[0].set_ylabel("share of a group's units left; x: its last one")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", fxprune.LeftWholeWarning)
    digits, rows, shown = load(), [], {}
    jobs = [(m, c, s) for m in ("VGG-like", "ResNet-8") for c in CRITERIA for s in range(SEEDS)]
    for model, name, seed in tqdm(jobs):
        row, report = measure(model, name, seed, digits)
        rows.append(row)
        if (name, seed) == ("synflow", 0):
            shown[model] = report
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(page(rows), encoding="utf-8")
    draw(shown, RESULTS.with_suffix(".png"))


if __name__ == "__main__":
    main()
