"""How well criteria rank channels, measured on real digits.

    python -m benchmarks.ranking            # five seeds of three networks; under half an hour
    python -m benchmarks.ranking --seeds 1  # a quick look
    python -m benchmarks.ranking --seeds 10 --add fpgm taylor  # these again, and on more seeds

For every trained network two things are measured, both on the training images and before any
fine-tuning:

- the rank correlation of a criterion's scores, summed over random sets of 5% of the channels, with
  the change of the loss when that set is masked;
- the loss after the channels of the lowest scores in the whole network were removed, at five levels
  of the MACs that are left; with Fisher also in ten rounds, scored anew without training.

Random scores and the magnitude are the controls. The same is done with the importances of
Torch-Pruning. Results go to benchmarks/results/ranking.json, .md and .png.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, fx, nn
from torch.nn import functional as F
from tqdm import tqdm

import fxprune
from benchmarks import ranking_table
from benchmarks.ranking_definitions import deviations
from benchmarks.ranking_models import MODELS, Digits, load, trained
from benchmarks.ranking_peer import SAMPLES, peer_scores
from fxprune import Analysis, Group, PruningPlan
from fxprune.criteria import (
    CRITERIA,
    Criterion,
    Fisher,
    Fpgm,
    MaskFisher,
    SnipWeight,
    SynapticFlow,
    ThiNet,
)
from fxprune.statistics import Statistics

LEVELS = (0.9, 0.8, 0.6, 0.4, 0.25)
ROUNDS = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.32, 0.25)  # MACs after each
SETS, SHARE = 100, 0.05
ALIASES = frozenset({"magnitude", "snip"})
ORDERS = frozenset({"synflow", "mask_fisher", "random"})  # a factor per group says nothing of these
BOTH_SIDES: Mapping[str, Criterion] = {
    "fpgm": Fpgm(("producer", "consumer")),
    "snip_weight": SnipWeight(("producer", "consumer")),
}
"""Criteria of which Torch-Pruning's namesake reads what makes a unit and what reads it."""
RESULTS = Path(__file__).parent / "results" / "ranking.json"

Scores = Mapping[str, Tensor]
Row = dict[str, Any]


class Bench:
    """One trained network and what is asked of it."""

    def __init__(self, name: str, digits: Digits, seed: int) -> None:
        self.digits = digits
        model = trained(name, digits, seed)
        self.model: nn.Module = model
        self.traced: fx.GraphModule = fxprune.trace(model, digits.train[:2])
        self.analysis: Analysis = fxprune.analyze(self.traced)
        self.macs = fxprune.cost(self.analysis).macs
        self.masked = copy.deepcopy(self.traced).to(memory_format=torch.channels_last)
        self.generator = torch.Generator().manual_seed(seed)
        self.statistics = {
            labels: Statistics(self.analysis, digits.batches(), labels=labels)
            for labels in ("empirical", "model")
        }

    @torch.no_grad()
    def loss(self, plan: PruningPlan | None = None) -> float:
        """The mean loss on the training images, with the units masked that a plan removes."""
        state = self.traced.state_dict()
        masks = {} if plan is None else plan.masks()
        self.masked.load_state_dict(
            {n: t * masks[n] if n in masks else t for n, t in state.items()}
        )
        total = sum(
            F.cross_entropy(self.masked(images), labels, reduction="sum").item()
            for images, labels in self.digits.batches(256)
        )
        return total / len(self.digits.train)

    def sets(self) -> Iterator[dict[str, Tensor]]:
        """Random sets of channels, each as {group name: removed units, bool}."""
        groups = self.analysis.groups
        total = sum(group.size for group in groups)
        for _ in range(SETS):
            flat = torch.zeros(total, dtype=torch.bool)
            flat[torch.randperm(total, generator=self.generator)[: round(SHARE * total)]] = True
            parts = flat.split([group.size for group in groups])
            yield {group.name: part for group, part in zip(groups, parts, strict=True)}

    def without(self, removed: Mapping[str, Tensor]) -> PruningPlan:
        """The plan that removes these units; the last one of a group stays."""
        kept = {name: (~gone).nonzero()[:, 0].tolist() or [0] for name, gone in removed.items()}
        return PruningPlan.build(self.analysis, kept)

    def plan(self, name: str, scores: Scores, level: float, scope: str) -> PruningPlan:
        """The plan that removes the lowest scores until a share of the MACs is left."""
        budget = fxprune.Budget(macs=level)
        if name == "mask_fisher":  # it has a choice of its own
            data = self.statistics["empirical"]
            return fxprune.plan(self.analysis, name, scope=scope, data=data, budget=budget)

        def look_up(group: Group, _: object) -> Tensor:
            return scores[group.name]

        return fxprune.plan(
            self.analysis,
            look_up,
            scope=scope,
            groups=lambda group: group.name in scores,
            budget=budget,
        )

    def in_rounds(self, name: str) -> list[float]:
        """The losses at `LEVELS` of a cut that is scored anew in each round, without training."""
        rounds = fxprune.iterate(
            self.model,
            self.digits.train[:2],
            steps=len(ROUNDS),
            schedule=lambda keep, steps: ROUNDS,
            budget=fxprune.Budget(macs=ROUNDS[-1]),
            criterion=name,
            normalise="mean",
            scope="global",
            data=self.digits.batches(),
        )
        losses = {level: self.loss(step.plan) for level, step in zip(ROUNDS, rounds, strict=True)}
        return [losses[level] for level in LEVELS]

    def scores(self, names: Sequence[str]) -> dict[str, Scores]:
        """Our criteria by name."""
        return {
            name: fxprune.score(
                self.analysis, name, self.statistics[getattr(CRITERIA[name], "labels", "empirical")]
            )
            for name in names
        }

    def predicted(self, name: str, scores: Scores, removed: Mapping[str, Tensor]) -> float:
        """What a criterion says of a set: the sum of its scores, or more if it knows of sets."""
        statistics = self.statistics["empirical"]
        if name == "mask_fisher":
            return MaskFisher().change(removed, statistics)
        if name == "thinet":
            groups = self.analysis.groups
            return sum(ThiNet().change(g, removed[g.name], statistics) for g in groups)
        return sum(float(scores[g][gone].sum()) for g, gone in removed.items() if g in scores)

    def deviations(self, peer: Mapping[str, Scores]) -> dict[str, float]:
        """How far Torch-Pruning's scores are from what we take for their definitions."""
        images, labels = self.digits.train, self.digits.train_labels
        last = [(images[SAMPLES - 1 : SAMPLES], labels[SAMPLES - 1 : SAMPLES])]
        gradient = self.statistics["empirical"]
        return deviations(
            self.model, self.analysis, gradient, Statistics(self.analysis, last), peer
        )


