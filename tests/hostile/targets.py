"""What reads files that anybody may have written: one row per reader.

A reader gets a folder with one or more files. It must return something whole or raise one of our
errors; `check` looks at what it returned.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import fxprune
from fxprune import Analysis, PruningPlan
from fxprune.checkpoint import GRAPH, PLAN, TENSORS, load, rebuilding, save
from fxprune.checkpoint.files import sealed, text_digest
from tests.hostile.corruptions import (
    GRAPH_FILE,
    JSON_FILE,
    TENSOR_FILE,
    Corruption,
    join_tensors,
    split_tensors,
)

Files = dict[str, bytes]


@dataclass(frozen=True)
class Target:
    """A reader of files.

    files        the undamaged files
    corruptions  which file is damaged, and how it can be
    read         what reads them; check  raises AssertionError unless what it returned is whole
    seal         makes files that refer to each other agree again, as an attacker would
    compiles     reading runs Python's compiler, which it must not do otherwise
    """

    files: Callable[[], Files]
    corruptions: Mapping[str, Mapping[str, Corruption]]
    read: Callable[[Path], Any]
    check: Callable[[Any], None]
    seal: Callable[[Files], Files] = lambda files: files
    compiles: bool = False

    def damaged(self, random: Random) -> tuple[str, Files]:
        """The name of a corruption, and the files after it."""
        files = dict(self.files())
        file = random.choice(list(self.corruptions))
        name = random.choice(list(self.corruptions[file]))
        files[file] = self.corruptions[file][name](random, files[file])
        return f"{file} {name}", self.seal(files)


class Network(nn.Module):
    """Grouped convolutions and attention: groups with and without contexts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.classifier = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.norm(self.conv(x)))))
        return self.classifier(x.mean((2, 3)))


EXAMPLE = torch.zeros(2, 3, 6, 6)


@functools.cache
def _pruned() -> fxprune.PruneResult:
    torch.manual_seed(0)
    return fxprune.prune(Network(), EXAMPLE, sparsity=0.5)


def _analysis() -> Analysis:
    return _pruned().analysis


# -- a plan's text ---------------------------------------------------------------------------------


def _plan_file() -> Files:
    return {PLAN: _pruned().plan.to_json().encode()}


def _read_plan(folder: Path) -> PruningPlan:
    # Text comes decoded, so bytes that are none become characters that no JSON has.
    text = (folder / PLAN).read_text(encoding="utf-8", errors="surrogateescape")
    return PruningPlan.from_json(text, _analysis())


def _check_plan(plan: PruningPlan) -> None:
    """It says the same after another round trip, and it can be applied."""
    assert PruningPlan.from_json(plan.to_json(), _analysis()) == plan
    assert set(plan.masks()) <= set(plan.shapes)
    fxprune.rewrite(_analysis().traced, plan)


# -- a saved directory -----------------------------------------------------------------------------


@functools.cache
def _saved() -> Mapping[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        save(_pruned(), folder)
        return {name: (Path(folder) / name).read_bytes() for name in (TENSORS, PLAN, GRAPH)}


def _load(folder: Path) -> nn.Module:
    return load(folder, Network, EXAMPLE)


def _load_forged(folder: Path) -> nn.Module:
    """As if whoever changed the graph had also made its fingerprint fit."""
    with mock.patch.object(rebuilding, "fingerprint", _Fits):
        return load(folder)


class _Fits:
    """A fingerprint that fits any other."""

    def __init__(self, module: nn.Module) -> None:
        pass

    def __ne__(self, other: object) -> bool:
        return False


def _check_module(module: nn.Module) -> None:
    """All its tensors are there, and it runs."""
    expected = _pruned().module.state_dict()
    state = module.state_dict()
    assert list(state) == list(expected)
    assert all(state[name].dtype == expected[name].dtype for name in state)
    assert module(EXAMPLE).shape == (2, 4)


def _check_graph(module: nn.Module) -> None:
    """It is a graph; what it calculates is up to whoever sealed it."""
    assert isinstance(module, torch.fx.GraphModule)
    module.graph.lint()


def _sealed(files: Files) -> Files:
    """All files say that they belong together, whatever they are by now."""
    header, body = split_tensors(files[TENSORS])
    header["__metadata__"]["plan"] = text_digest(files[PLAN].decode("utf-8", "replace"))
    tensors = join_tensors(json.dumps(header), body)
    digests = {TENSORS: sha256(tensors).hexdigest(), PLAN: sha256(files[PLAN]).hexdigest()}
    try:
        content = json.loads(files[GRAPH])
        del content["digest"]
        graph = sealed({**content, "files": digests}).encode()
    except (ValueError, TypeError, KeyError, RecursionError):  # no graph that could be sealed
        graph = files[GRAPH]
    return {TENSORS: tensors, PLAN: files[PLAN], GRAPH: graph}


TARGETS: Mapping[str, Target] = {
    "plan": Target(_plan_file, {PLAN: JSON_FILE}, _read_plan, _check_plan),
    "directory": Target(
        lambda: dict(_saved()),
        {PLAN: JSON_FILE, GRAPH: JSON_FILE, TENSORS: TENSOR_FILE},
        _load,
        _check_module,
        compiles=True,
    ),
    "resealed graph": Target(
        lambda: dict(_saved()), {GRAPH: JSON_FILE}, _load, _check_module, _sealed, compiles=True
    ),
    "forged graph": Target(
        lambda: dict(_saved()),
        {GRAPH: GRAPH_FILE},
        _load_forged,
        _check_graph,
        _sealed,
        compiles=True,
    ),
    "resealed directory": Target(
        lambda: dict(_saved()), {PLAN: JSON_FILE}, _load, _check_module, _sealed, compiles=True
    ),
}
