"""The page and the picture of `benchmarks.ranking`, from its JSON.

python -m benchmarks.ranking_table    # write them again
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from scipy import stats
from tabulate import tabulate

RESULTS = Path(__file__).parent / "results" / "ranking.json"
Found = Mapping[str, Any]
Pair = tuple[str, str, str]

# The same criterion by its formula: Torch-Pruning's name, ours with the normaliser that its default
# has, and what still differs.
PAIRS = (
    ("l2", "l2² / mean", "theirs adds γ², omits depthwise weights and averages over layers"),
    ("lamp", "lamp", "theirs adds γ², omits depthwise weights and averages over layers"),
    ("fpgm", "fpgm, both sides / mean", "theirs compares squared weights and averages over layers"),
    ("bn_scale", "bn_scale / mean", "nothing"),
    ("taylor", "snip_weight, both sides / mean", "theirs omits depthwise weights"),
    (
        "taylor, multivariable",
        "taylor / mean",
        "theirs takes absolute values of single rows and columns, on both sides",
    ),
    ("hessian", "fisher / mean", "theirs keeps the last sample only, is diagonal, adds both sides"),
)
# The same name, ours as its paper and its default have it.
NAMESAKES = (
    ("fpgm", "fpgm / mean", "ours compares producers' rows alone, as the paper does"),
    ("taylor", "snip_weight / mean", "ours looks at readers alone: they are what removal changes"),
    ("taylor", "taylor", "another criterion of that name, and ours is not normalised"),
    ("hessian", "fisher", "as above, and ours is not normalised"),
)
SHOWN = ("random", "l2", "lamp", "synflow", "thinet", "fisher / mean", "mask_fisher")

# What the guide shows: the scores whose sums predict, and the cut by them, global or local.
SUMMARY = (
    *(("mask_fisher", "mask_fisher", "local"), ("mask_fisher", "mask_fisher", "global")),
    *(("fisher", "fisher / mean, 10 rounds", "global"), ("fisher", "fisher / mean", "global")),
    *(("fisher", "fisher", "global"), ("fisher ÷ MACs", "fisher ÷ MACs", "global")),
    *(("thinet", "thinet", "global"), ("molchanov2017", "molchanov2017", "global")),
    *(("mutual_information", "mutual_information / mean", "global"),),
    *(("snip_weight", "snip_weight / mean", "global"), ("taylor", "taylor", "global")),
    *(("synflow", "synflow", "global"), ("lamp", "lamp", "global"), ("l2", "l2", "global")),
    *(("l2", "l2 / mean", "global"), ("wanda_sp", "wanda_sp / mean", "global")),
    *(("flap", "flap", "global"), ("bn_scale", "bn_scale", "global")),
    *(("fpgm", "fpgm / mean", "global"), ("mean_activation", "mean_activation / mean", "global")),
    *(("hrank", "hrank", "global"), ("apoz", "apoz", "global"), ("grasp", "grasp", "global")),
    *(("skeletonization", "skeletonization", "global"), ("random", "random", "global")),
)


def write(found: Found, path: Path) -> None:
    """The .md and .png beside a JSON file; the picture of what all criteria were measured on."""
    path.with_suffix(".md").write_text(page(found), encoding="utf-8")
    draw({**found, "rows": _complete(found["rows"])}, path.with_suffix(".png"))


def page(found: Found) -> str:
    """The results as markdown."""
    every, found = found, {**found, "rows": _complete(found["rows"])}
    seeds = len({row["seed"] for row in found["rows"]})
    return "\n".join(
        [
            "# How well criteria rank channels",
            "",
            f"Scikit-learn's digits, {seeds} seeds of three networks, by `python -m "
            f"benchmarks.ranking` (torch {found['torch']}). Everything is measured on the training "
            "images, before any fine-tuning. "
            "`x / mean`: scores divided by their group's mean. `tp x`: Torch-Pruning 1.6.1 with "
            "its default options, its importances given to our allocation.",
            "",
            *_bases(found),
            "",
            "## In short",
            "",
            "Sets: the rank correlation below, mean over networks. Then the loss at 80% / 60% of "
            "the MACs, median over seeds; cuts are global unless they say local.",
            "",
            summary(found),
            "",
            "## Rank correlation with the true change of the loss",
            "",
            f"Spearman's, over {found['sets']} random sets of {found['share']:.0%} of the "
            "channels, of the sum of a set's scores with the change of the loss when the set is "
            "masked; mean over seeds ± half the 95% interval.",
            "",
            _correlations(found),
            "",
            "## Loss after removing the lowest scores, before fine-tuning",
            "",
            f"Median over seeds of the cross-entropy at a share of the MACs; chance is "
            f"{math.log(found['classes']):.2f}.",
            *[line for model in _models(found) for line in ("", *_curves(found, model))],
            "",
            "## Side by side with Torch-Pruning",
            "",
            "Mean over seeds of the difference in loss, ours minus theirs (losses above chance "
            "count as chance), ± half the 95% interval of the paired differences. **Bold** where "
            "ours is worse outside the interval, *italic* where it is better.",
            "",
            "Criteria are paired by formula: Torch-Pruning's Taylor is Σ|θ∂θ| by default, which is "
            "our `snip_weight`, and |Σθ∂θ| with `multivariable=True`, which is our `taylor`. Its "
            "FPGM and its Taylor look at what makes a unit and at what reads it: so do `Fpgm` and "
            "`SnipWeight` if they are told to, `both sides`. Its scores are divided by their "
            "group's mean, so ours are, too.",
            "",
            _pairs(found, PAIRS),
            "",
            *_again(every, PAIRS),
            "The same names, with what ours are by definition and by default:",
            "",
            _pairs(found, NAMESAKES),
            "",
            *_again(every, NAMESAKES),
            _deviations(found),
            "",
            "![loss against MACs](ranking.png)",
            "",
        ]
    )


def summary(found: Found) -> str:
    """The table of the guide, the best cuts first."""
    places = [found["levels"].index(level) for level in (0.8, 0.6)]
    table = []
    for predictor, cut, scope in SUMMARY:
        losses = [_medians(_rows(found, m), scope, cut, found) for m in _models(found)]
        cells = [" / ".join(f"{row[place]:.2f}" for place in places) for row in losses]
        sets = statistics.fmean(row["correlation"][predictor] for row in found["rows"])
        order = sum(math.log(row[place]) for row in losses for place in places)
        name = f"{cut}{', local' * (scope == 'local')}"
        table.append((order, name, f"{sets:.2f}", *cells))
    rows = [row[1:] for row in sorted(table)]
    columns = ("criterion", "sets", *_models(found))
    return tabulate(rows, columns, "github", disable_numparse=True)


def _bases(found: Found) -> list[str]:
    rows = [
        (model, f"{_rows(found, model)[0]['macs']:,}", f"{_mean(found, model, _base):.3f}")
        for model in _models(found)
    ]
    return [tabulate(rows, ("network", "MACs", "loss, nothing removed"), "github")]


def _base(row: Found) -> float:
    return float(row["loss"])


def _correlations(found: Found) -> str:
    names = found["rows"][0]["correlation"]
    rows = []
    for name in names:
        cells = []
        for model in _models(found):
            values = [row["correlation"][name] for row in _rows(found, model)]
            cells.append(f"{statistics.fmean(values):.2f} ± {half_interval(values):.2f}")
        every = statistics.fmean(row["correlation"][name] for row in found["rows"])
        rows.append((name, *cells, f"{every:.2f}"))
    rows.sort(key=lambda row: -float(row[-1]))
    return tabulate(rows, ("criterion", *_models(found), "mean"), "github", disable_numparse=True)


def _curves(found: Found, model: str) -> list[str]:
    rows = _rows(found, model)
    table = [
        (f"{name}{', local' * (scope == 'local')}", *_medians(rows, scope, name, found))
        for scope in ("global", "local")
        for name in rows[0][scope]
    ]
    table.sort(key=lambda row: sum(math.log(value) for value in row[1:]))
    levels = [f"{level:.0%}" for level in found["levels"]]
    return [f"### {model}", "", tabulate(table, ("criterion", *levels), "github", floatfmt=".2f")]


def _medians(rows: Sequence[Found], scope: str, name: str, found: Found) -> list[float]:
    return [
        statistics.median(row[scope][name][place] for row in rows)
        for place in range(len(found["levels"]))
    ]


def _pairs(found: Found, pairs: Sequence[Pair]) -> str:
    table, counts = [], [0, 0, 0]
    for theirs, ours, why in pairs:
        for model in _models(found):
            cells = []
            for place in range(len(found["levels"])):
                cell, sign = _difference(_rows(found, model), ours, theirs, place, found)
                counts[sign] += 1
                cells.append(cell)
            table.append((ours, f"tp {theirs}", model, *cells, why))
    levels = [f"{level:.0%}" for level in found["levels"]]
    columns = ("ours", "theirs", "network", *levels, "what differs")
    text = tabulate(table, columns, "github", disable_numparse=True)
    total = sum(counts)
    return (
        f"{text}\n\nOf {total} cells ours is worse in {counts[1]} and better in {counts[-1]}; "
        f"by chance about {0.025 * total:.1f} of each are to be expected."
    )


def _difference(
    rows: Sequence[Found], ours: str, theirs: str, place: int, found: Found
) -> tuple[str, int]:
    """Mean ± half the interval, and 1 where ours is worse outside it, -1 where it is better."""
    chance = math.log(found["classes"])
    values = [
        min(row["global"][ours][place], chance) - min(row["global"][f"tp {theirs}"][place], chance)
        for row in rows
    ]
    mean, half = statistics.fmean(values), half_interval(values)
    sign = int(mean - half > 0) - int(mean + half < 0)
    mark = {-1: "*", 0: "", 1: "**"}[sign]
    return f"{mark}{mean:+.2f} ± {half:.2f}{mark}", sign


def _again(every: Found, pairs: Sequence[Pair]) -> list[str]:
    """The cells in which ours is worse, on the seeds that only some criteria were measured on."""
    first = _complete(every["rows"])
    fresh = [row for row in every["rows"] if row not in first]
    table = []
    for theirs, ours, _ in pairs:
        for model in _models(every):
            mine = [row for row in first if row["model"] == model]
            more = [row for row in fresh if row["model"] == model and ours in row["global"]]
            for place, level in enumerate(every["levels"]):
                cell, sign = _difference(mine, ours, theirs, place, every)
                if sign > 0 and more:
                    again, _ = _difference(more, ours, theirs, place, every)
                    table.append((ours, f"tp {theirs}", model, f"{level:.0%}", cell, again))
    if not table:
        return []
    number = len({row["seed"] for row in fresh})
    columns = ("ours", "theirs", "network", "MACs", "above", f"{number} other seeds")
    return [
        f"The cells in which ours is worse, measured again on {number} other seeds:",
        "",
        tabulate(table, columns, "github", disable_numparse=True),
        "",
    ]


def _complete(rows: Sequence[Found]) -> list[Found]:
    """The networks that all criteria were measured on."""
    names = {name for row in rows for name in row["global"]}
    return [row for row in rows if row["global"].keys() == names]


def _deviations(found: Found) -> str:
    """Where the differences come from."""
    names = found["rows"][0]["deviation"]
    most = {name: max(row["deviation"][name] for row in found["rows"]) for name in names}
    listed = ", ".join(f"{name} {value:.0e}" for name, value in most.items())
    return (
        "The causes in the last column are checked: `benchmarks/ranking_definitions.py` has "
        "Torch-Pruning's definitions as criteria on fxprune's groups, and they give its scores. "
        f"The largest relative differences in all networks are {listed}: groups, gradients and "
        "allocation are the same, and only the definitions differ."
    )


def half_interval(values: Sequence[float]) -> float:
    """Half the width of Student's 95% interval of the mean; 0 for values that are all equal."""
    if len(values) < 2:
        return math.inf
    error = statistics.stdev(values) / math.sqrt(len(values))
    return float(stats.t.ppf(0.975, len(values) - 1)) * error


