"""Commands on two models: verify, diff."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from tabulate import tabulate

from fxprune.analysis import analyze
from fxprune.capture import trace
from fxprune.checkpoint import GRAPH, PLAN, TENSORS, load, load_plan
from fxprune.checkpoint.files import MOST_TEXT, read_graph, read_text
from fxprune.checkpoint.plan_files import format_of
from fxprune.cli import models
from fxprune.cli.inputs import read_inputs, recorded_inputs
from fxprune.cli.outcome import FAILED, OK, Outcome, SourceError, UsageError
from fxprune.cli.progress import Progress
from fxprune.equivalence import verify as verify_graphs
from fxprune.plans.factorization import FACTORIZATION_FORMAT, parsed_factorization
from fxprune.plans.text import FORMAT, parsed
from fxprune.reports import compact

_NAMES = {"parameters": "parameters", "macs": "MACs", "activation_memory": "activation bytes"}


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
            "to compare"
        )
    if first.form != second.form:
        raise SourceError(
            f"of {args.first} and {args.second} one is pruned and the other factorised: they keep "
            "units and directions, which cannot be compared; `report` says what each costs"
        )
    kind = _KINDS[first.form]
    rows = kind.rows(first, second)
    same_weights = first.tensors == second.tensors
    costs = {
        name: (getattr(first.report, f"{name}_after"), getattr(second.report, f"{name}_after"))
        for name in _NAMES
        if hasattr(first.report, f"{name}_after")
    }
    equal = not rows and same_weights
    data = {
        "equal": equal,
        "same_weights": same_weights,
        kind.parts: [dict(zip(kind.keys, row, strict=True)) for row in rows],
        **{name: list(pair) for name, pair in costs.items()},
    }
    lines = [tabulate(rows, kind.columns, missingval="all")] if rows else []
    bits = "the same bits" if same_weights else "different"
    lines.append(f"{len(rows)} {kind.parts} keep different {kind.units}; the weights are {bits}.")
    numbers = (f"{_NAMES[name]} {compact(a)} and {compact(b)}" for name, (a, b) in costs.items())
    lines.append(f"{args.first} and {args.second}: {', '.join(numbers)}.")
    return Outcome("\n".join(lines), data, OK if equal else FAILED)


class _Saved:
    """What a directory says about the model in it."""

    def __init__(self, directory: str) -> None:
        if not models.is_saved(directory):
            raise UsageError(f"{directory!r} is no directory of a saved model")
        graph = read_graph(Path(directory) / GRAPH)
        self.report: Any = models.stored_report(directory)
        self.fingerprint: Any = graph["original"].get("fingerprint")
        self.tensors: Any = graph["files"].get(TENSORS)
        self.text = read_text(Path(directory) / PLAN, "plan")
        self.form = format_of(self.text)


_Row: TypeAlias = tuple[Any, ...]


def _group_rows(first: _Saved, second: _Saved) -> list[_Row]:
    """Name, units, kept by each and by both, in all contexts, where they keep different ones."""
    plans = [parsed(saved.text, MOST_TEXT)["kept"] for saved in (first, second)]
    rows = []
    for group in first.report.groups:
        a, b = (_kept(plan.get(group.name), group.units_before) for plan in plans)
        count = max(len(a), len(b))
        a, b = a * (count // len(a)), b * (count // len(b))  # one row stands for all contexts
        if a != b:
            both = sum(len(x & y) for x, y in zip(a, b, strict=True))
            kept = sum(map(len, a)), sum(map(len, b)), both
            rows.append((group.name, count * group.units_before, *kept))
    return rows


def _kept(rows: Any, units: int) -> list[set[int]]:
    """The units that stay, in each context; None for all of them."""
    rows = range(units) if rows is None else rows
    nested = bool(rows) and isinstance(rows[0], list)
    return [set(row) for row in rows] if nested else [set(rows)]


def _layer_rows(first: _Saved, second: _Saved) -> list[_Row]:
    """Name, weight, directions of inputs and outputs kept by each, where the numbers differ."""
    plans = [parsed_factorization(saved.text, MOST_TEXT)["ranks"] for saved in (first, second)]
    rows = []
    for layer in first.report.layers:
        a, b = (plan.get(layer.name, (None, None)) for plan in plans)
        if tuple(a) != tuple(b):
            rows.append((layer.name, " x ".join(map(str, layer.shape)), *a, *b))
    return rows


@dataclass(frozen=True)
class _Kind:
    """How plans of one kind are compared: what their rows are about, and what each row holds."""

    parts: str
    units: str
    rows: Callable[[_Saved, _Saved], list[_Row]]
    columns: tuple[str, ...]
    keys: tuple[str, ...]


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        FORMAT: _Kind(
            "groups",
            "units",
            _group_rows,
            ("group", "units", "first keeps", "second keeps", "both keep"),
            ("name", "units", "first", "second", "both"),
        ),
        FACTORIZATION_FORMAT: _Kind(
            "layers",
            "numbers of directions",
            _layer_rows,
            ("layer", "weight", "first: inputs", "outputs", "second: inputs", "outputs"),
            (
                "name",
                "weight",
                "first_inputs",
                "first_outputs",
                "second_inputs",
                "second_outputs",
            ),
        ),
    }
)
