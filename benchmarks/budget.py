"""MACs budgets: how close networks come to them, and the CPU time of choosing a plan.

    python -m benchmarks.budget

Accuracy: every model of the fast zoo is planned to 0.75, 0.5, 0.25 and 0.1 of its dense MACs with
random scores, rewritten and run, and torch's FlopCounterMode counts. A budget is met to within one
unit if some group's last unit, put back, breaks it.

Time: each network is traced, analysed and scored once; then a global plan is made several times.
One thread, CPU time.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

import fxprune
from benchmarks import zoo_models  # noqa: F401  (makes torchvision importable)
from fxprune.costs import cost_model
from tests.allocation.test_budgets_zoo import BUDGETS, random_scores, smallest, with_one_more
from tests.costs import measure

RESULTS = Path(__file__).parent / "results"
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


def accuracy(name: str) -> Iterator[dict[str, Any]]:
    """Rows of one model of the fast zoo: fractions of its dense MACs, counted while it runs."""
    example, analysis = measure.analysed(name)
    dense = measure.macs(analysis.traced, example)
    assert fxprune.cost(analysis).total.macs == dense
    scores, least = random_scores(analysis, 0), smallest(analysis)
    model = cost_model(analysis)
    for macs, scope in BUDGETS.items():
        row = {"model": name, "budget": macs, "scope": scope, "dense": dense}
        if least > math.floor(macs * dense):
            yield {**row, "smallest": least / dense}
            continue
        rule, budget = (lambda group, _: scores[group.name]), fxprune.Budget(macs=macs)
        plan = fxprune.plan(analysis, rule, scope=scope, budget=budget)
        counted = measure.macs(fxprune.rewrite(analysis.traced, plan), example)
        more = [with_one_more(plan, plan.group(group)) for group in plan.kept_units]
        with_unit = max(model.at(model.widths(one)).macs for one in more)
        yield {
            **row,
            "counted": counted / dense,
            "formula is exact": fxprune.cost(analysis, plan).total.macs == counted,
            "with one unit more": with_unit / dense,
            "met to within one unit": counted <= macs * dense < with_unit,
        }


def times() -> Iterator[dict[str, Any]]:
    """Rows of the table of times."""
    for name, (model, example) in networks().items():
        analysis = fxprune.analyze(fxprune.trace(model.eval(), example))
        scores = fxprune.score(analysis)
        for macs in (0.75, 0.5, 0.25):
            measured = [seconds(analysis, scores, macs) for _ in range(REPETITIONS)]
            yield {
                "network": name,
                "groups": len(analysis.groups),
                "MACs budget": macs,
                "median s": statistics.median(measured),
                "least s": min(measured),
                "most s": max(measured),
            }


def shown(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[row.get(column, "") for column in columns] for row in rows]
    return tabulate(cells, columns, "github", floatfmt=".4g")


def main() -> None:
    """Print rows as they come; write the tables and all numbers."""
    torch.set_num_threads(1)
    fast, budgets = [], []
    for row in times():
        fast.append(row)
        print(row, flush=True)
    for name in measure.NAMES:
        for row in accuracy(name):
            budgets.append(row)
            print(row, flush=True)
    reached = [row for row in budgets if "counted" in row]
    text = (
        "# MACs budgets\n\n"
        f"{sum(row['met to within one unit'] for row in reached)} of {len(reached)} budgets that "
        f"can be met are met to within one unit; {len(budgets) - len(reached)} cannot, and the "
        "error says what can. MACs are counted by FlopCounterMode while the networks run, as "
        f"fractions of the dense ones; the formula is exact for "
        f"{sum(row['formula is exact'] for row in reached)} of {len(reached)}.\n\n"
        + shown(budgets)
        + "\n\n## CPU time of a global plan, scores given\n\n"
        + shown(fast)
        + f"\n\nMade by `python -m benchmarks.budget` with torch {torch.__version__}.\n"
    )
    print(text)
    (RESULTS / "budget.md").write_text(text, encoding="utf-8")
    content = json.dumps({"times": fast, "budgets": budgets}, indent=1)
    (RESULTS / "budget.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
