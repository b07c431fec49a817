"""The sweep's results as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from benchmarks import zoo_ours, zoo_peer

Row = dict[str, Any]

COLUMNS = {
    "captured": "capture error",
    "groups": "groups",
    "prunable": "layers in a group",
    "masked": "masked equivalence",
    "resized": "at another image size",
    "interpreted": "masked interpretation",
    "trains": "trains",
    "prune_seconds": "prune s",
    "seconds": "s",
    "peak_mib": "MiB",
}
"""What the matrix shows of a model's findings with fxprune."""


def markdown(rows: Sequence[Row]) -> str:
    """The matrix, and below it why what is frozen is frozen."""
    ours, peer = [r["fxprune"] for r in rows], [r.get("torch_pruning") or {} for r in rows]
    lines = [
        f"**fxprune: {sum(map(zoo_ours.passed, ours))} of {len(rows)} models pass.**",
    ]
    if any(peer):
        runs, right = sum("runs" in p for p in peer), sum(map(zoo_peer.right, peer))
        lines.append(
            f"Torch-Pruning: {runs} of {len(rows)} run after pruning, {right} compute the right "
            "function."
        )
    return "\n\n".join([*lines, _LEGEND, _matrix(rows), "## Frozen", _frozen(rows)]) + "\n"


_LEGEND = """\
Every model is pruned to a random half of the units of every group, without any hint, and compared
in float64 at another batch size (and another sequence length) than it was captured at. Errors are
relative to the largest value.

- *Layers in a group*: the share of the weights of linear, convolutional and recurrent layers that
  some group reaches.
- *Masked equivalence*: against the model itself with the removed entries set to zero, over the
  maskable groups; also *at another image size*, where "fixed" says that the model's own code or
  tables hold the size: another one is refused.
- *Masked interpretation*: over all groups, against the graph with the removed units left out of
  every sum and statistic.
- *Prune s*: CPU seconds of trace, analyze and rewrite; *s* and *MiB*: CPU seconds and peak memory
  of all the checks together.
- *Torch-Pruning*, called as its documentation shows, with the last layer ignored, is *right* if the
  result computes the masked original or its masked interpretation."""


def _matrix(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        found = row["fxprune"]
        seconds = sum(found.get(f"{part}_seconds", 0) for part in ("trace", "analyze", "rewrite"))
        cells = [_cell({**found, "prune_seconds": seconds}, key) for key in COLUMNS]
        note = found.get("error") or found.get("mismatch") or ""
        peer = _peer(row.get("torch_pruning"))
        verdict = "pass" if zoo_ours.passed(found) else "FAIL"
        lines.append([row["model"], verdict, *cells, note.partition("\n")[0][:200], peer])
    headers = ["model", "", *COLUMNS.values(), "note", "Torch-Pruning"]
    return tabulate(lines, headers, "github")


def _cell(found: Row, key: str) -> str:
    value = found.get(key)
    if key == "resized" and value is None:
        images = [k for k in found.get("specialised", {}) if "ids" not in k]
        return "fixed" if images else ""
    if isinstance(value, bool) or value is None:
        return "yes" if value else ""
    if key == "prunable":
        return f"{value:.1%}"
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _peer(found: Row | None) -> str:
    if found is None:
        return ""
    if zoo_peer.right(found):
        return "right"
    if "runs" in found and "error" not in found:
        return f"wrong: {min(found['masked'], found['interpreted']):.1g}"
    return "fails: " + str(found.get("error", "")).partition("\n")[0][:60].replace("|", "/")


def _frozen(rows: Sequence[Row]) -> str:
    """What is frozen beyond interface and kernels, and the layers that no group reaches."""
    models: dict[str, list[str]] = {}
    for row in rows:
        for reason in zoo_ours.notable(row["fxprune"].get("frozen", {})):
            models.setdefault(reason, []).append(row["model"])
    ordered = sorted(models.items(), key=lambda item: -len(item[1]))
    found = tabulate(
        [(reason, len(names), ", ".join(names[:3])) for reason, names in ordered],
        ["frozen because", "models", "such as"],
        "github",
    )
    missing = [
        (row["model"], name, "; ".join(dict.fromkeys(reasons)))
        for row in rows
        for name, reasons in row["fxprune"].get("unreached", {}).items()
    ]
    headers = ["model", "layer in no group", "because"]
    return "\n\n".join([found, *([tabulate(missing, headers, "github")] if missing else [])])
