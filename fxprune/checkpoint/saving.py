"""Writing a pruned model to a directory."""

from __future__ import annotations

import os
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from fxprune.checkpoint import files, plan_files, tensors
from fxprune.checkpoint.describing import describe, inputs_of
from fxprune.checkpoint.plan_files import Plan
from fxprune.errors import CheckpointError
from fxprune.plans import FactorizationPlan, PruningPlan
from fxprune.plans.base import short


class Pruned(Protocol):
    """Anything with the pruned module and the plan that made it, such as `prune`'s result."""

    @property
    def module(self) -> nn.Module:
        """The pruned module."""

    @property
    def plan(self) -> Plan:
        """The plan that was applied to the original."""


class ClassNeededWarning(UserWarning):
    """A graph was saved that only the model's own class can make again."""


def save(
    pruned: Pruned | tuple[nn.Module, Plan], directory: str | os.PathLike[str]
) -> tuple[str, ...]:
    """Write `model.safetensors`, `plan.json` and `graph.json` to `directory`, made if need be.

    A factorisation's bases, and new values that a plan gives, go to `plan.safetensors`.

    pruned     what `prune` or `factorize` returned, or the module (fine-tuned or not) and its plan
    directory  files of an earlier save in it are replaced

    Returns why `load` needs the model's class: what the graph calls that no file can describe, such
    as an autograd.Function; a ClassNeededWarning says it too. Empty for most models: then
    `load(directory)` needs nothing else.
    Tied parameters are stored once. Raises CheckpointError if the module holds state that is not
    a tensor, or tensors without data; if there is no plan; and if the directory cannot be made.
    """
    module, plan = _parts(pruned)
    graph, reasons = describe(module)
    content = {
        "format": files.FORMAT,
        "version": files.VERSION,
        "made_with": {"fxprune": _own_version(), "torch": torch.__version__},
        "original": {"fingerprint": plan.fingerprint},
        "inputs": inputs_of(module),
        "tensors": tensors.table(module),
        "graph": graph,
        "needs_class": reasons,
        "training": [name for name, child in module.named_modules() if child.training],
        "report": _report(pruned),
    }
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"Cannot make the directory {folder}: {error}.") from error
    _write(folder, module, plan, content)
    if reasons:
        warnings.warn(
            f"Loading {folder} needs the model's class: {short('; '.join(reasons))}.",
            ClassNeededWarning,
            stacklevel=2,
        )
    return tuple(reasons)


def _write(folder: Path, module: nn.Module, plan: Plan, content: dict[str, Any]) -> None:
    """Write all files; `content` is what the graph's says beside the digests of the others.

    Written aside and then renamed, so that an interrupted save leaves no half-written file; the
    digests tell a file of this save from one of an earlier save.
    """
    names = (files.TENSORS, files.PLAN, *[files.BASES] * bool(plan_files.tensors_of(plan)))
    partial = {name: folder / f"{name}.partial" for name in names}
    plan_text = plan.to_json()
    try:
        tensors.write(module, partial[files.TENSORS], {"plan": files.text_digest(plan_text)})
        partial[files.PLAN].write_text(plan_text, encoding="utf-8")
        plan_files.write_tensors(plan, partial.get(files.BASES))
        digests = {name: files.file_digest(path) for name, path in partial.items()}
        partial[files.GRAPH] = folder / f"{files.GRAPH}.partial"
        text = files.sealed({**content, "files": digests})
        partial[files.GRAPH].write_text(text, encoding="utf-8")
        for name, path in partial.items():
            os.replace(path, folder / name)
        if files.BASES not in partial:
            (folder / files.BASES).unlink(missing_ok=True)  # of an earlier save
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def _parts(pruned: Any) -> tuple[nn.Module, Plan]:
    """The module and its plan; raises CheckpointError."""
    pair = isinstance(pruned, tuple) and len(pruned) == 2
    module, plan = pruned if pair else (getattr(pruned, n, None) for n in ("module", "plan"))
    if not isinstance(module, nn.Module) or not isinstance(plan, PruningPlan | FactorizationPlan):
        raise CheckpointError(
            "save takes what fxprune.prune or fxprune.factorize returned, or a pair of the module "
            f"and its plan, as (result.module, result.plan); got {short(pruned)}."
        )
    return module, plan


def _own_version() -> str:
    try:
        return version("fxprune")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


def _report(pruned: Any) -> Any:
    """The report of `prune`'s result as data, for people who look at the directory later."""
    report = getattr(pruned, "report", None)
    as_data = getattr(report, "as_data", None)
    return None if as_data is None else as_data()
