"""The page and the picture of `benchmarks.second_order`, from its JSON.

python -m benchmarks.second_order_table    # write them again
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

RESULTS = Path(__file__).parent / "results" / "second_order.json"
CHANCE = math.log(10)
REPAIRED = " + "
FACTORS = ("eigendamage", "eigendamage_ekfac", "svd", "tucker")
SHOWN = (
    *("random", "tp lamp", "mask_fisher, local", "fisher", "c_obd", "kron_obd"),
    *("l2 / mean + least_squares", "tucker", "svd", "eigendamage"),
)
SUMMARY = (
    *("random", "l2 / mean", "tp l2", "tp lamp", "tp taylor", "tp hessian", "fisher", "c_obd"),
    *("c_obs", "kron_obd", "kron_obs", "thinet", "mask_fisher, local, rounds"),
    *("fisher / mean, rounds", "eigendamage", "eigendamage, 4 steps", "svd", "tucker"),
    *("l2 / mean + least_squares", "kron_obs / mean + least_squares"),
)
"""What the guide shows."""
Found = Mapping[str, Any]
Value = Callable[[Found, str, float], float]


def write(found: Found, path: Path) -> None:
    """The .md and .png beside a JSON file, of the networks that all methods were measured on."""
    names = {name for row in found["rows"] for name in row["methods"]}
    complete = [row for row in found["rows"] if row["methods"].keys() == names]
    found = {**found, "rows": complete}
    path.with_suffix(".md").write_text(page(found), encoding="utf-8")
    draw(found, path.with_suffix(".png"))


def loss(row: Found, method: str, level: float) -> float:
    """Training loss before fine-tuning, at most chance: what lies above says nothing more."""
    return min(float(row["methods"][method][str(level)]["loss"]), CHANCE)


def accuracy(row: Found, method: str, level: float) -> float:
    """Test accuracy in percent before fine-tuning."""
    return 100 * float(row["methods"][method][str(level)]["accuracy"])


def tuned(row: Found, method: str, level: float) -> float:
    """Test accuracy in percent after fine-tuning."""
    return 100 * float(row["methods"][method][str(level)]["tuned"])


def page(found: Found) -> str:
    """The results as markdown."""
    levels = found["levels"]
    counts = [len(_rows(found, model)) for model in _models(found)]
    return "\n".join(
        [
            "# Second-order pruning",
            "",
            f"Scikit-learn's digits, {' / '.join(map(str, counts))} seeds of "
            f"{', '.join(_models(found))}, by `python -m benchmarks.second_order` (torch "
            f"{found['torch']}, {found['cpu_seconds'] / 60:.0f} minutes of CPU time). Statistics "
            f"are of {found['samples']} training images, with labels drawn from the model; "
            "those of `mask_fisher` and `molchanov2017` have the given labels. "
            "Channels go in one shot over the whole network, uncompensated; factors "
            "(`eigendamage`, `svd`, `tucker`) in one shot, too, their 1×1s counted. `x / mean`: "
            "scores divided by their group's mean. `tp x`: Torch-Pruning's importance, given to "
            "our allocation; its Taylor sees all training images. `rounds`: eight, measured "
            "again in each, without training between. "
            "`+ least_squares`: the layers that read what is gone are refitted to what they "
            "computed, on the same images. `then eigendamage`: channels to the root of the share "
            "of MACs, then factors.",
            "",
            tabulate(_dense(found), ("network", "MACs", "parameters", "loss", "test %"), "github"),
            "",
            "## In short",
            "",
            "Median training loss before fine-tuning at 80% / 60% / 25% of the MACs.",
            "",
            summary(found),
            "",
            "## EigenDamage against the others, one shot, before fine-tuning",
            "",
            "Mean over seeds of the difference in training loss, EigenDamage minus the other, ± "
            f"half the 95% interval of the paired differences; losses above chance ({CHANCE:.2f}) "
            "count as chance. *Italic* where EigenDamage is better outside the interval, **bold** "
            "where it is worse.",
            "",
            _pairs(found, "eigendamage", _one_shot(found), loss),
            "",
            _pairs(found, "eigendamage", ["svd", "tucker", "eigendamage_ekfac"], loss),
            "",
            "## Our best against Torch-Pruning's best",
            "",
            "Per network and level the method of the lowest mean training loss (or highest mean "
            "test accuracy) of each side. As the best is chosen on these very numbers, on both "
            "sides and of more methods on ours, the last column has the difference again with "
            "methods chosen for each seed on the other seeds alone. *Italic* where ours is better "
            "outside the 95% interval of the paired differences, **bold** where it is worse. "
            "Torch-Pruning's criteria are " + ", ".join(_peers(found)) + ".",
            *_best(found),
            "",
            "## OBS against OBD",
            "",
            "The same differences, OBS minus OBD: OBS is the better prediction for one row of a "
            "layer that makes up for it; here nothing is made up for, and sets are removed.",
            "",
            _pairs(found, "c_obs", ["c_obd"], loss),
            "",
            _pairs(found, "kron_obs", ["kron_obd"], loss),
            "",
            "## How near to diagonal the Fisher information is",
            "",
            "The share of ‖F‖² that lies on the diagonal of a layer's Fisher information, exact, "
            "of the weights and of their coordinates in the eigenbasis of EigenDamage; mean over "
            "layers and seeds, and in how many layers it is larger in the eigenbasis.",
            "",
            tabulate(_diagonality(found), ("network", "weights", "eigenbasis", "larger"), "github"),
            *[line for model in _models(found) for line in ("", *_tables(found, model, levels))],
            "",
            "![training loss against MACs](second_order.png)",
            "",
        ]
    )


def summary(found: Found) -> str:
    """The table of the guide, the best first."""
    table = []
    for name in SUMMARY:
        losses = [
            [
                statistics.median(_loss_as_it_is(row, name, level) for row in _rows(found, model))
                for level in (0.8, 0.6, 0.25)
            ]
            for model in _models(found)
        ]
        cells = [" / ".join(f"{value:.2f}" for value in row) for row in losses]
        table.append((sum(math.log(value) for row in losses for value in row), name, *cells))
    rows = [row[1:] for row in sorted(table)]
    return tabulate(rows, ("method", *_models(found)), "github", disable_numparse=True)


def _dense(found: Found) -> list[tuple[str, str, str, str, str]]:
    return [
        (
            model,
            f"{rows[0]['macs']:,}",
            f"{rows[0]['params']:,}",
            f"{statistics.fmean(row['loss'] for row in rows):.3f}",
            f"{100 * statistics.fmean(row['accuracy'] for row in rows):.1f}",
        )
        for model in _models(found)
        for rows in (_rows(found, model),)
    ]


def _one_shot(found: Found) -> list[str]:
    """The ways to prune channels in one shot, without compensation."""
    more = ("rounds", "steps", " + ", " then ")
    names = [n for n in found["rows"][0]["methods"] if not any(part in n for part in more)]
    return [name for name in names if name not in FACTORS]


def _pairs(found: Found, ours: str, theirs: Sequence[str], value: Value) -> str:
    """Differences from each of the others, and how many are outside their intervals."""
    models, table = _models(found), []
    counts = {(model, level): [0, 0, 0] for model in models for level in found["levels"]}
    for other in theirs:
        for model in models:
            cells = []
            for level in found["levels"]:
                rows = _rows(found, model)
                cell, sign = _difference(
                    [value(row, ours, level) - value(row, other, level) for row in rows]
                )
                counts[model, level][sign] += 1
                cells.append(cell)
            table.append((other, model, *cells))
    listed = []
    for model in models:
        tallies = [counts[model, level] for level in found["levels"]]
        cells = [f"{better} / {worse} / {neither}" for neither, worse, better in tallies]
        listed.append((model, *cells))
    levels = [f"{level:.0%}" for level in found["levels"]]
    text = tabulate(table, ("against", "network", *levels), "github", disable_numparse=True)
    if len(theirs) == 1:
        return text
    short = tabulate(listed, ("network", *levels), "github", disable_numparse=True)
    return (
        f"{text}\n\nHow many of these `{ours}` is better in / worse in / in how many the interval "
        f"holds 0:\n\n{short}"
    )


def _difference(values: Sequence[float], higher: bool = False) -> tuple[str, int]:
    """Mean ± half the interval, and -1 where ours is better outside it, 1 where it is worse."""
    mean, half = statistics.fmean(values), half_interval(values)
    sign = int(mean - half > 0) - int(mean + half < 0)
    sign = -sign if higher else sign
    mark = {-1: "*", 0: "", 1: "**"}[sign]
    return f"{mark}{mean:+.3f} ± {half:.3f}{mark}", sign


def _best(found: Found) -> list[str]:
    peers = _peers(found)
    own = [name for name in found["rows"][0]["methods"] if name not in (*peers, "random")]
    plain = [name for name in own if REPAIRED not in name]
    at_once = [name for name in _one_shot(found) if name in own]
    before, after = "Training loss before fine-tuning", "Test accuracy after fine-tuning"
    lines = []
    for title, chosen, value, higher in (
        (f"{before}, channels in one shot, uncompensated", at_once, loss, False),
        (f"{before}, ours also in rounds and factors, uncompensated", plain, loss, False),
        (f"{before}, ours also compensated", own, loss, False),
        (f"{after}, ours also in rounds and factors, uncompensated", plain, tuned, True),
        (f"{after}, ours also compensated", own, tuned, True),
    ):
        lines += ["", f"### {title}", "", best_table(found, chosen, value, higher)]
    return lines


def best_table(found: Found, own: Sequence[str], value: Value, higher: bool) -> str:
    """The best of `own` against the best of Torch-Pruning's, per network and level."""
    table, counts, apart = [], [0, 0, 0], [0, 0, 0]
    for model in _models(found):
        rows = _rows(found, model)
        for level in found["levels"]:
            sides = [
                [n for n in names if _has(rows, n, level, value)] for names in (own, _peers(found))
            ]
            best = [_best_of(rows, names, level, value, higher) for names in sides]
            means = [statistics.fmean(value(row, n, level) for row in rows) for n in best]
            ours, theirs = ([value(row, n, level) for row in rows] for n in best)
            cell, sign = _difference([a - b for a, b in zip(ours, theirs, strict=True)], higher)
            ours, theirs = (_held_out(rows, names, level, value, higher) for names in sides)
            again, other = _difference([a - b for a, b in zip(ours, theirs, strict=True)], higher)
            counts[sign] += 1
            apart[other] += 1
            listed = [f"{n}: {mean:.3f}" for n, mean in zip(best, means, strict=True)]
            table.append((model, f"{level:.0%}", *listed, cell, again))
    columns = ("network", "MACs", "ours", "Torch-Pruning's", "difference", "chosen on other seeds")
    text = tabulate(table, columns, "github", disable_numparse=True)
    return (
        f"{text}\n\nOurs is better outside the interval in {counts[-1]} of {sum(counts)} cells, "
        f"worse in {counts[1]}; with methods chosen on other seeds in {apart[-1]} and {apart[1]}."
    )


