"""``python -m tests.zoo.reading ROOT without|with``: load what `tests.zoo.files` saved, and run it.

A process of its own. Without the classes it must not need the libraries that have them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

import fxprune
from tests.zoo import checks

INPUTS = "inputs.safetensors"
LIBRARIES = ("transformers", "timm", "torchvision")


def outputs(module: nn.Module, folder: Path) -> dict[str, Tensor]:
    """What a module makes of the inputs in a folder: its floating tensors, numbered."""
    found = checks.tensors(checks.run(module, load_file(folder / INPUTS)))
    return {str(place): tensor.contiguous().clone() for place, tensor in enumerate(found)}


def _load_with_class(folder: Path) -> fx.GraphModule:
    from tests.zoo.files import fresh  # imports the models' libraries

    return fxprune.load(folder, lambda: fresh(folder.name))


def main() -> None:
    torch.set_num_threads(1)
    root, way = Path(sys.argv[1]), sys.argv[2]
    load = {"without": fxprune.load, "with": _load_with_class}[way]
    for folder in sorted(root.iterdir()):
        save_file(outputs(load(folder), folder), folder / f"{way}.safetensors")
    needed = [library for library in LIBRARIES if library in sys.modules]
    if way == "without" and needed:
        raise SystemExit(f"loading without the classes imported {needed}")


if __name__ == "__main__":
    main()
