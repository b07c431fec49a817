"""Second-order pruning on real digits: channels by OBD and OBS, and layers in factors.

    python -m benchmarks.second_order            # five seeds of three networks
    python -m benchmarks.second_order --seeds 1  # a quick look
    python -m benchmarks.second_order --add      # measure what the results lack

Each trained network is cut to a share of its MACs, the 1×1s of factors counted, by

- channel criteria in one shot (over the whole network unless they say local; scores as they are, or
  divided by their group's mean): random, L2, Fisher, C-OBD, C-OBS, Kron-OBD, Kron-OBS, the best of
  `benchmarks.ranking`, and those of Torch-Pruning, whose importances are given to the same
  allocation;
- factors in one shot: EigenDamage, the same with EKFAC moments, truncated SVD, Tucker-2;
- in rounds, measuring again each time and without training between: channels in 8 rounds down to
  the smallest level, and EigenDamage, 4 steps to each level;
- channels first, to the root of the share, and EigenDamage for what is left to do.

What is compensated says so: `+ least_squares`. Measured are the loss on the training images before
any fine-tuning, and the accuracy on the test images before and after it (five epochs; at every
level for Torch-Pruning's criteria and for the contenders among ours). How near the Fisher
information of each layer is to diagonal is measured, too, in the coordinates of the weights and in
the eigenbasis. Results are written after every network, to benchmarks/results/second_order.json,
.md and .png.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from tqdm import tqdm

import fxprune
from benchmarks import second_order_table
from benchmarks.ranking_models import MODELS, Digits, load, shifted, trained
from benchmarks.ranking_peer import peer_scores
from fxprune.factorization import DAMPING, factor_layers, factored, plan_factorization
from fxprune.factorization.bases import core
from fxprune.factorization.eigendamage import eigenbases
from fxprune.statistics import Statistics

LEVELS = (0.8, 0.6, 0.4, 0.25)
TUNED = (0.4,)
"""The levels at which all networks are fine-tuned, five epochs in batches of 128."""
ROUNDS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.32, 0.25)
STEPS = 4
SAMPLES = 512
"""How many training images the statistics are of, for all methods the same."""
EPOCHS = 5


@dataclass(frozen=True)
class Channels:
    """A way to prune channels.

    criterion  a name of ours, or of Torch-Pruning's with "tp " before it
    normalise  divide scores by their group's mean
    scope      global or local
    rounds     in `ROUNDS`, each with new scores, without training between
    repair     a compensation, after every round
    factors    prune to the root of the share of MACs, and go on with EigenDamage
    """

    criterion: str
    normalise: bool = False
    scope: str = "global"
    rounds: bool = False
    repair: str | None = None
    factors: bool = False

    @property
    def name(self) -> str:
        return "".join(
            (
                self.criterion,
                " / mean" * self.normalise,
                ", local" * (self.scope == "local"),
                ", rounds" * self.rounds,
                f" + {self.repair}" if self.repair else "",
                ", then eigendamage" * self.factors,
            )
        )

    @property
    def labels(self) -> str:
        """Labels drawn from the model, except where the mean gradient is the criterion."""
        return "empirical" if self.criterion in ("mask_fisher", "molchanov2017") else "model"


PEER = ("l2", "lamp", "taylor", "hessian")
BEST = Channels("mask_fisher", scope="local")
L2, KRON = Channels("l2", normalise=True), Channels("kron_obs", normalise=True)
REPAIR = "least_squares"
FACTORS = ("eigendamage", "eigendamage_ekfac", "svd", "tucker")
ITERATED = f"eigendamage, {STEPS} steps"
PRUNED = (
    *map(Channels, ("random", "l2", "fisher", "c_obd", "c_obs", "kron_obd", "kron_obs")),
    *(Channels(f"tp {name}") for name in PEER),
    *map(Channels, ("molchanov2017", "thinet")),
    *(L2, KRON, Channels("wanda_sp", normalise=True), BEST),
    *(Channels("fisher", rounds=True), Channels("kron_obd", rounds=True)),
    *(Channels("fisher", normalise=True, rounds=True), replace(BEST, rounds=True)),
    *(replace(L2, repair=REPAIR), replace(KRON, repair=REPAIR)),
    *(replace(BEST, repair=REPAIR), replace(BEST, rounds=True, repair=REPAIR)),
    *(replace(BEST, factors=True), replace(BEST, repair=REPAIR, factors=True)),
)
METHODS = frozenset({*FACTORS, ITERATED, *(way.name for way in PRUNED)})
CONTENDERS = frozenset(
    {ITERATED, "tucker", "l2 / mean + least_squares", "fisher / mean, rounds"}
    | {f"tp {name}" for name in PEER}
    | {way.name for way in PRUNED if way.criterion == BEST.criterion and not way.factors}
)
"""What is fine-tuned at every level."""
RESULTS = Path(__file__).parent / "results" / "second_order.json"

Scores = Mapping[str, Tensor]
Row = dict[str, Any]


class Bench:
    """One trained network, and its versions by every method."""

    def __init__(self, name: str, digits: Digits, seed: int) -> None:
        self.digits, self.seed = digits, seed
        self.model = trained(name, digits, seed)
        self.analysis = self.analysed(self.model)
        self.dense = fxprune.cost(self.analysis).macs
        images, labels = digits.train[:SAMPLES], digits.train_labels[:SAMPLES]
        self.data = list(zip(images.split(256), labels.split(256), strict=True))

    def statistics(self, analysis: fxprune.Analysis, labels: str = "model") -> Statistics:
        return Statistics(analysis, self.data, labels=labels)

    @cached_property
    def known(self) -> Mapping[str, Statistics]:
        """The statistics of the trained network, by labels."""
        return {labels: self.statistics(self.analysis, labels) for labels in ("model", "empirical")}

    @cached_property
    def peer(self) -> Mapping[str, Scores]:
        """Torch-Pruning's scores."""
        return {
            f"tp {n}": s for n, s in peer_scores(self.model, self.analysis, self.digits).items()
        }

    def versions(self, known: Container[str]) -> Iterator[tuple[str, float, fx.GraphModule]]:
        """(method, level, module) of all methods but the known ones."""
        for way in PRUNED:
            if way.name not in known:
                found = self.in_rounds(way) if way.rounds else self.at_once(way)
                for level, module in found:
                    yield way.name, level, module
        for name in FACTORS:
            data = self.known["model"] if name.startswith("eigen") else None
            for level in LEVELS if name not in known else ():
                yield name, level, self.in_factors(name, level, data, 1)
        for level in LEVELS if ITERATED not in known else ():
            yield ITERATED, level, self.in_factors("eigendamage", level, None, STEPS)

    def pruned(
        self, way: Channels, statistics: Statistics, budget: fxprune.Budget
    ) -> fx.GraphModule:
        """The network that the statistics are of, cut to a budget, and repaired."""
        analysis = statistics.analysis

        def look_up(group: fxprune.Group, _: object) -> Tensor:
            return self.peer[way.criterion][group.name]

        plan = fxprune.plan(
            analysis,
            look_up if way.criterion.startswith("tp ") else way.criterion,
            scope=way.scope,
            normalise="mean" if way.normalise else "none",
            data=statistics,
            budget=budget,
        )
        if way.repair:
            plan = fxprune.compensate(plan, analysis, way.repair, statistics)
        return fxprune.rewrite(analysis.traced, plan)

    def at_once(self, way: Channels) -> Iterator[tuple[float, fx.GraphModule]]:
        """The network at each level, from the scores that it has as it was trained."""
        for level in LEVELS:
            share = math.sqrt(level) if way.factors else level
            module = self.pruned(way, self.known[way.labels], fxprune.Budget(macs=share))
            if way.factors:
                statistics = self.statistics(self.analysed(module))
                module = self.in_factors("eigendamage", int(level * self.dense), statistics, 1)
            yield level, module

    def in_rounds(self, way: Channels) -> Iterator[tuple[float, fx.GraphModule]]:
        """The network at each level, pruned in rounds with new scores in each."""
        module: nn.Module = self.analysis.traced
        for level in ROUNDS:
            statistics = self.statistics(self.analysed(module), way.labels)
            module = self.pruned(way, statistics, fxprune.Budget(macs=int(level * self.dense)))
            if level in LEVELS:
                yield level, module

    def analysed(self, module: nn.Module) -> fxprune.Analysis:
        return fxprune.analyze(fxprune.trace(module, self.digits.train[:2]))

    def in_factors(
        self, method: str, macs: float, data: Statistics | None, steps: int
    ) -> fx.GraphModule:
        """The network that the statistics are of, or else this one, with layers in factors."""
        analysis = self.analysis if data is None else data.analysis
        batches = self.data if steps > 1 else data
        budget = fxprune.Budget(macs=macs)
        plan = plan_factorization(analysis, method, batches, budget=budget, steps=steps)
        return factored(analysis.traced, plan)

    @torch.no_grad()
    def loss(self, module: nn.Module) -> float:
        """On the training images."""
        return F.cross_entropy(module(self.digits.train), self.digits.train_labels).item()

    @torch.no_grad()
    def test_loss(self, module: nn.Module) -> float:
        """On the test images."""
        return F.cross_entropy(module(self.digits.test), self.digits.test_labels).item()

    @torch.no_grad()
    def accuracy(self, module: nn.Module) -> float:
        """On the test images."""
        right = module(self.digits.test).argmax(1) == self.digits.test_labels
        return right.double().mean().item()

    def tuned(self, module: fx.GraphModule) -> nn.Module:
        """The module after five epochs, the same for all methods."""
        torch.manual_seed(self.seed)
        module = copy.deepcopy(module).train()
        count = len(self.digits.train)
        batches = [b for _ in range(EPOCHS) for b in torch.randperm(count).split(128)]
        optimizer = torch.optim.SGD(
            module.parameters(), 0.02, 0.9, weight_decay=5e-4, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
        for batch in batches:
            output = module(shifted(self.digits.train[batch]))
            optimizer.zero_grad()
            F.cross_entropy(output, self.digits.train_labels[batch]).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        return module.eval()

    def diagonality(self) -> dict[str, tuple[float, float]]:
        """Per layer the share of ‖F‖² on the diagonal of its Fisher information F: of the weights,
        and of the weights in the eigenbasis. Exact, from the gradient of each sample.
        """
        layers, _ = factor_layers(self.analysis)
        known = self.statistics(self.analysis)
        rotated = eigenbases(layers, known, {}, DAMPING)
        traced = self.analysis.traced
        weights = {name: traced.get_parameter(f"{name}.weight") for name in layers}
        rows: dict[str, list[Tensor]] = {name: [] for name in layers}
        torch.manual_seed(self.seed)
        for image in self.digits.train[:SAMPLES:2]:
            output = traced(image[None])
            drawn = torch.distributions.Categorical(logits=output.detach()).sample()
            loss = F.cross_entropy(output, drawn)
            for name, g in zip(
                weights, torch.autograd.grad(loss, list(weights.values())), strict=True
            ):
                rows[name].append(g.double().reshape(layers[name].weight.shape))
        found = {}
        for name, gradients in rows.items():
            own = torch.stack(gradients)
            basis = rotated[name]
            turned = torch.stack([core(g, basis.inputs, basis.outputs) for g in gradients])
            norm = (own.flatten(1) @ own.flatten(1).T).square().sum()
            found[name] = tuple(
                float(each.flatten(1).square().sum(0).square().sum() / norm)
                for each in (own, turned)
            )
        return found


def is_complete(method: str, cells: Mapping[str, Row]) -> bool:
    """Whether all that is asked of a method was measured."""
    levels = LEVELS if method in CONTENDERS else TUNED
    return all("tuned" in cells.get(str(level), {}) for level in levels)


def lacks(row: Row) -> bool:
    """Whether there is something to measure of a network."""
    methods = row.get("methods", {})
    return any(not is_complete(name, methods.get(name, {})) for name in METHODS)


def measure(name: str, digits: Digits, seed: int, old: Row) -> Row:
    """All numbers of one network; what `old` has of them stays."""
    methods: dict[str, dict[str, dict[str, float]]] = dict(old.get("methods", {}))
    known = frozenset(each for each in methods if is_complete(each, methods[each]))
    bench = Bench(name, digits, seed)
    for method, level, module in bench.versions(known):
        found = fxprune.cost(bench.analysed(module))
        cell = {
            "macs": found.macs / bench.dense,
            "params": found.parameters,
            "loss": bench.loss(module),
            "accuracy": bench.accuracy(module),
        }
        if level in TUNED or method in CONTENDERS:
            cell["tuned"] = bench.accuracy(bench.tuned(module))
        methods.setdefault(method, {})[str(level)] = cell
    return {
        "model": name,
        "seed": seed,
        "loss": bench.loss(bench.model),
        "accuracy": bench.accuracy(bench.model),
        "macs": bench.dense,
        "params": sum(p.numel() for p in bench.model.parameters()),
        "methods": methods,
        "diagonality": old.get("diagonality") or bench.diagonality(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--add", action="store_true", help="keep what is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    old: Row = json.loads(options.output.read_text(encoding="utf-8")) if options.add else {}
    rows = {(row["model"], row["seed"]): row for row in old.get("rows", [])}
    spent = old.get("cpu_seconds", 0.0)
    digits, started = load(), time.process_time()
    jobs = [(name, seed) for seed in range(options.seeds) for name in MODELS]
    jobs = [job for job in jobs if lacks(rows.get(job, {}))]
    for job in tqdm(jobs, unit="network"):
        rows[job] = measure(job[0], digits, job[1], rows.get(job, {}))
        found = {
            "levels": LEVELS,
            "tuned": TUNED,
            "samples": SAMPLES,
            "epochs": EPOCHS,
            "cpu_seconds": spent + time.process_time() - started,
            "torch": torch.__version__,
            "rows": list(rows.values()),
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        second_order_table.write(found, options.output)


if __name__ == "__main__":
    main()
