"""``python -m tests.zoo.files [NAME ...]``: save pruned models of the zoo, load them elsewhere.

Two new processes load them, one without the models' classes and one with them. The outputs must be
the same bits as those of the module that was saved. Two minutes for the whole zoo.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fxprune
from tests import torchvision_shim  # noqa: F401  (before the models import torchvision)
from tests.zoo import checks
from tests.zoo.models import MODELS
from tests.zoo.reading import INPUTS, outputs

ROOT = Path(__file__).parents[2]
WAYS = ("without", "with")


def fresh(name: str) -> nn.Module:
    """The unpruned model of that name, with other weights each time, in single precision."""
    (entry,) = (entry for entry in MODELS if entry.name == name)
    return entry.build().eval()


def _save(name: str, root: Path) -> None:
    """The pruned model, its inputs and its outputs, in a folder of its name."""
    (entry,) = (entry for entry in MODELS if entry.name == name)
    torch.manual_seed(0)
    model = checks.enliven(fresh(name), entry.example()).float()
    example, inputs = (_single(make()) for make in (entry.example, entry.inputs))
    result = fxprune.prune(model, example, sparsity=0.3)
    fxprune.save(result, root / name)
    save_file(inputs, root / name / INPUTS)
    found = outputs(result.module, root / name)
    checks.assert_alive(list(found.values()))
    save_file(found, root / name / "here.safetensors")


def _single(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: (v.float() if v.is_floating_point() else v).contiguous() for k, v in inputs.items()}


def differences(names: Sequence[str], root: Path) -> list[str]:
    """The models and ways of loading whose outputs are not the same bits.

    Raises CalledProcessError if a model cannot be loaded, fxprune.ClassNeededWarning, where
    warnings are errors, if one needs its class.
    """
    for name in names:
        _save(name, root)
    for way in WAYS:
        command = [sys.executable, "-m", "tests.zoo.reading", str(root), way]
        subprocess.run(command, cwd=ROOT, check=True, timeout=1200)
    pairs = ((name, way) for name in names for way in WAYS)
    return [f"{name} {way} its class" for name, way in pairs if _differs(root, name, way)]


def _differs(root: Path, name: str, way: str) -> bool:
    expected = load_file(root / name / "here.safetensors")
    actual = load_file(root / name / f"{way}.safetensors")
    same = expected.keys() == actual.keys()
    return not (same and all(torch.equal(actual[key], expected[key]) for key in expected))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[entry.name for entry in MODELS])
    names = parser.parse_args().names
    torch.set_num_threads(1)
    start = time.time()
    with tempfile.TemporaryDirectory() as root:
        found = differences(names, Path(root))
    print(
        f"{len(names)} models, loaded without and with their classes in new processes, in "
        f"{time.time() - start:.0f} s: {len(found)} differ"
    )
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
