"""Save and load a pruned model without pickle: tensors as safetensors, the plan as JSON.

Loading reads numbers and indices, never code: the model's class comes from the caller, is captured
and analysed again, and the plan that was saved says which of its units are left.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx import GraphModule

from fxprune.analysis import analyze
from fxprune.capture import trace
from fxprune.errors import CheckpointError, PlanError
from fxprune.plans import PruningPlan
from fxprune.plans.base import short
from fxprune.rewriter import rewrite

TENSORS = "model.safetensors"
PLAN = "plan.json"
FORMAT = "fxprune-1"
_MOST_NAMES = 1000  # characters of names in a message
_MOST_TEXT = 1 << 28
"""Bytes of JSON, a plan or the header of the tensors, that are read at most."""


class Pruned(Protocol):
    """Anything with the pruned module and the plan that made it, such as `prune`'s result."""

    @property
    def module(self) -> nn.Module:
        """The pruned module."""

    @property
    def plan(self) -> PruningPlan:
        """The plan that was applied to the original."""


def save(pruned: Pruned | tuple[nn.Module, PruningPlan], directory: str | os.PathLike[str]) -> None:
    """Write `model.safetensors` and `plan.json` to `directory`, which is made if need be.

    pruned     what `prune` returned, or the pruned module (fine-tuned or not) and its plan
    directory  files of an earlier save in it are replaced

    Tied parameters are stored once. Raises CheckpointError if the module holds state that is not
    a tensor, or tensors without data.
    """
    module, plan = pruned if isinstance(pruned, tuple) else (pruned.module, pruned.plan)
    state = _tensors(module)
    for name, tensor in state.items():
        if tensor.is_meta:
            raise CheckpointError(
                f"{name} {list(tensor.shape)} is on the meta device and has no data to save: "
                "load the weights into the module first."
            )
    stored = {
        name: tensor.detach().contiguous().clone()
        for name, tensor in state.items()
        if name == _representatives(state)[name]
    }
    text = plan.to_json()
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": FORMAT, "plan": _digest(text)}
    # Written aside and then renamed, so that an interrupted save leaves no half-written file; the
    # digest tells a file of this save from one of an earlier save.
    save_file(stored, folder / f"{TENSORS}.partial", metadata=metadata)
    (folder / f"{PLAN}.partial").write_text(text, encoding="utf-8")
    for file in (TENSORS, PLAN):
        os.replace(folder / f"{file}.partial", folder / file)


def load(
    directory: str | os.PathLike[str],
    model_factory: Callable[[], nn.Module],
    example_inputs: Any,
    dynamic: Any = None,
) -> GraphModule:
    """The pruned module that `save` wrote to `directory`.

    model_factory   makes the original, unpruned model; its weights do not matter
    example_inputs  inputs of that model, as for `trace`; sizes as when the plan was made
    dynamic         as for `trace`

    Raises CheckpointError if a file is missing or damaged, if the two files are not of one save,
    if the plan is for another model, or if a tensor is missing, superfluous or of another shape or
    dtype than the pruned model's.
    """
    folder = Path(directory)
    model = model_factory()
    _check_has_data(model)
    text = _read_plan(folder / PLAN)
    stored = _read_tensors(folder / TENSORS, _digest(text), _longest(model))
    traced = trace(model, example_inputs, dynamic)
    try:
        plan = PruningPlan.from_json(text, analyze(traced))
    except PlanError as error:
        raise CheckpointError(
            f"The plan in {folder / PLAN} does not fit the model that model_factory made: {error}"
        ) from error
    pruned = rewrite(traced, plan)
    _fill(pruned, stored, folder / TENSORS)
    return pruned


def _check_has_data(model: nn.Module) -> None:
    for name, tensor in _tensors(model).items():
        if tensor.is_meta:
            raise CheckpointError(
                f"{name}: model_factory made a model on the meta device, which cannot hold the "
                "weights; make it on a real device."
            )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _longest(model: nn.Module) -> int:
    """Bytes that no file of this model's pruned tensors exceeds, its header included."""
    tensors = [*model.parameters(), *model.buffers()]
    return _MOST_TEXT + 2 * sum(t.numel() * t.element_size() for t in tensors)


def _check_file(path: Path, longest: int) -> None:
    """Refuse what cannot be read in bounded time and memory: pipes, devices, endless files."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is not a regular file")
    if found.st_size > longest:
        raise OSError(f"it has {found.st_size} bytes, and at most {longest} are expected")


def _read_plan(path: Path) -> str:
    try:
        _check_file(path, _MOST_TEXT)
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Cannot read the plan {path}: {error}. A directory that `save` wrote holds "
            f"{TENSORS} and {PLAN}."
        ) from error


def _read_tensors(path: Path, plan_digest: str, longest: int) -> dict[str, Tensor]:
    try:
        _check_file(path, longest)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Cannot read the tensors {path}: {error}. A directory that `save` wrote holds "
            f"{TENSORS} and {PLAN}."
        ) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} says that its format is {short(metadata.get('format'))}; this version reads "
            f"{FORMAT!r}, as `save` writes it."
        )
    if metadata.get("plan") != plan_digest:
        raise CheckpointError(
            f"{path} belongs to another plan than the {PLAN} beside it: keep the two files of one "
            "save together, and do not edit the plan."
        )
    return stored


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state of `module`, tied tensors under each of their names; tensors only."""
    state: Mapping[str, Any] = module.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{name} is a {type(value).__name__}, not a tensor: extra state (get_extra_state) "
                "cannot be stored without pickle; keep it in a buffer."
            )
    return dict(state)


def _representatives(state: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name the first name of the same tensor, which is the one that is stored."""
    first: dict[tuple[Any, ...], str] = {}
    return {name: first.setdefault(_identity(tensor), name) for name, tensor in state.items()}


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same memory seen the same way."""
    if tensor.numel() == 0 or tensor.is_meta:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _fill(module: nn.Module, stored: Mapping[str, Tensor], path: Path) -> None:
    """Copy `stored` into `module`, whose every tensor it must hold under one of its names."""
    state = _tensors(module)
    representatives = _representatives(state)
    source: dict[str, str] = {}
    for name, representative in representatives.items():
        if name in stored:
            source.setdefault(representative, name)
    missing = [name for name, first in representatives.items() if first not in source]
    # A name that is tied to another one here, but was stored apart from it, is superfluous too.
    superfluous = sorted(stored.keys() - source.values())
    if missing or superfluous:
        raise CheckpointError(
            f"{path} does not hold the tensors of the pruned model: "
            f"missing {_listed(missing)}, superfluous {_listed(superfluous)}. "
            "model_factory must make the model that was pruned, with the same tied weights."
        )
    with torch.no_grad():
        for representative, name in source.items():
            _copy(name, stored[name], state[representative], path)


def _listed(names: list[str]) -> str:
    text = str(names) if names else "none"
    return text if len(text) <= _MOST_NAMES else f"{text[:_MOST_NAMES]}... ({len(names)} in all)"


def _copy(name: str, source: Tensor, target: Tensor, path: Path) -> None:
    if source.shape != target.shape or source.dtype != target.dtype:
        raise CheckpointError(
            f"{name} is {source.dtype} {short(list(source.shape))} in {path} and "
            f"{target.dtype} {list(target.shape)} in the pruned model: "
            "model_factory must make the model with the sizes and the dtype it was pruned with."
        )
    target.copy_(source)
