"""The picture of the demo: how wide each layer was, and how wide it is now."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # files only: the demo also runs where there is no screen

from matplotlib import pyplot as plt
from torch import nn

BEFORE, AFTER, INK, QUIET = "#d5dbe3", "#2a6f97", "#22303c", "#7b8794"


def widths(model: nn.Module) -> dict[str, int]:
    """The number of outputs of each convolution and linear layer, by its name."""
    return {
        name: module.weight.shape[0]
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def draw_widths(dense: nn.Module, pruned: nn.Module, path: Path) -> None:
    """Write a PNG with one bar per layer: the width before behind the width after."""
    before, after = widths(dense), widths(pruned)
    names = list(before)
    rows = range(len(names))
    figure, axes = plt.subplots(figsize=(7.6, 0.32 * len(names) + 1.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
    axes.barh(rows, [before[n] for n in names], height=0.74, color=BEFORE, label="before")
    axes.barh(rows, [after[n] for n in names], height=0.42, color=AFTER, label="after")
    for row, name in enumerate(names):
        same = before[name] == after[name]
        text = f"{before[name]}" if same else f"{before[name]} → {after[name]}"
        axes.annotate(
            text,
            (before[name], row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=QUIET if same else INK,
        )
    axes.set_yticks(rows, [name.removesuffix(".0") for name in names], fontsize=9, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the input is at the top
    axes.set_xlim(0, 1.14 * max(before.values()))
    axes.set_xlabel("output channels", color=QUIET)
    axes.tick_params(axis="both", length=0, labelcolor=INK)
    axes.tick_params(axis="x", labelcolor=QUIET)
    axes.spines[:].set_visible(False)
    axes.set_title("Layer widths before and after pruning", loc="left", color=INK, fontsize=12)
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        borderpad=0,
    )
    figure.savefig(path, dpi=160)
    plt.close(figure)
