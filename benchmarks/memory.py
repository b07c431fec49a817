"""Peak memory of a prune beyond the model itself, beside the size of what it makes.

    python -m benchmarks.memory

Each network has a process of its own, in which a small one is pruned first. Growth is the highest
resident set until the pruned module exists, less the resident set before the prune, as Linux
reports them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.zoo import sweep_one
from benchmarks.zoo_entry import Entry
from tests.resident import growth, size, wide_mlp

LIMIT = 300  # seconds of CPU time
RESULTS = Path(__file__).parent / "results" / "memory.json"
Found = dict[str, Any]


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision import models

        from tests import torchvision_shim  # noqa: F401

        model: nn.Module = getattr(models, name)()
        return model

    return build


def _images(model: nn.Module, batch: int) -> dict[str, Tensor]:
    return {"x": torch.randn(batch, 3, 224, 224)}


CASES = (
    Entry(
        "MLP, 8 layers of 4096",
        lambda: wide_mlp(4096, 8),
        lambda model, batch: {"input": torch.randn(batch, 4096)},
    ),
    *(Entry(name, _torchvision(name), _images) for name in ("vgg11", "vit_b_16", "resnet50")),
)


def measure(entry: Entry) -> Iterator[Found]:
    """Sizes and growth in MiB."""
    growth(wide_mlp(8, 2).eval(), {"input": torch.randn(2, 8)})
    model = entry.build().eval()
    grown, pruned = growth(model, entry.inputs(model, 1))
    yield {"model_mib": size(model), "result_mib": size(pruned), "growth_mib": grown}


def main() -> int:
    rows = [
        {"network": entry.name, **sweep_one(measure, entry, LIMIT)}
        for entry in tqdm(CASES, file=sys.stderr)
    ]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    lines = [
        [row["network"], row["model_mib"], row["result_mib"], row["growth_mib"]] for row in rows
    ]
    headers = ["network", "model MiB", "result MiB", "growth MiB"]
    text = tabulate(lines, headers, "github", floatfmt=".0f") + "\n"
    RESULTS.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
