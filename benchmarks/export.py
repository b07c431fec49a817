"""``python -m benchmarks.export [NAME ...]``: pruned networks in other runtimes, compared.

Each model of the tests' zoo, with live weights in single precision, is pruned to half of its units
and written as torch.export's program, as ONNX and as TorchScript. Each file is read back, run (ONNX
in onnxruntime) and compared with the pruned module. Beside it: does the dense original export, the
user's own module with the sizes of the example? A quarter of an hour for the whole zoo.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

import fxprune
from fxprune.interop.plain import tensors_of
from tests import torchvision_shim  # noqa: F401  (before the models import torchvision)
from tests.zoo import checks
from tests.zoo.models import MODELS, ZooModel

RESULTS = Path(__file__).parent / "results"
ENDINGS = {"torch.export": "pt2", "onnx": "onnx", "torchscript": "ts"}


class Tensors(nn.Module):
    """The tensors of a model's output: its classes do not keep it from being exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return tensors_of(self.model(**inputs))


def single(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}


def dense_exports(model: nn.Module, example: Mapping[str, Any]) -> dict[str, bool]:
    """Per format: whether torch can write the user's own module."""
    plain, found = Tensors(model).eval(), {}
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for format in ("torch.export", "onnx"):
            try:
                program = torch.export.export(plain, (), kwargs=dict(example))
                if format == "onnx":
                    written = torch.onnx.export(program, dynamo=True, verbose=False)
                    written.save(f"{folder}/dense.onnx")
                found[format] = True
            except Exception as error:  # whatever torch says, it is an answer
                print(f"  dense {format}: {type(error).__name__}: {str(error)[:100]!r}")
                found[format] = False
    return found


def measure(entry: ZooModel) -> dict[str, Any]:
    """One row: per format the largest error, or why there is none."""
    torch.manual_seed(0)
    model = checks.enliven(entry.build(), entry.example()).float()
    example = single(entry.example())
    row: dict[str, Any] = {"model": entry.name, "dense": dense_exports(model, example)}
    pruned = fxprune.prune(model, example, sparsity=0.5).module
    with tempfile.TemporaryDirectory() as folder:
        for format, ending in ENDINGS.items():
            try:
                row[format] = fxprune.export(pruned, example, f"{folder}/m.{ending}").max_error
            except fxprune.ExportError as error:
                row[format] = str(error)
    return row


def holds(row: Mapping[str, Any]) -> bool:
    """Every format that the dense original has agrees to 1e-5."""
    wanted = [format for format, exports in row["dense"].items() if exports]
    return all(isinstance(row[f], float) and row[f] <= 1e-5 for f in wanted)


def _cell(row: Mapping[str, Any], format: str) -> str:
    return f"{row[format]:.1e}" if isinstance(row[format], float) else "no"


def page(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    cells = [
        (
            row["model"],
            *("yes" if row["dense"][f] else "no" for f in ("torch.export", "onnx")),
            *(_cell(row, format) for format in ENDINGS),
        )
        for row in rows
    ]
    columns = ("model", "dense exports", "dense to ONNX", *(f"pruned: {name}" for name in ENDINGS))
    failures = [
        f"- {row['model']}, {f}: {row[f]}" for row in rows for f in ENDINGS if type(row[f]) is str
    ]
    held = sum(map(holds, rows))
    parts = [
        "# Pruned networks in other runtimes",
        "`python -m benchmarks.export` wrote this page: torch "
        f"{torch.__version__}, half of the units removed, float32. Numbers are max|a-b| / max|b| "
        "over the outputs, the file's against the pruned module's; ONNX runs in onnxruntime.",
        f"**{held} of {len(rows)}** models agree to 1e-5 in every format that their dense original "
        "can be written in (torch.export, ONNX).",
        tabulate(cells, columns, "github", disable_numparse=True),
    ]
    return "\n\n".join([*parts, "\n".join(failures)]).strip() + "\n"


def main() -> int:
    wanted = sys.argv[1:]
    rows = []
    for entry in MODELS:
        if not wanted or entry.name in wanted:
            start = time.process_time()
            rows.append(measure(entry))
            print(json.dumps(rows[-1]), f"{time.process_time() - start:.0f} s", flush=True)
    if not wanted:
        (RESULTS / "export.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "export.md").write_text(page(rows), encoding="utf-8")
    return 0 if all(map(holds, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
