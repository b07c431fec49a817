"""Commands on two models: verify, diff."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from fxprune.analysis import analyze
from fxprune.capture import trace
from fxprune.checkpoint import GRAPH, PLAN, TENSORS, load, load_plan
from fxprune.checkpoint.files import MOST_TEXT, read_graph, read_text
from fxprune.cli import models
from fxprune.cli.inputs import read_inputs, recorded_inputs
from fxprune.cli.outcome import FAILED, OK, Outcome, SourceError, UsageError
from fxprune.cli.progress import Progress
from fxprune.equivalence import verify as verify_graphs
from fxprune.plans.text import parsed
from fxprune.reports import PruneReport, compact

_NAMES = {"parameters": "parameters", "macs": "MACs", "activation_memory": "activation bytes"}
_COLUMNS = ("name", "units", "first", "second", "both")


def verify(args: Namespace) -> Outcome:
    """Compare a saved model with its original, masked as the saved plan says."""
    progress = Progress(not args.quiet)
    if not models.is_saved(args.pruned):
        raise UsageError(f"{args.pruned!r} is no directory of a pruned model")
    pruned = progress.stage("loading", lambda: load(args.pruned))
    torch.manual_seed(args.seed)
    if models.is_saved(args.model):
        traced = progress.stage("loading", lambda: load(args.model)).eval()
        inputs = read_inputs(args.input) if args.input else recorded_inputs(pruned)
    else:
        model = progress.stage("building", lambda: models.build(args, args.model))
        torch.manual_seed(args.seed)
        inputs = read_inputs(args.input) if args.input else recorded_inputs(pruned)
        traced = progress.stage("capturing", lambda: trace(model, inputs))
    analysis = progress.stage("analysing", lambda: analyze(traced))
    plan = load_plan(args.pruned, analysis)
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    proof = progress.stage(
        "verifying", lambda: verify_graphs(traced, plan, pruned, inputs, dtype=dtype)
    )
    return Outcome(str(proof), asdict(proof), OK if proof.ok else FAILED)


def diff(args: Namespace) -> Outcome:
    """Compare what two saved models keep, and what they cost."""
    first, second = _Saved(args.first), _Saved(args.second)
    if first.fingerprint != second.fingerprint:
        raise SourceError(
            f"{args.first} and {args.second} were made from different originals: there is nothing "
            "to compare unit by unit"
        )
    names = [row.name for row in first.report.groups]
    rows = [row for name in names if (row := _group_row(name, first, second)) is not None]
    same_weights = first.tensors == second.tensors
    costs = {
        name: (getattr(first.report, f"{name}_after"), getattr(second.report, f"{name}_after"))
        for name in ("parameters", "macs", "activation_memory")
    }
    equal = not rows and same_weights
    data = {
        "equal": equal,
        "same_weights": same_weights,
        "groups": [dict(zip(_COLUMNS, row, strict=True)) for row in rows],
        **{name: list(pair) for name, pair in costs.items()},
    }
    return Outcome(_diff_text(args, rows, costs, same_weights), data, OK if equal else FAILED)


class _Saved:
    """What a directory says about the model in it."""

    def __init__(self, directory: str) -> None:
        if not models.is_saved(directory):
            raise UsageError(f"{directory!r} is no directory of a pruned model")
        graph = read_graph(Path(directory) / GRAPH)
        self.report: PruneReport = models.stored_report(directory)
        self.fingerprint: Any = graph["original"].get("fingerprint")
        self.tensors: Any = graph["files"].get(TENSORS)
        self.units = {row.name: row.units_before for row in self.report.groups}
        text = read_text(Path(directory) / PLAN, "plan")
        self._kept: Mapping[str, Any] = parsed(text, MOST_TEXT)["kept"]

    def kept(self, group: str) -> list[set[int]]:
        """The units that stay, in each context."""
        rows = self._kept.get(group, range(self.units[group]))
        nested = bool(rows) and isinstance(rows[0], list)
        return [set(row) for row in rows] if nested else [set(rows)]


def _group_row(name: str, first: _Saved, second: _Saved) -> tuple[str, int, int, int, int] | None:
    """Name, units, kept by each and by both, in all contexts; None where both keep the same."""
    a, b = first.kept(name), second.kept(name)
    count = max(len(a), len(b))
    a, b = a * (count // len(a)), b * (count // len(b))  # one row stands for all contexts
    if a == b:
        return None
    both = sum(len(x & y) for x, y in zip(a, b, strict=True))
    return name, count * first.units[name], sum(map(len, a)), sum(map(len, b)), both


def _diff_text(
    args: Namespace,
    rows: list[tuple[str, int, int, int, int]],
    costs: Mapping[str, tuple[int, int]],
    same_weights: bool,
) -> str:
    parts = []
    if rows:
        columns = ("group", "units", "first keeps", "second keeps", "both keep")
        parts.append(tabulate(rows, columns))
    bits = "the same bits" if same_weights else "different"
    parts.append(f"{len(rows)} groups keep different units; the weights are {bits}.")
    numbers = (f"{_NAMES[name]} {compact(a)} and {compact(b)}" for name, (a, b) in costs.items())
    return "\n".join([*parts, f"{args.first} and {args.second}: {', '.join(numbers)}."])
