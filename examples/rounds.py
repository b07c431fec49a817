"""Prune in rounds, with fine-tuning in between, on scikit-learn's handwritten digits.

    python -m examples.rounds [directory]

With a directory, a run that was cut off goes on after the last round that is done.
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fxprune

STEPS = 3


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, and test images and labels."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return images[train], labels[train], images[test], labels[test]


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    torch.manual_seed(1)  # so that a run that goes on does what one in one go does
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (model(images).argmax(1) == labels).float().mean().item()


def main(directory: str | None = None) -> None:
    images, labels, *test = digits()
    torch.manual_seed(0)
    model = network()
    train(model, images, labels, epochs=4)
    print(f"dense: accuracy {accuracy(model, *test):.3f}")

    rounds = fxprune.iterate(
        model,
        images[:2],
        budget=fxprune.Budget(macs=0.2),
        steps=STEPS,
        schedule="cubic",
        scope="global",
        criterion="taylor",
        data=[(images[:256], labels[:256])],
        normalise="mean",
        directory=directory,
    )
    for step in rounds:
        before = accuracy(step.module, *test)
        train(step.module, images, labels, epochs=2)
        left = fxprune.cost(step.analysis, step.plan).macs / fxprune.cost(step.analysis).macs
        print(
            f"round {step.number}: {left:.0%} of the MACs, accuracy {before:.3f}, "
            f"fine-tuned {accuracy(step.module, *test):.3f}"
        )
    assert rounds.last is not None
    print(f"result: accuracy {accuracy(rounds.last.module, *test):.3f}")
    print(rounds.last.report)


if __name__ == "__main__":
    main(*sys.argv[1:2])
