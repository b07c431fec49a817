"""Growth of the CPU time of a whole prune with depth, and two deep networks beside Torch-Pruning.

    python -m benchmarks.scaling

Chains of linear layers and residual MLPs of 100 to 3000 blocks: trace, analyze, plan with magnitude
and rewrite, one thread, each network in a process of its own, several times after a warm-up on a
small network. The exponent p of time ~ depth^p is the slope of a straight line through the
logarithms. Torch-Pruning is measured in alternation; it is ended when a limit is over, and the
ratio is then an upper bound.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import zoo_peer
from benchmarks.speed import cpu_seconds, prune
from benchmarks.zoo import sweep_one
from benchmarks.zoo_entry import Entry

WIDTH = 64
DEPTHS = (100, 300, 1000, 3000)
REPEATS = 5
LIMIT = 900  # seconds of CPU time for one network
RESULTS = Path(__file__).parent / "results" / "scaling.json"

Found = dict[str, Any]


class Block(nn.Module):
    """x + second(relu(first(x)))."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.second(self.first(x).relu())
        return result


def chain(depth: int) -> nn.Module:
    """Linear layers and ReLUs: one group per layer."""
    layers = [m for _ in range(depth) for m in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 4))


def residual(depth: int) -> nn.Module:
    """Residual blocks: one group per block, and one that all of them share."""
    blocks = [Block() for _ in range(depth)]
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *blocks, nn.Linear(WIDTH, 4))


FAMILIES: Mapping[str, Callable[[int], nn.Module]] = {"chain": chain, "residual": residual}


def _rows(model: nn.Module, batch: int) -> dict[str, Tensor]:
    return {"input": torch.randn(batch, WIDTH)}


def synthetic(family: str, depth: int) -> Entry:
    """A network of one of the families."""
    return Entry(f"{family} {depth}", lambda: FAMILIES[family](depth), _rows)


def densenet201() -> Entry:
    """The deepest of torchvision's densely connected networks, on images of ImageNet's size."""
    from torchvision.models import densenet201

    from tests import torchvision_shim  # noqa: F401

    def images(model: nn.Module, batch: int) -> dict[str, Tensor]:
        return {"x": torch.randn(batch, 3, 224, 224)}

    return Entry("torchvision/densenet201", densenet201, images)


def _prepared(entry: Entry) -> tuple[nn.Module, dict[str, Any]]:
    """The network and its inputs, after both tools have pruned something small."""
    torch.manual_seed(0)
    sys.setrecursionlimit(100_000)  # copying and tracing deep autograd graphs, for the peer
    for function in (prune, zoo_peer.prune):
        function(residual(3).eval(), _rows(nn.Identity(), 2))
    model = entry.build().eval()
    example = entry.inputs(model, 1)
    gc.collect()
    gc.freeze()  # else every collection walks through the libraries that were imported
    return model, example


def alone(entry: Entry) -> Iterator[Found]:
    """Seconds of every repetition with fxprune."""
    model, example = _prepared(entry)
    for count in range(REPEATS):
        seconds = cpu_seconds(prune, model, example)
        yield {f"ours_{count}": seconds}


def beside(entry: Entry) -> Iterator[Found]:
    """Seconds of both tools, alternating."""
    model, example = _prepared(entry)
    for count in range(REPEATS):
        yield {f"ours_{count}": cpu_seconds(prune, model, example)}
        yield {f"theirs_{count}": cpu_seconds(zoo_peer.prune, model, example)}


def times(found: Found, tool: str) -> list[float]:
    """The repetitions that came to an end."""
    return [found[f"{tool}_{i}"] for i in range(REPEATS) if f"{tool}_{i}" in found]


def exponent(depths: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of log(seconds) over log(depth), by least squares."""
    points = [(math.log(d), math.log(s)) for d, s in zip(depths, seconds, strict=True)]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def growth(found: Mapping[str, Sequence[Found]]) -> str:
    """The table of the synthetic networks, and the exponents."""
    lines, words = [], []
    for family, rows in found.items():
        medians = [statistics.median(times(row, "ours")) for row in rows]
        for index, (depth, row) in enumerate(zip(DEPTHS, rows, strict=True)):
            spread = times(row, "ours")
            pair = slice(index - 1, index + 1)
            lines.append(
                [
                    family,
                    depth,
                    f"{medians[index]:.3f}",
                    f"{min(spread):.3f} – {max(spread):.3f}",
                    f"{exponent(DEPTHS[pair], medians[pair]):.2f}" if index else "",
                ]
            )
        words.append(f"{family}: time ~ depth^{exponent(DEPTHS, medians):.2f}")
    headers = ["network", "blocks", "median s", f"spread of {REPEATS}", "exponent of this step"]
    return "; ".join(words) + ".\n\n" + tabulate(lines, headers, "github")


def comparison(rows: Sequence[Found]) -> str:
    """The table of the networks that both tools prune."""
    lines = []
    for row in rows:
        ours, theirs = times(row, "ours"), times(row, "theirs")
        ratios = [a / b for a, b in zip(ours, theirs, strict=False)]
        limit = "error" in row
        slow = f"{statistics.median(theirs):.2f}" if theirs else f"> {LIMIT}"
        ratio = statistics.median(ratios) if ratios else statistics.median(ours) / LIMIT
        lines.append(
            [
                row["model"],
                f"{statistics.median(ours):.3f}",
                slow,
                f"{'< ' * (not ratios)}1/{1 / ratio:.1f}",
                f"1/{1 / min(ratios):.1f} – 1/{1 / max(ratios):.1f}" if ratios else "",
                f"{len(ratios)} pairs" + (f"; then {row['error']}" if limit else ""),
            ]
        )
    headers = ["network", "fxprune s", "Torch-Pruning s", "ratio", "spread", "measured"]
    return tabulate(lines, headers, "github")


def main() -> int:
    families: dict[str, list[Found]] = {}
    for family in FAMILIES:
        families[family] = [
            sweep_one(alone, synthetic(family, depth), LIMIT)
            for depth in tqdm(DEPTHS, desc=family, file=sys.stderr)
        ]
    pairs = [
        {"model": entry.name, **sweep_one(beside, entry, LIMIT)}
        for entry in tqdm([synthetic("residual", 300), densenet201()], file=sys.stderr)
    ]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({**families, "pairs": pairs}, indent=1) + "\n", encoding="utf-8")
    text = f"{growth(families)}\n\n{comparison(pairs)}\n"
    RESULTS.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
