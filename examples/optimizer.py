"""Prune in the middle of training, and go on: the optimizer's moments follow the plan.

    python -m examples.optimizer

A new optimizer would start with empty moments, and its first steps would be as large as those of a
network that was just initialised.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune


def batch(size: int = 128) -> tuple[Tensor, Tensor]:
    """Points in the plane, and whether they lie on the one or the other spiral."""
    label = torch.randint(2, (size,))
    turn = 3 * torch.rand(size)
    angle = 2 * turn + torch.pi * label
    points = torch.stack((turn * angle.cos(), turn * angle.sin()), 1)
    return points + 0.05 * torch.randn(size, 2), label


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """The loss of each step."""
    losses = []
    for _ in range(steps):
        points, label = batch()
        loss = nn.functional.cross_entropy(model(points), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    print(f"trained:   loss {sum(train(model, optimizer, 600)[-20:]) / 20:.3f}")

    result = fxprune.prune(model, batch()[0], sparsity=0.5)
    traced, plan, pruned = result.analysis.traced, result.plan, result.module
    optimizer = fxprune.migrate_optimizer(optimizer, traced, plan, pruned)
    losses = train(pruned, optimizer, 200)
    print(f"pruned:    loss {losses[0]:.3f}")
    print(f"went on:   loss {sum(losses[-20:]) / 20:.3f}")

    # The same plan slices checkpoints, and puts what was trained since back in its place.
    checkpoint = fxprune.apply(plan, model.state_dict())
    print("sliced:   ", {name: tuple(value.shape) for name, value in checkpoint.items()})
    model.load_state_dict(fxprune.restore(plan, pruned.state_dict(), model.state_dict()))


if __name__ == "__main__":
    main()