def _has(rows: Sequence[Found], name: str, level: float, value: Value) -> bool:
    """Whether the value was measured for a method at a level."""
    return value is not tuned or all("tuned" in r["methods"][name][str(level)] for r in rows)


def _best_of(
    rows: Sequence[Found], names: Sequence[str], level: float, value: Value, higher: bool
) -> str:
    """The method of the lowest mean, or of the highest."""
    means = {name: statistics.fmean(value(row, name, level) for row in rows) for name in names}
    return (max if higher else min)(means, key=means.__getitem__)


def _held_out(
    rows: Sequence[Found], names: Sequence[str], level: float, value: Value, higher: bool
) -> list[float]:
    """For each row the value of the method that is best on the others."""
    chosen = [
        _best_of([r for r in rows if r is not row] or [row], names, level, value, higher)
        for row in rows
    ]
    return [value(row, name, level) for row, name in zip(rows, chosen, strict=True)]


def _diagonality(found: Found) -> list[tuple[str, str, str, str]]:
    table = []
    for model in _models(found):
        pairs = [pair for row in _rows(found, model) for pair in row["diagonality"].values()]
        weights, turned = (statistics.fmean(side) for side in zip(*pairs, strict=True))
        larger = sum(after > before for before, after in pairs)
        table.append((model, f"{weights:.3f}", f"{turned:.3f}", f"{larger} of {len(pairs)}"))
    return table


