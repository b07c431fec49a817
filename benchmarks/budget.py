"""CPU time of choosing a global plan under a MACs budget, scores given.

    python -m benchmarks.budget

Each network is traced, analysed and scored once; then the plan is made several times, at budgets
of 0.75, 0.5 and 0.25 of the dense MACs. One thread, CPU time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

import fxprune
from benchmarks import zoo_models  # noqa: F401  (makes torchvision importable)

REPETITIONS = 5
BLOCKS = 3000
WIDTH = 32


class Residual(nn.Module):
    """A residual MLP of many blocks."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Stem(nn.Sequential):
    """A layer before a network, so that its input width may shrink."""


def networks() -> Mapping[str, tuple[nn.Module, Any]]:
    """Networks with example inputs."""
    from torchvision.models import resnet50

    deep = Stem(nn.Linear(8, WIDTH), Residual(BLOCKS, WIDTH))
    return {
        "ResNet-50": (resnet50(), torch.randn(1, 3, 224, 224)),
        f"{BLOCKS} residual blocks": (deep, torch.randn(1, 8)),
    }


def seconds(analysis: fxprune.Analysis, scores: Mapping[str, Tensor], macs: float) -> float:
    """CPU time of one plan."""
    budget = fxprune.Budget(macs=macs)
    start = time.process_time()
    plan = fxprune.plan(analysis, lambda g, _: scores[g.name], scope="global", budget=budget)
    end = time.process_time()
    assert fxprune.cost(analysis, plan).macs <= macs * fxprune.cost(analysis).macs
    return end - start


def main() -> None:
    """Print one row per network and budget."""
    torch.set_num_threads(1)
    rows = []
    for name, (model, example) in networks().items():
        analysis = fxprune.analyze(fxprune.trace(model.eval(), example))
        scores = fxprune.score(analysis)
        for macs in (0.75, 0.5, 0.25):
            times = [seconds(analysis, scores, macs) for _ in range(REPETITIONS)]
            rows.append(
                (name, len(analysis.groups), macs, statistics.median(times), min(times), max(times))
            )
            print(rows[-1], flush=True)
    columns = ("network", "groups", "MACs budget", "median s", "least s", "most s")
    print(tabulate(rows, columns, floatfmt=".3g"))


if __name__ == "__main__":
    main()
