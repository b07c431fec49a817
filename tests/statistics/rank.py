"""One process of several: scores its share of the batches by every criterion and saves the results.

torchrun --standalone --nproc-per-node 2 -m tests.statistics.rank FOLDER
"""

from __future__ import annotations

import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import fxprune
from fxprune.criteria import CRITERIA, DataCriterion, SetCriterion
from fxprune.statistics.kronecker import Positions
from tests.statistics.networks import Network, randomized

KINDS = DataCriterion | SetCriterion
NAMES = tuple(name for name, rule in CRITERIA.items() if isinstance(rule, KINDS))
POSITIONS: tuple[Positions, ...] = ("expanded", "reduced")


def results() -> dict[str, object]:
    """The scores and plans of every criterion that needs data, from this rank's batches."""
    torch.manual_seed(0)
    steps = (("add", "relu", True), ("cat", "gelu", False))
    model = randomized(Network(steps, flat=True, width=4))
    batches = [
        (torch.randn(n, 2, 3, 3, dtype=torch.float64), torch.randint(3, (n,))) for n in (4, 3, 5)
    ]
    share = batches[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else batches
    analysis = fxprune.analyze(fxprune.trace(model, batches[0][0]))
    statistics = fxprune.Statistics(analysis, share)
    found: dict[str, object] = {}
    for name in NAMES:
        found[name] = fxprune.score(analysis, name, statistics)
        found[f"{name} plan"] = fxprune.plan(analysis, name, 0.5, data=statistics).to_json()
    found["fisher_diag"] = dict(statistics.fisher_diag())
    for positions in POSITIONS:
        factors = statistics.kronecker(positions)
        found[f"inputs {positions}"] = {name: one.inputs for name, one in factors.items()}
        found[f"outputs {positions}"] = {name: one.outputs for name, one in factors.items()}
    bases = {n: (one.outputs[0], one.inputs[0]) for n, one in statistics.kronecker().items()}
    plan = fxprune.plan(analysis, "magnitude", 0.5)
    methods = ("least_squares", "bias", "batch_norm")
    found["compensated"] = dict(fxprune.compensate(plan, analysis, methods, statistics).values)
    found["moments"] = dict(statistics.kronecker_moments(bases))
    return found


def main(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    try:
        torch.save(results(), folder / f"{dist.get_rank()}.pt")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore", fxprune.LeftWholeWarning)
    main(Path(sys.argv[1]))
