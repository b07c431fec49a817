"""The files of a saved model: their names, their digests, and reading them within bounds.

`docs/files.md` describes them.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxprune.errors import CheckpointError
from fxprune.plans.base import short
from fxprune.plans.text import strict_json

TENSORS = "model.safetensors"
PLAN = "plan.json"
BASES = "plan.safetensors"
"""Of a factorisation's plan: its bases, in float64 and no more than the factors. Of a plan that
gives new values to parameters: those.
"""
GRAPH = "graph.json"
FORMAT = "fxprune-graph"
VERSION = 1
MOST_TEXT = 1 << 28
"""Bytes of JSON, a plan or the header of the tensors, that are read at most."""

_FIELDS: Mapping[str, tuple[type, ...]] = {
    "format": (str,),
    "version": (int,),
    "digest": (str,),
    "made_with": (dict,),
    "files": (dict,),
    "original": (dict,),
    "inputs": (list,),
    "tensors": (dict,),
    "graph": (dict, type(None)),
    "needs_class": (list,),
    "training": (list,),
    "report": (dict, type(None)),
}
_GRAPH_FIELDS: Mapping[str, tuple[type, ...]] = {
    "class": (str,),
    "fingerprint": (str,),
    "training": (bool,),
    "modules": (dict,),
    "attributes": (dict,),
    "nodes": (list,),
    "trace": (dict,),
}
_ENTRY_FIELDS: Mapping[str, tuple[type, ...]] = {
    "kind": (str,),
    "shape": (list,),
    "dtype": (str,),
    "bytes": (int,),
    "requires_grad": (bool,),
    "persistent": (bool,),
    "layout": (str, type(None)),
    "same_as": (str, type(None)),
}


def text_digest(text: str) -> str:
    """The SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sealed(content: dict[str, Any]) -> str:
    """The text of graph.json: the content with the digest of itself."""
    return json.dumps({**content, "digest": text_digest(_canonical(content))}, allow_nan=False)


def _canonical(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def check_file(path: Path, longest: int) -> None:
    """Refuse what cannot be read in bounded time and memory: pipes, devices, endless files."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is not a regular file")
    if found.st_size > longest:
        raise OSError(f"it has {found.st_size} bytes, and at most {longest} are expected")


def read_text(path: Path, what: str) -> str:
    """A text file of bounded length; raises CheckpointError."""
    try:
        check_file(path, MOST_TEXT)
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Cannot read the {what} {path}: {error}. A directory that `save` wrote holds "
            f"{TENSORS}, {PLAN} and {GRAPH}."
        ) from error


def read_graph(path: Path) -> dict[str, Any]:
    """The content of graph.json, of this version and unharmed; raises CheckpointError."""
    text = read_text(path, "graph")
    try:
        data = strict_json(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"The graph in {path} is not valid JSON: {error}.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CheckpointError(f'{path} is no graph: it lacks "format": "{FORMAT}".')
    if data.get("version") != VERSION:
        raise CheckpointError(
            f"The graph in {path} has version {short(data.get('version'))}, and this fxprune reads "
            f"version {VERSION}: save the model again, or use the fxprune that wrote it "
            f"({short(data.get('made_with'))})."
        )
    wrong = _misfits(data, _FIELDS)
    if not wrong and data["graph"] is not None:
        wrong = _misfits(data["graph"], _GRAPH_FIELDS)
    lists = ("needs_class", "training")
    wrong += [n for n in lists if not wrong and any(type(item) is not str for item in data[n])]
    if wrong:
        raise CheckpointError(f"The fields of {path} do not fit its version: {short(wrong)}.")
    digest = data.pop("digest")
    try:
        found = text_digest(_canonical(data))
    except RecursionError as error:
        raise CheckpointError(f"The graph in {path} is nested too deeply.") from error
    if digest != found:
        raise CheckpointError(f"{path} was changed after it was saved: its digest does not fit.")
    _check_table(data["tensors"])
    return data


def _misfits(data: Mapping[str, Any], fields: Mapping[str, tuple[type, ...]]) -> list[str]:
    """The fields that are missing, superfluous, or of a wrong type."""
    wrong = sorted(data.keys() ^ fields.keys())
    return wrong + [n for n, types in fields.items() if n in data and type(data[n]) not in types]


def _check_table(table: Mapping[str, Any]) -> None:
    for name, entry in table.items():
        fits = isinstance(entry, dict) and not _misfits(entry, _ENTRY_FIELDS)
        fits = fits and entry["kind"] in ("parameter", "buffer") and entry["bytes"] >= 0
        fits = fits and entry["layout"] in (None, "channels_last", "channels_last_3d")
        first = table.get(entry["same_as"], {}) if fits and entry["same_as"] else None
        if not fits or (first is not None and first.get("same_as", "") is not None):
            raise CheckpointError(f"The table of {GRAPH} is malformed at {short(name)}.")


_SHARE: Mapping[str, int] = {TENSORS: 2, BASES: 8}
"""Bytes that a file has at most for each byte of the stored tensors."""


def check_digest(folder: Path, name: str, what: str, graph: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the file is the one that `graph` was saved with."""
    path = folder / name
    try:
        check_file(path, MOST_TEXT + _SHARE.get(name, 0) * stored_bytes(graph))
        digest = file_digest(path)
    except OSError as error:
        raise CheckpointError(
            f"Cannot read the {what} {path}: {error}. A directory that `save` wrote holds "
            f"{TENSORS}, {PLAN} and {GRAPH}."
        ) from error
    if digest != graph["files"].get(name):
        raise CheckpointError(
            f"{path} is not the file that was saved with {GRAPH}: it was changed, or belongs to "
            "another save. Keep the files of one save together and unedited."
        )


def stored_bytes(graph: Mapping[str, Any]) -> int:
    """Bytes of the stored tensors, as the table in graph.json says."""
    return sum(entry["bytes"] for entry in graph["tensors"].values() if entry["same_as"] is None)
