"""Pictures: widths and costs of the layers as a chart, groups as a graph of layers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fxprune.analysis import Analysis
from fxprune.drivers import PruneResult
from fxprune.errors import FxpruneError
from fxprune.groups import Group
from fxprune.plans import PruningPlan
from fxprune.reports import LayerRow, PruneReport, compact

_BEFORE, _AFTER, _INK, _QUIET = "#d5dbe3", "#2a6f97", "#22303c", "#7b8794"
_NAMED = 90
"""Charts of more layers name only every second one, third one, and so on."""
_LONGEST = 40
"""Longer names of layers lose their beginning."""


def plot(result: PruneResult | PruneReport, path: str | None = None) -> Any:
    """Draw what pruning did to each layer: its width and its share of the MACs, before and after.

    result  what `prune` returned, or its report
    path    where to write the picture; its ending says how, as .png, .svg or .pdf

    Returns the matplotlib Figure. Raises FxpruneError where matplotlib is missing, if the report
    has no layers, and for another ending.
    """
    report = result if isinstance(result, PruneReport) else result.report
    if not report.layers:
        raise FxpruneError("There is nothing to draw: no layer of the graph makes units.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FxpruneError("fxprune.plot needs matplotlib: pip install 'fxprune[plot]'.") from error
    rows = report.layers
    spacing = 0.26 if len(rows) <= 60 else max(0.13, 0.26 * 60 / len(rows))
    names = [_short(row.name) for row in rows]
    width = 9.4 + 0.07 * max(map(len, names))
    height = max(2.6, spacing * len(rows) + 1.5)
    figure: Any = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _widths(left, rows, spacing)
    _costs(right, report, spacing)
    step = -(-len(rows) // _NAMED)
    size = 8.5 if spacing > 0.2 else 6.5
    left.set_yticks(range(0, len(rows), step), names[::step], fontsize=size)
    left.set_ylim(len(rows) - 0.4, -0.6)  # the input is at the top
    if path is not None:
        known = figure.canvas.get_supported_filetypes()
        if Path(path).suffix[1:].lower() not in known:
            raise FxpruneError(
                f"The ending of {path!r} says no format: use one of .png, .svg, .pdf."
            )
        figure.savefig(path, dpi=144)
    return figure


def _widths(axes: Any, rows: tuple[LayerRow, ...], spacing: float) -> None:
    numbers = range(len(rows))
    axes.barh(numbers, [r.width_before for r in rows], 0.78, color=_BEFORE, label="before")
    axes.barh(numbers, [r.width_after for r in rows], 0.46, color=_AFTER, label="after")
    if spacing > 0.2:
        for number, row in enumerate(rows):
            same = row.width_before == row.width_after
            text = f"{row.width_before}" if same else f"{row.width_before} → {row.width_after}"
            if row.width_before:
                _label(axes, text, row.width_before, number, _QUIET if same else _INK)
    _style(axes, "width of each layer", 1.16 * max(r.width_before for r in rows))
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
    )


def _costs(axes: Any, report: PruneReport, spacing: float) -> None:
    rows, total = report.layers, max(report.macs_before, 1)
    before = [100 * r.macs_before / total for r in rows]
    after = [100 * r.macs_after / total for r in rows]
    axes.barh(range(len(rows)), before, 0.78, color=_BEFORE)
    axes.barh(range(len(rows)), after, 0.46, color=_AFTER)
    if spacing > 0.2:
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            if old:
                texts = [_percent(old), _percent(new)]
                same = texts[0] == texts[1]
                text = texts[0] if same else " → ".join(texts)
                _label(axes, text, old, number, _QUIET if same else _INK)
    change = f"{compact(report.macs_before)} → {compact(report.macs_after)}"
    _style(axes, f"% of the dense MACs ({change})", 1.25 * max(*before, 1e-9))


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


def _percent(share: float) -> str:
    return f"{share:.1f}" if share >= 0.05 else "<0.1"


def _label(axes: Any, text: str, x: float, row: int, colour: str) -> None:
    axes.annotate(
        text, (x, row), (5, 0), textcoords="offset points", va="center", fontsize=8, color=colour
    )


def _style(axes: Any, title: str, limit: float) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
    axes.set_xlim(0, limit)
    axes.tick_params(axis="both", length=0)
    axes.tick_params(axis="y", labelcolor=_INK)
    axes.tick_params(axis="x", labelcolor=_QUIET, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.grid(axis="x", color="#eef1f4", linewidth=0.8)
    axes.set_axisbelow(True)


# -- Groups as a graph -----------------------------------------------------------------------------


def dot(source: Analysis | PruneResult) -> str:
    """The groups as a graph in Graphviz's language: layers that make a group's units, and read it.

    An ellipse is a group with its number of units, and what is left of it if `source` is a result;
    a box is a layer. A dashed arrow leads from a group to the one that it is nested in.
    """
    analysis, plan = (
        (source, None) if isinstance(source, Analysis) else (source.analysis, source.plan)
    )
    calls = {str(n.target) for n in analysis.traced.graph.nodes if n.op == "call_module"}
    lines = [
        "digraph groups {",
        '  graph [rankdir=TB, nodesep=0.25, ranksep=0.3, fontname="Helvetica"];',
        '  node [fontname="Helvetica", fontsize=10, color="#7b8794", fontcolor="#22303c"];',
        '  edge [color="#7b8794", arrowsize=0.6];',
    ]
    layers: dict[str, None] = {}
    edges: dict[str, None] = {}
    numbers = {group.name: f'"group {number}"' for number, group in enumerate(analysis.groups)}
    for group in analysis.groups:
        own = numbers[group.name]
        lines.append(f"  {own} [{_ellipse(group, plan)}];")
        for role, names in _owners(group, calls).items():
            for name in names:
                layers[name] = None
                ends = (_quoted(name), own) if role == "producer" else (own, _quoted(name))
                edges[f"  {ends[0]} -> {ends[1]};"] = None
        if group.outer in numbers:
            edges[f"  {own} -> {numbers[group.outer]} [style=dashed, constraint=false];"] = None
    box = 'shape=box, style="rounded,filled", fillcolor="#f4f6f8"'
    lines += [f"  {_quoted(name)} [{box}];" for name in layers]
    return "\n".join([*lines, *edges, "}"]) + "\n"


def svg(source: Analysis | PruneResult) -> str:
    """The picture of `dot`, drawn by Graphviz.

    Raises FxpruneError where Graphviz's program `dot` is missing or fails.
    """
    program = shutil.which("dot")
    if program is None:
        raise FxpruneError(
            "Drawing groups as SVG needs Graphviz, whose program `dot` is not on the PATH. Install "
            "it (apt install graphviz, brew install graphviz), or take the text of fxprune.dot."
        )
    text = dot(source)
    done = subprocess.run([program, "-Tsvg"], input=text, capture_output=True, text=True)
    if done.returncode:
        raise FxpruneError(f"Graphviz failed: {done.stderr.strip()[:300]}")
    return done.stdout


def _ellipse(group: Group, plan: PruningPlan | None) -> str:
    size = f"{group.contexts} × {group.size}" if group.contexts > 1 else f"{group.size}"
    left = group.size if plan is None else int(plan.kept(group).shape[-1])
    text = f"{size} units" if left == group.size else f"{size} → {left} units"
    fill = "#ffffff" if left == group.size else "#cfe3ef"
    style = "filled" if group.maskable else "filled,dashed"
    return (
        f'label={_quoted(text)}, tooltip={_quoted(group.name)}, shape=ellipse, style="{style}", '
        f'fillcolor="{fill}"'
    )


def _owners(group: Group, calls: set[str]) -> dict[str, Iterable[str]]:
    """Role → the modules, or parameters by themselves, that make or read a group's units."""
    found: dict[str, dict[str, None]] = {"producer": {}, "consumer": {}}
    for member in group.members:
        owner = member.parameter.rpartition(".")[0]
        name = owner if owner in calls else member.parameter
        if member.role in found:
            found[member.role][name] = None
    return {role: list(names) for role, names in found.items()}


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
