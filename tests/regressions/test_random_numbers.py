"""`verify` of graphs that draw random numbers in eval mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune import PruningPlan, VerifyError
from tests.masking import alive, random_plan, traced


class RandomMasking(nn.Module):
    """Keeps a random half of the positions, as masked autoencoders do, and drops some scores."""

    def __init__(self, normalize: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.norm = nn.LayerNorm(8) if normalize else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x))
        order = torch.rand(x.shape[:2]).argsort(1)[:, :3]
        h = h.gather(1, order.unsqueeze(-1).expand(-1, -1, h.shape[-1]))
        return self.last(F.dropout(h @ h.transpose(1, 2), 0.3, training=True) @ h)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h + torch.rand_like(h))


def pruned(model: nn.Module) -> tuple[fx.GraphModule, PruningPlan, fx.GraphModule]:
    graph, analysis = traced(alive(model), torch.randn(2, 6, 5, dtype=torch.float64))
    plan = random_plan(analysis)
    return graph, plan, fxprune.rewrite(graph, plan)


@pytest.mark.parametrize("normalize", [False, True], ids=["equivalence", "interpretation"])
def test_both_graphs_draw_the_same_numbers(normalize: bool) -> None:
    # They drew one after the other, so that the law failed at the first random node.
    graph, plan, slim = pruned(RandomMasking(normalize))
    inputs, state = torch.randn(3, 6, 5, dtype=torch.float64), torch.get_rng_state()
    report = fxprune.verify(graph, plan, slim, inputs)
    assert report.ok, str(report)
    assert report.law == f"masked {'interpretation' if normalize else 'equivalence'}"
    assert torch.equal(torch.get_rng_state(), state)


class Latent(nn.Module):
    """Noise like a tensor whose elements do not lie in memory in the order of its indices."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Conv2d(3, 8, 1),
            nn.GroupNorm(2, 8),
            nn.Conv2d(8, 4, 1),
        )
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        h = self.last(self.norm(self.first(x)))
        return h + (torch.empty_like(h).uniform_() if self.in_place else torch.randn_like(h))


@pytest.mark.parametrize("in_place", [False, True])
def test_numbers_are_the_same_wherever_elements_lie(in_place: bool) -> None:
    # Torch draws in the order of memory, which the masked interpretation does not keep.
    example = torch.randn(2, 3, 6, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    graph, analysis = traced(alive(Latent(in_place)), example)
    plan = random_plan(analysis)
    slim = fxprune.rewrite(graph, plan)
    report = fxprune.verify(graph, plan, slim, example)
    assert report.law == "masked interpretation"
    assert report.ok, str(report)


def test_a_fault_after_a_random_node_is_named() -> None:
    graph, plan, slim = pruned(RandomMasking(False))
    with torch.no_grad():
        slim.last.weight.mul_(1.01)
    report = fxprune.verify(graph, plan, slim, torch.randn(3, 6, 5, dtype=torch.float64))
    assert not report.ok
    assert str(report.first_mismatch).startswith("node 'last'")


def test_numbers_drawn_for_removed_units_cannot_be_compared() -> None:
    graph, plan, slim = pruned(Noisy())
    with pytest.raises(VerifyError, match="node 'rand_like' draws random numbers for units"):
        fxprune.verify(graph, plan, slim, torch.randn(3, 6, 5, dtype=torch.float64))