def per_mean(scores: Scores) -> Scores:
    """Scores divided by their group's mean."""
    return {name: s / s.mean().clamp_min(1e-300) for name, s in scores.items()}


def tables_of(bench: Bench, names: Sequence[str], peer: Mapping[str, Scores]) -> dict[str, Scores]:
    """All scores that are compared: ours, ours divided by their mean, and the peer's."""
    ours = bench.scores(names)
    tables: dict[str, Scores] = dict(ours)
    tables |= {f"{n} / mean": per_mean(scores) for n, scores in ours.items() if n not in ORDERS}
    if "fisher" in ours:
        data = bench.statistics["empirical"]
        tables["fisher ÷ MACs"] = fxprune.score(bench.analysis, Fisher("macs"), data)
    for name, criterion in BOTH_SIDES.items():
        if name in ours:
            scores = fxprune.score(bench.analysis, criterion, bench.statistics["empirical"])
            tables[f"{name}, both sides / mean"] = per_mean(scores)
    if "l2" in ours:
        tables["l2² / mean"] = per_mean({g: s.square() for g, s in ours["l2"].items()})
    return tables | {f"tp {name}": scores for name, scores in peer.items()}


def measure(model: str, digits: Digits, seed: int, names: Sequence[str]) -> Row:
    """All numbers of one network."""
    bench = Bench(model, digits, seed)
    peer = peer_scores(bench.model, bench.analysis, bench.digits)
    base, tables = bench.loss(), tables_of(bench, names, peer)
    # An order of removal cannot be added up; the flows that it starts from can.
    flows = SynapticFlow(bench.analysis).scores(bench.analysis.groups)
    summed = tables | ({"synflow": flows} if "synflow" in tables else {})
    sets = list(bench.sets())
    rises = [bench.loss(bench.without(removed)) - base for removed in sets]
    correlations = {
        name: spearmanr([bench.predicted(name, s, removed) for removed in sets], rises).statistic
        for name, s in summed.items()
    }
    curves = {
        scope: {
            name: [bench.loss(bench.plan(name, tables[name], level, scope)) for level in LEVELS]
            for name in chosen
        }
        for scope, chosen in (("global", list(tables)), ("local", names))
    }
    for name in {"fisher"} & set(names):
        curves["global"][f"{name} / mean, 10 rounds"] = bench.in_rounds(name)
    return {
        "model": model,
        "seed": seed,
        "loss": base,
        "macs": bench.macs,
        "deviation": bench.deviations(peer),
        "correlation": {n: float(c) if math.isfinite(c) else 0.0 for n, c in correlations.items()},
        **curves,
    }


def merged(rows: list[Row], row: Row) -> list[Row]:
    """The rows with one more, or with what is new of a network that is there already."""
    for old in rows:
        if (old["model"], old["seed"]) == (row["model"], row["seed"]):
            for part in ("deviation", "correlation", "global", "local"):
                old.setdefault(part, {}).update(row[part])
            return rows
    return [*rows, row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    every = [name for name in CRITERIA if name not in ALIASES]
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--add", nargs="+", choices=every, help="measure these, keep the others")
    options = parser.parse_args()
    torch.set_num_threads(1)
    old: Row = json.loads(options.output.read_text(encoding="utf-8")) if options.add else {}
    rows, spent = old.get("rows", []), old.get("cpu_seconds", 0.0)
    digits, started = load(), time.process_time()
    jobs = [(model, seed) for seed in range(options.seeds) for model in MODELS]
    for model, seed in tqdm(jobs, unit="network"):
        rows = merged(rows, measure(model, digits, seed, options.add or every))
        found = {
            "levels": LEVELS,
            "classes": 10,
            "sets": SETS,
            "share": SHARE,
            "cpu_seconds": spent + time.process_time() - started,
            "torch": torch.__version__,
            "rows": rows,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    ranking_table.write(found, options.output)


if __name__ == "__main__":
    main()
