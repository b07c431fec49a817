"""The files of a plan: its text, and the tensors that some kinds of plan have beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx

from fxprune.analysis import Analysis
from fxprune.checkpoint import files
from fxprune.errors import CheckpointError, PlanError
from fxprune.factorization import factored
from fxprune.plans import FactorizationPlan, PruningPlan
from fxprune.plans.factorization import FACTORIZATION_FORMAT, parsed_factorization
from fxprune.plans.text import FORMAT, parsed, strict_json
from fxprune.rewriter import rewrite

Plan: TypeAlias = PruningPlan | FactorizationPlan
Tensors: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Kind:
    """One kind of plan: how its text is checked, and how it is read."""

    fields: Callable[[str, int], dict[str, Any]]
    read: Callable[[str, Tensors, Analysis], Plan]


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        FORMAT: _Kind(
            parsed, lambda text, tensors, analysis: PruningPlan.from_json(text, analysis, tensors)
        ),
        FACTORIZATION_FORMAT: _Kind(parsed_factorization, FactorizationPlan.from_json),
    }
)
"""The "format" of a plan's text → its kind."""


def tensors_of(plan: Plan) -> dict[str, Tensor]:
    """What a plan has beside its text."""
    return dict(plan.values) if isinstance(plan, PruningPlan) else plan.tensors()


def write_tensors(plan: Plan, path: Path | None) -> None:
    """Store the tensors of a plan; there is no path for one without."""
    if path is not None:
        save_file({name: t.cpu() for name, t in tensors_of(plan).items()}, path)


def fingerprint_of(text: str) -> str:
    """The fingerprint of the graph that a stored plan is for; raises CheckpointError."""
    try:
        fingerprint: str = _kind(text).fields(text, files.MOST_TEXT)["fingerprint"]
    except PlanError as error:
        raise CheckpointError(f"{files.PLAN} is no plan: {error}") from error
    return fingerprint


def read_plan(folder: Path, text: str, graph: Mapping[str, Any], analysis: Analysis) -> Plan:
    """A stored plan for its analysed graph; raises PlanError if it is for another one."""
    tensors: Tensors = {}
    if files.BASES in graph["files"]:
        files.check_digest(folder, files.BASES, "bases", graph)
        try:
            tensors = load_file(folder / files.BASES)
        except (OSError, SafetensorError) as error:
            path = folder / files.BASES
            raise CheckpointError(f"Cannot read the bases {path}: {error}.") from error
    return _kind(text).read(text, tensors, analysis)


def apply_plan(traced: fx.GraphModule, plan: Plan) -> fx.GraphModule:
    """What a plan makes of its graph."""
    if isinstance(plan, FactorizationPlan):
        return factored(traced, plan)
    return rewrite(traced, plan)


def format_of(text: str) -> str:
    """Which kind of plan a text is. One that is none is refused later, as a pruning plan."""
    try:
        data = strict_json(text)
    except (ValueError, RecursionError):
        data = None
    form = data.get("format") if isinstance(data, dict) else None
    return form if isinstance(form, str) and form in _KINDS else FORMAT


def _kind(text: str) -> _Kind:
    return _KINDS[format_of(text)]
