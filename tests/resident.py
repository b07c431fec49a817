"""How far a prune raises the resident set of this process, as Linux reports it."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

import fxprune

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def growth(model: nn.Module, example: Mapping[str, Any]) -> tuple[float, nn.Module]:
    """MiB by which the highest resident set of a prune exceeds the one before it; its result."""
    gc.collect()
    before = _resident("VmRSS")
    RESET.write_text("5")  # forget the highest value so far
    traced = fxprune.trace(model, example)
    plan = fxprune.plan(fxprune.analyze(traced), criterion="magnitude", sparsity=0.5)
    pruned = fxprune.rewrite(traced, plan)
    return _resident("VmHWM") - before, pruned


def wide_mlp(width: int, depth: int) -> nn.Module:
    """Square linear layers and ReLUs."""
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def size(module: nn.Module) -> float:
    """MiB of parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors) / (1 << 20)


def _resident(field: str) -> float:
    """VmRSS (the resident set) or VmHWM (its highest value) in MiB."""
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return next(int(words[1]) / 1024 for words in lines if words[0] == f"{field}:")