def _tables(found: Found, model: str, levels: Sequence[float]) -> list[str]:
    """Medians over seeds; the parameters at the level at which all methods are fine-tuned."""
    rows, table = _rows(found, model), []
    shown = found["tuned"][0]

    def median(value: Value, name: str, level: float) -> float:
        return statistics.median(value(row, name, level) for row in rows)

    for name in rows[0]["methods"]:
        raw = [median(_loss_as_it_is, name, level) for level in levels]
        accuracies = [f"{median(accuracy, name, level):.1f}" for level in levels]
        after = [
            f"{median(tuned, name, level):.1f}" if _has(rows, name, level, tuned) else ""
            for level in levels
        ]
        params = statistics.median(row["methods"][name][str(shown)]["params"] for row in rows)
        cells = [f"{value:.3f}" for value in raw]
        order = sum(map(math.log, raw))
        table.append((order, name, *cells, *accuracies, *after, f"{params:,.0f}"))
    columns = [
        "method",
        *(f"{what} {level:.0%}" for what in ("loss", "test %", "tuned") for level in levels),
        f"parameters {shown:.0%}",
    ]
    return [
        f"## {model}",
        "",
        "Medians over seeds: training loss and test accuracy before fine-tuning at shares of the "
        "MACs, test accuracy after it, and parameters.",
        "",
        tabulate([row[1:] for row in sorted(table)], columns, "github", disable_numparse=True),
    ]


