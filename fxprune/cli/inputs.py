"""Inputs from the command line: shapes with random numbers, or files with real ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, fx

from fxprune.cli.outcome import SourceError, UsageError

_SHAPE = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?(?::(?P<high>\d+))?"
)
_DTYPES = {
    name: getattr(torch, name)
    for name in ("float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 bool".split())
}
FORMS = "1x3x224x224, name=1x3x224x224, 2x16:int64:1000 (numbers below 1000), or a file"


def read_inputs(texts: Sequence[str]) -> Any:
    """The inputs as `fxprune.trace` takes them: a tuple, or a dict if they have names.

    Each text is a shape, `[name=]1x3x224x224[:dtype[:high]]`, or the path of an .npz or
    .safetensors file. Shapes get random numbers: normal ones, or integers below `high`.
    """
    named: dict[str, Any] = {}
    unnamed: list[Any] = []
    for text in texts:
        match = _SHAPE.fullmatch(text)
        if match is None:
            named.update(read_tensors(text))
        elif match["name"] is None:
            unnamed.append(_random(text, match))
        else:
            named[match["name"]] = _random(text, match)
    if named and unnamed:
        raise UsageError("give all inputs by name or none: name=1x3x224x224 or 1x3x224x224")
    return named if named else tuple(unnamed)


def _random(text: str, match: re.Match[str]) -> Tensor:
    name, high = match["dtype"] or "float32", match["high"]
    if name not in _DTYPES:
        raise UsageError(f"input {text!r}: no dtype {name!r}; there are {', '.join(_DTYPES)}")
    sizes, dtype = [int(size) for size in match["sizes"].split("x")], _DTYPES[name]
    if dtype.is_floating_point:
        return torch.randn(sizes).to(dtype)
    if dtype is torch.bool:
        return torch.rand(sizes) < 0.5
    if high is None:
        raise UsageError(f"input {text!r}: integers need a bound, as in 2x16:int64:1000")
    return torch.randint(0, int(high), sizes, dtype=dtype)


def read_tensors(path: str) -> dict[str, Tensor]:
    """The tensors of an .npz or .safetensors file, by name."""
    if Path(path).suffix not in (".npz", ".safetensors"):
        raise UsageError(f"{path!r} is neither a shape nor an .npz or .safetensors file: {FORMS}")
    try:
        if Path(path).suffix == ".safetensors":
            return dict(load_file(path))
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, SafetensorError) as error:
        raise SourceError(f"cannot read {path}: {error}") from error


def recorded_inputs(module: fx.GraphModule) -> Mapping[str, Any]:
    """Random inputs of the sizes that a loaded graph was captured with."""
    found: dict[str, Any] = {}
    for node in (node for node in module.graph.nodes if node.op == "placeholder"):
        example = node.meta.get("val")
        if not isinstance(example, Tensor):
            continue
        if not example.is_floating_point():
            raise UsageError(
                f"the graph's input {node.target!r} holds integers: say which with "
                f"--input {node.target}={'x'.join(map(str, example.shape))}:int64:HIGH"
            )
        found[str(node.target)] = torch.randn(tuple(example.shape), dtype=example.dtype)
    return found