def _models(found: Found) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in found["rows"]))


def _rows(found: Found, model: str) -> list[Found]:
    return [row for row in found["rows"] if row["model"] == model]


def _mean(found: Found, model: str, value: Callable[[Found], float]) -> float:
    return statistics.fmean(value(row) for row in _rows(found, model))


def draw(found: Found, path: Path) -> None:
    """Loss against MACs, a panel per network, the median and the range over seeds."""
    models = _models(found)
    figure, panels = plt.subplots(
        1, len(models), figsize=(4.2 * len(models), 3.9), layout="constrained", sharey=True
    )
    levels = [100 * level for level in found["levels"]]
    colors = mpl.colormaps["tab10"].colors
    for axes, model in zip(panels, models, strict=True):
        rows = _rows(found, model)
        for name, color in zip(SHOWN, colors, strict=False):
            curves = [row["global"][name] for row in rows]
            middle = [statistics.median(column) for column in zip(*curves, strict=True)]
            low = [min(column) for column in zip(*curves, strict=True)]
            high = [max(column) for column in zip(*curves, strict=True)]
            axes.fill_between(levels, low, high, color=color, alpha=0.08, linewidth=0)
            axes.plot(levels, middle, color=color, marker="o", markersize=3, label=name)
        axes.axhline(math.log(found["classes"]), color="#7b8794", linewidth=0.8, linestyle=":")
        axes.set(title=model, xlabel="MACs left (%)", yscale="log")
        axes.invert_xaxis()
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("training loss before fine-tuning")
    panels[-1].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    write(json.loads(RESULTS.read_text(encoding="utf-8")), RESULTS)
