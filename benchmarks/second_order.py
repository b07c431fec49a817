"""Second-order pruning on real digits: channels by OBD and OBS, and layers in factors.

    python -m benchmarks.second_order            # five seeds of three networks
    python -m benchmarks.second_order --seeds 1  # a quick look
    python -m benchmarks.second_order --add      # measure what the results lack

Each trained network is cut to a share of its MACs, the 1×1s of factors counted, by

- channel criteria in one shot over the whole network (scores as they are; of the magnitude also
  divided by the group's mean): random, L2, Fisher, C-OBD, C-OBS, Kron-OBD, Kron-OBS, uncompensated,
  and those of Torch-Pruning, whose importances are given to the same allocation;
- factors in one shot: EigenDamage, the same with EKFAC moments, truncated SVD, Tucker-2;
- in rounds, measuring again each time and without training between: Fisher and Kron-OBD, 8 rounds
  down to the smallest level, and EigenDamage, 4 steps to each level.

Measured are the loss on the training images before any fine-tuning, and the accuracy on the test
images before and after it (five epochs). How near the Fisher information of each layer is to
diagonal is measured, too, in the coordinates of the weights and in the eigenbasis. Results are
written after every network, to benchmarks/results/second_order.json, .md and .png.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Container, Iterator, Mapping
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
"""The levels at which networks are fine-tuned, five epochs in batches of 128."""
ROUNDS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.32, 0.25)
STEPS = 4
SAMPLES = 512
"""How many training images the statistics are of, for all methods the same."""
EPOCHS = 5
CHANNELS = ("random", "l2", "fisher", "c_obd", "c_obs", "kron_obd", "kron_obs")
PEER = ("l2", "lamp", "taylor", "hessian")
FACTORS = ("eigendamage", "eigendamage_ekfac", "svd", "tucker")
ITERATED = ("fisher", "kron_obd")
METHODS = frozenset(
    {*CHANNELS, "l2 / mean", *FACTORS, f"eigendamage, {STEPS} steps"}
    | {f"tp {name}" for name in PEER}
    | {f"{name}, rounds" for name in ITERATED}
)
RESULTS = Path(__file__).parent / "results" / "second_order.json"

Scores = Mapping[str, Tensor]
Row = dict[str, Any]


class Bench:
    """One trained network, and its versions by every method."""

    def __init__(self, name: str, digits: Digits, seed: int) -> None:
        self.digits, self.seed = digits, seed
        self.model = trained(name, digits, seed)
        self.analysis = fxprune.analyze(fxprune.trace(self.model, digits.train[:2]))
        self.dense = fxprune.cost(self.analysis).macs
        images, labels = digits.train[:SAMPLES], digits.train_labels[:SAMPLES]
        self.data = list(zip(images.split(256), labels.split(256), strict=True))

    def statistics(self, analysis: fxprune.Analysis) -> Statistics:
        return Statistics(analysis, self.data, labels="model")

    def versions(self, known: Container[str]) -> Iterator[tuple[str, float, fx.GraphModule]]:
        """(method, level, module) of all methods but the known ones."""
        for name, scores in self.tables(known).items():
            for level in LEVELS:
                plan = self.plan(self.analysis, scores, fxprune.Budget(macs=level))
                yield name, level, fxprune.rewrite(self.analysis.traced, plan)
        statistics = self.statistics(self.analysis)
        for name in FACTORS:
            data = statistics if name.startswith("eigen") else None
            for level in LEVELS if name not in known else ():
                yield name, level, self.in_factors(name, level, data, 1)
        name = f"eigendamage, {STEPS} steps"
        for level in LEVELS if name not in known else ():
            yield name, level, self.in_factors("eigendamage", level, self.data, STEPS)
        for name in ITERATED:
            if f"{name}, rounds" not in known:
                yield from self.iterated(name)

    def tables(self, known: Container[str]) -> dict[str, Scores]:
        """The scores of all channel criteria but the known ones, by name."""
        statistics = self.statistics(self.analysis)
        found: dict[str, Scores] = {}
        for name in CHANNELS:
            if name not in known:
                found[name] = fxprune.score(self.analysis, name, statistics)
        if "l2 / mean" not in known:
            scores = fxprune.score(self.analysis, "l2")
            found["l2 / mean"] = {g: s / s.mean().clamp_min(1e-300) for g, s in scores.items()}
        if any(f"tp {name}" not in known for name in PEER):
            peer = peer_scores(self.model, self.analysis, self.digits)
            found |= {f"tp {name}": peer[name] for name in PEER}
        return found

    def plan(
        self, analysis: fxprune.Analysis, scores: Scores, budget: fxprune.Budget
    ) -> fxprune.PruningPlan:
        """The plan that removes the lowest scores of the whole network for a budget."""

        def look_up(group: fxprune.Group, _: object) -> Tensor:
            return scores[group.name]

        return fxprune.plan(
            analysis, look_up, scope="global", groups=lambda g: g.name in scores, budget=budget
        )

    def in_factors(self, method: str, level: float, data: Any, steps: int) -> fx.GraphModule:
        """The network with layers in factors."""
        plan = plan_factorization(
            self.analysis,
            method,
            data,
            budget=fxprune.Budget(macs=level),
            steps=steps,
        )
        return factored(self.analysis.traced, plan)

    def iterated(self, name: str) -> Iterator[tuple[str, float, fx.GraphModule]]:
        """Pruned in rounds, with new scores in each."""
        module: nn.Module = self.analysis.traced
        for level in ROUNDS:
            analysis = fxprune.analyze(fxprune.trace(module, self.digits.train[:2]))
            scores = fxprune.score(analysis, name, self.statistics(analysis))
            budget = fxprune.Budget(macs=int(level * self.dense))
            module = fxprune.rewrite(analysis.traced, self.plan(analysis, scores, budget))
            if level in LEVELS:
                yield f"{name}, rounds", level, module

    @torch.no_grad()
    def loss(self, module: nn.Module) -> float:
        """On the training images."""
        return F.cross_entropy(module(self.digits.train), self.digits.train_labels).item()

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


def measure(name: str, digits: Digits, seed: int, old: Row) -> Row:
    """All numbers of one network; what `old` has of them stays."""
    methods: dict[str, dict[str, dict[str, float]]] = dict(old.get("methods", {}))
    known = frozenset(methods)
    bench = Bench(name, digits, seed)
    for method, level, module in bench.versions(known):
        found = fxprune.cost(fxprune.analyze(fxprune.trace(module, digits.train[:2])))
        cell = {
            "macs": found.macs / bench.dense,
            "params": found.parameters,
            "loss": bench.loss(module),
            "accuracy": bench.accuracy(module),
        }
        if level in TUNED:
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
    jobs = [job for job in jobs if METHODS - rows.get(job, {}).get("methods", {}).keys()]
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