def _loss_as_it_is(row: Found, method: str, level: float) -> float:
    return float(row["methods"][method][str(level)]["loss"])


def half_interval(values: Sequence[float]) -> float:
    """Half the width of Student's 95% interval of the mean."""
    if len(values) < 2:
        return math.inf
    error = statistics.stdev(values) / math.sqrt(len(values))
    return float(stats.t.ppf(0.975, len(values) - 1)) * error


def _models(found: Found) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in found["rows"]))


def _rows(found: Found, model: str) -> list[Found]:
    return [row for row in found["rows"] if row["model"] == model]


def _peers(found: Found) -> list[str]:
    return [name for name in found["rows"][0]["methods"] if name.startswith("tp ")]


def draw(found: Found, path: Path) -> None:
    """Training loss against MACs, a panel per network: the median and the range over seeds."""
    models = _models(found)
    figure, panels = plt.subplots(
        1,
        len(models),
        figsize=(4.2 * len(models) + 1.6, 3.9),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    levels = [100 * level for level in found["levels"]]
    colors = mpl.colormaps["tab10"].colors
    for axes, model in zip(panels[0], models, strict=True):
        rows = _rows(found, model)
        for name, color in zip(SHOWN, colors, strict=False):
            curves = [
                [row["methods"][name][str(level)]["loss"] for level in found["levels"]]
                for row in rows
            ]
            columns = list(zip(*curves, strict=True))
            low, high = [min(c) for c in columns], [max(c) for c in columns]
            dashes = "-" if name in FACTORS else "--"
            middle = [statistics.median(column) for column in columns]
            axes.fill_between(levels, low, high, color=color, alpha=0.08, linewidth=0)
            axes.plot(levels, middle, dashes, color=color, marker="o", markersize=3, label=name)
        axes.axhline(CHANCE, color="#7b8794", linewidth=0.8, linestyle=":")
        axes.set(title=model, xlabel="MACs left (%)", yscale="log")
        axes.invert_xaxis()
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("training loss before fine-tuning")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    write(json.loads(RESULTS.read_text(encoding="utf-8")), RESULTS)
