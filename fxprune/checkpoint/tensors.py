"""The tensors of a module: the table that describes them, storing them, and putting them back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fxprune.checkpoint.values import decode, encode
from fxprune.errors import CheckpointError
from fxprune.plans.base import short

FORMAT = "fxprune-2"
_MOST_NAMES = 1000  # characters of names in a message
_FORMATS = {"channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d}

Table = dict[str, dict[str, Any]]


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, tied ones under each of their names; those of a mode included.

    Raises CheckpointError for state that is not a tensor.
    """
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{name} is a {type(value).__name__}, not a tensor: extra state (get_extra_state) "
                "cannot be stored without pickle; keep it in a buffer."
            )
    named: Iterator[tuple[str, Tensor]] = module.named_parameters(remove_duplicate=False)
    return {**dict(named), **dict(module.named_buffers(remove_duplicate=False))}


def table(module: nn.Module) -> Table:
    """What is known of each tensor besides its numbers, as JSON data."""
    found = named_tensors(module)
    saved = module.state_dict(keep_vars=True).keys()
    first = representatives(found)
    return {
        name: {
            "kind": "parameter" if isinstance(tensor, nn.Parameter) else "buffer",
            "shape": list(tensor.shape),
            "dtype": encode(tensor.dtype)["dtype"],
            "bytes": tensor.numel() * tensor.element_size(),
            "requires_grad": tensor.requires_grad,
            "persistent": name in saved,
            "layout": _layout(tensor),
            "same_as": None if first[name] == name else first[name],
        }
        for name, tensor in found.items()
    }


def _layout(tensor: Tensor) -> str | None:
    fits = {4: "channels_last", 5: "channels_last_3d"}.get(tensor.dim())
    if fits is None or tensor.is_contiguous():
        return None
    return fits if tensor.is_contiguous(memory_format=_FORMATS[fits]) else None


def write(module: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Store each tensor once, contiguous. Raises CheckpointError for tensors without data."""
    found = named_tensors(module)
    for name, tensor in found.items():
        if tensor.is_meta:
            raise CheckpointError(
                f"{name} {list(tensor.shape)} is on the meta device and has no data to save: "
                "load the weights into the module first."
            )
    first = representatives(found)
    stored = {
        name: _plain(tensor.detach()) for name, tensor in found.items() if first[name] == name
    }
    save_file(stored, path, metadata={"format": FORMAT, **metadata})


def _plain(tensor: Tensor) -> Tensor:
    """A tensor of its own that safetensors can hold: complex numbers as pairs."""
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.contiguous().clone()


class Stored:
    """An open file of tensors: reads one at a time. Raises CheckpointError for a damaged one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            file: Any = safe_open(path, framework="pt")
            self._file = file
            self.names: frozenset[str] = frozenset(file.keys())
            metadata = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"Cannot read the tensors {path}: {error}.") from error
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} says that its format is {short(metadata.get('format'))}; this version "
                f"reads {FORMAT!r}, as `save` writes it."
            )
        self.plan = metadata.get("plan")

    def read(self, name: str, entry: Mapping[str, Any]) -> Tensor:
        """One tensor, which must be as the table's entry says."""
        dtype = decode({"dtype": entry["dtype"]})
        try:
            # In memory of torch's own: kernels choose by alignment, and that is part of the result.
            tensor: Tensor = self._file.get_tensor(name).clone()
        except SafetensorError as error:
            raise CheckpointError(f"Cannot read {name} of {self.path}: {error}.") from error
        if dtype.is_complex:
            tensor = torch.view_as_complex(tensor)
        if list(tensor.shape) != entry["shape"] or tensor.dtype != dtype:
            raise CheckpointError(
                f"{name} is {tensor.dtype} {short(list(tensor.shape))} in {self.path}, and {dtype} "
                f"{short(entry['shape'])} in the table of the graph."
            )
        return tensor


def load_tensors(table: Mapping[str, Any], stored: Stored) -> dict[str, Tensor]:
    """The parameters and buffers of a table by name, tied ones as one object."""
    kept = _stored_entries(table, stored)
    found = {name: _made(stored.read(name, entry), entry) for name, entry in kept.items()}
    for name, entry in table.items():
        if entry["same_as"] is not None:
            found[name] = found[entry["same_as"]]
    return {name: found[name] for name in table}


def _stored_entries(table: Mapping[str, Any], stored: Stored) -> Mapping[str, Any]:
    kept = {name: entry for name, entry in table.items() if entry["same_as"] is None}
    _refuse_other_names(sorted(kept.keys() - stored.names), sorted(stored.names - kept.keys()))
    return kept


def _made(tensor: Tensor, entry: Mapping[str, Any]) -> Tensor:
    layout = entry["layout"]
    if layout is not None:
        tensor = tensor.contiguous(memory_format=_FORMATS[layout])
    if entry["kind"] == "buffer":
        return tensor
    return nn.Parameter(tensor, requires_grad=bool(entry["requires_grad"]))


def fill(module: nn.Module, table: Mapping[str, Any], stored: Stored) -> None:
    """Copy the stored tensors into a module that must have the same, tied in the same way."""
    entries = _stored_entries(table, stored)
    found = named_tensors(module)
    first = representatives(found)
    source: dict[str, str] = {}
    for name, representative in first.items():
        if name in stored.names:
            source.setdefault(representative, name)
    missing = [name for name, one in first.items() if one not in source]
    # A name that is tied to another one here, but was stored apart from it, is superfluous too.
    _refuse_other_names(missing, sorted(stored.names - set(source.values())))
    for representative, name in source.items():
        entry, target = entries[name], found[representative]
        tensor = stored.read(name, entry)
        if tensor.shape != target.shape or tensor.dtype != target.dtype:
            raise CheckpointError(
                f"{name} is {tensor.dtype} {short(list(tensor.shape))} in {stored.path} and "
                f"{target.dtype} {list(target.shape)} in the pruned model: model_factory must "
                "make the model with the sizes and the dtype it was pruned with."
            )
        data = _made(tensor, entry).detach().to(target.device)
        for tied in (found[n] for n, one in first.items() if one == representative):
            tied.data = data
            tied.requires_grad_(bool(entry["requires_grad"]))


def _refuse_other_names(missing: list[str], superfluous: list[str]) -> None:
    if missing or superfluous:
        raise CheckpointError(
            "The stored tensors are not those of the pruned model: "
            f"missing {_listed(missing)}, superfluous {_listed(superfluous)}. "
            "model_factory must make the model that was pruned, with the same tied weights."
        )


def _listed(names: list[str]) -> str:
    text = str(names) if names else "none"
    return text if len(text) <= _MOST_NAMES else f"{text[:_MOST_NAMES]}... ({len(names)} in all)"


def representatives(found: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name the first name of the same tensor, which is the one that is stored."""
    first: dict[tuple[Any, ...], str] = {}
    return {name: first.setdefault(_identity(tensor), name) for name, tensor in found.items()}


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same memory seen the same way."""
    if tensor.numel() == 0 or tensor.is_meta:
        return (id(tensor),)
    kind = isinstance(tensor, nn.Parameter)
    return (kind, tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
