"""Prune a trained network on real images: train, prune, verify, fine-tune, save, load, compare.

Run it with `make demo`. It downloads nothing, needs no GPU and exits non-zero if the pruned network
does not compute what the masked original computes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from digits_network import DigitsNet
from digits_picture import draw_widths
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import fxprune
from fxprune.checkpoint import load, save


@dataclass(frozen=True)
class Images:
    """Real handwritten digits: images [n, 1, 8, 8] in [0, 1], labels [n] in 0..9."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load_images() -> Images:
    """The 1797 digits that scikit-learn bundles, a quarter of them held out."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, test, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.25, stratify=labels, random_state=0
    )
    return Images(train, train_labels, test, test_labels)


def shifted(images: Tensor) -> Tensor:
    """Each image moved by up to one pixel each way, so that the network does not learn by heart."""
    padded = F.pad(images, (1, 1, 1, 1))
    corners = torch.randint(3, (len(images), 2)).tolist()
    return torch.stack(
        [
            image[:, row : row + 8, column : column + 8]
            for image, (row, column) in zip(padded, corners, strict=True)
        ]
    )


def train(model: nn.Module, images: Images, epochs: int, rate: float, title: str) -> None:
    """Stochastic gradient descent, one cycle of the learning rate; leaves `model` in eval mode."""
    batches = [torch.randperm(len(images.train)).split(64) for _ in range(epochs)]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=sum(map(len, batches))
    )
    model.train()
    with tqdm(total=schedule.total_steps, desc=f"{title:<9}", unit="batch") as progress:
        for batch in (batch for epoch in batches for batch in epoch):
            loss = F.cross_entropy(model(shifted(images.train[batch])), images.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            progress.update()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """The fraction of the test images that `model` classifies correctly."""
    hits = model(images.test).argmax(dim=1) == images.test_labels
    return hits.float().mean().item()


@torch.no_grad()
def macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates of one forward pass."""
    with FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops()) // 2


@torch.no_grad()
def latencies(
    models: Mapping[str, nn.Module], inputs: Tensor, rounds: int = 40
) -> dict[str, tuple[float, float]]:
    """Median and interquartile range in milliseconds of one forward pass of each model.

    The models take turns, so that a machine that slows down slows all of them down.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    warm_up = 5
    for turn in tqdm(range(warm_up + rounds), desc="measure  ", unit="round"):
        for name, model in models.items():
            start = time.perf_counter()
            model(inputs)
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    quartiles = {name: statistics.quantiles(times, n=4) for name, times in seconds.items()}
    return {name: (1e3 * q[1], 1e3 * (q[2] - q[0])) for name, q in quartiles.items()}


def compare(models: Mapping[str, nn.Module], images: Images) -> str:
    """A table with a row per model: size, work, time and accuracy."""
    times = latencies(models, images.test)
    rows = [
        (
            name,
            f"{sum(p.numel() for p in model.parameters()):,}",
            f"{macs(model, images.test[:1]) / 1e6:.2f} M",
            f"{times[name][0]:.1f} ms (± {times[name][1] / 2:.1f})",
            f"{accuracy(model, images):.2%}",
        )
        for name, model in models.items()
    ]
    headers = (
        "",
        "parameters",
        "MACs per image",
        f"latency of {len(images.test)} images",
        "test accuracy",
    )
    return tabulate(rows, headers, colalign=("left", *["right"] * 4), disable_numparse=True)


def check(result: fxprune.PruneResult, images: Images) -> bool:
    """Whether the pruned network equals the masked original on the test images, in float64."""
    proof = fxprune.verify(
        result.analysis.traced, result.plan, result.module, images.test, dtype=torch.float64
    )
    print(f"\nverify: {proof}")
    return proof.ok


def reload(module: nn.Module, plan: fxprune.PruningPlan, images: Images, path: Path) -> nn.Module:
    """`module` after a round trip through files; raises if it came back different."""
    save((module, plan), path)
    loaded = load(path, DigitsNet, images.train[:2]).eval()
    with torch.no_grad():
        if not torch.equal(module(images.test), loaded(images.test)):
            raise RuntimeError(f"the network that came back from {path} computes something else")
    files = ", ".join(sorted(file.name for file in path.iterdir()))
    print(f"saved and loaded without pickle: {path} ({files})")
    return loaded


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsity", type=float, default=0.5, help="fraction of units removed")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of training")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "output", help="where files go"
    )
    return parser.parse_args()


def main() -> int:
    options = arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    # Images this small are not worth a second thread, and two threads wait for each other wherever
    # another program uses a core.
    torch.set_num_threads(1)
    images = load_images()

    dense = DigitsNet()
    train(dense, images, options.epochs, rate=0.1, title="train")

    result = fxprune.prune(dense, images.train[:2], sparsity=options.sparsity)
    if not check(result, images):
        print("The pruned network does not equal the masked original.", file=sys.stderr)
        return 1

    tuned = copy.deepcopy(result.module)
    train(tuned, images, max(1, options.epochs // 2), rate=0.05, title="fine-tune")
    tuned = reload(tuned, result.plan, images, options.output / "pruned")

    models = {"dense": dense, "pruned": result.module.eval(), "fine-tuned": tuned}
    print(f"\n{compare(models, images)}\n")
    picture = options.output / "widths.png"
    draw_widths(dense, result.module, picture)
    print(f"layer widths before and after: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
