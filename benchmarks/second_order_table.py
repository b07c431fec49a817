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
FACTORS = ("eigendamage", "eigendamage_ekfac", "svd", "tucker")
CONTROLS = ("random", "l2", "l2 / mean", "fisher", "c_obd", "c_obs", "kron_obd", "kron_obs")
SHOWN = ("random", "l2 / mean", "fisher", "c_obd", "kron_obd", "tucker", "svd", "eigendamage")
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
            f"are of {found['samples']} training images, with labels drawn from the model. "
            "Channels go in one shot over the whole network, uncompensated; factors "
            "(`eigendamage`, `svd`, `tucker`) in one shot, too, their 1×1s counted. `x / mean`: "
            "scores divided by their group's mean. `tp x`: Torch-Pruning's importance, given to "
            "our allocation. `rounds`: eight, measured again in each, without training between.",
            "",
            tabulate(_dense(found), ("network", "MACs", "parameters", "loss", "test %"), "github"),
            "",
            "## EigenDamage against the others, one shot, before fine-tuning",
            "",
            "Mean over seeds of the difference in training loss, EigenDamage minus the other, ± "
            f"half the 95% interval of the paired differences; losses above chance ({CHANCE:.2f}) "
            "count as chance. *Italic* where EigenDamage is better outside the interval, **bold** "
            "where it is worse.",
            "",
            _pairs(found, "eigendamage", [*CONTROLS, "svd", "tucker", "eigendamage_ekfac"], loss),
            "",
            "## Our best against Torch-Pruning's best",
            "",
            "Per network and level the method of the lowest mean training loss (or highest mean "
            "test accuracy) of each side. The best was chosen on these very numbers, on both "
            "sides; Torch-Pruning's criteria are " + ", ".join(_peers(found)) + ".",
            "",
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


def _pairs(found: Found, ours: str, theirs: Sequence[str], value: Value) -> str:
    table, counts = [], [0, 0, 0]
    for other in theirs:
        for model in _models(found):
            cells = []
            for level in found["levels"]:
                differences = [
                    value(row, ours, level) - value(row, other, level)
                    for row in _rows(found, model)
                ]
                mean, half = statistics.fmean(differences), half_interval(differences)
                better, worse = mean + half < 0, mean - half > 0
                counts[0 if better else 1 if worse else 2] += 1
                mark = "*" if better else "**" if worse else ""
                cells.append(f"{mark}{mean:+.3f} ± {half:.3f}{mark}")
            table.append((other, model, *cells))
    levels = [f"{level:.0%}" for level in found["levels"]]
    text = tabulate(table, ("against", "network", *levels), "github", disable_numparse=True)
    return (
        f"{text}\n\nOf {sum(counts)} cells `{ours}` is better in {counts[0]}, worse in "
        f"{counts[1]}; the interval holds 0 in {counts[2]}."
    )


def _best(found: Found) -> list[str]:
    lines = []
    for title, value, levels, sign in (
        ("Training loss before fine-tuning", loss, found["levels"], 1),
        ("Test accuracy after fine-tuning", tuned, found["tuned"], -1),
    ):
        table = []
        for model in _models(found):
            rows = _rows(found, model)
            for level in levels:
                peers = _peers(found)
                own = [name for name in rows[0]["methods"] if name not in peers]
                ours = _best_of(rows, own, level, value, sign)
                theirs = _best_of(rows, peers, level, value, sign)
                differences = [
                    value(row, ours[0], level) - value(row, theirs[0], level) for row in rows
                ]
                half = half_interval(differences)
                table.append(
                    (
                        model,
                        f"{level:.0%}",
                        f"{ours[0]}: {ours[1]:.3f}",
                        f"{theirs[0]}: {theirs[1]:.3f}",
                        f"{statistics.fmean(differences):+.3f} ± {half:.3f}",
                    )
                )
        columns = ("network", "MACs", "ours", "Torch-Pruning's", "difference")
        lines += [title + ":", "", tabulate(table, columns, "github", disable_numparse=True), ""]
    return lines[:-1]


def _best_of(
    rows: Sequence[Found], names: Sequence[str], level: float, value: Value, sign: int
) -> tuple[str, float]:
    """The method of the lowest mean (the highest, if the sign is -1), and that mean."""
    means = {name: statistics.fmean(value(row, name, level) for row in rows) for name in names}
    best = min(means, key=lambda name: sign * means[name])
    return best, means[best]


def _diagonality(found: Found) -> list[tuple[str, str, str, str]]:
    table = []
    for model in _models(found):
        pairs = [pair for row in _rows(found, model) for pair in row["diagonality"].values()]
        weights, turned = (statistics.fmean(side) for side in zip(*pairs, strict=True))
        larger = sum(after > before for before, after in pairs)
        table.append((model, f"{weights:.3f}", f"{turned:.3f}", f"{larger} of {len(pairs)}"))
    return table


def _tables(found: Found, model: str, levels: Sequence[float]) -> list[str]:
    """Medians over seeds; the parameters at the level that is fine-tuned."""
    rows, table = _rows(found, model), []
    shown = found["tuned"][0]
    for name in rows[0]["methods"]:
        raw = [
            statistics.median(row["methods"][name][str(level)]["loss"] for row in rows)
            for level in levels
        ]
        accuracies = [
            statistics.median(accuracy(row, name, level) for row in rows) for level in levels
        ]
        after = statistics.median(tuned(row, name, shown) for row in rows)
        params = statistics.median(row["methods"][name][str(shown)]["params"] for row in rows)
        table.append((name, *raw, *accuracies, after, params))
    table.sort(key=lambda row: sum(math.log(value) for value in row[1 : 1 + len(levels)]))
    cells = [
        (
            name,
            *(f"{value:.3f}" for value in values[: len(levels)]),
            *(f"{value:.1f}" for value in values[len(levels) : -1]),
            f"{values[-1]:,.0f}",
        )
        for name, *values in table
    ]
    columns = [
        "method",
        *(f"loss {level:.0%}" for level in levels),
        *(f"test % {level:.0%}" for level in levels),
        f"tuned {shown:.0%}",
        f"parameters {shown:.0%}",
    ]
    return [
        f"## {model}",
        "",
        "Medians over seeds: training loss and test accuracy before fine-tuning at shares of the "
        "MACs, test accuracy after it, and parameters.",
        "",
        tabulate(cells, columns, "github", disable_numparse=True),
    ]


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
        figsize=(4.2 * len(models), 3.9),
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
    panels[0][-1].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    write(json.loads(RESULTS.read_text(encoding="utf-8")), RESULTS)
