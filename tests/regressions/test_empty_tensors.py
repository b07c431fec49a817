"""Tensors without entries: a part of the inputs that happens to be empty in the example."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.masking import assert_random_plans_hold


class Prompted(nn.Module):
    """One layer reads a prompt of no tokens, another one the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt, self.tokens, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.prompt(x[:, :0]), self.head(self.tokens(x).tanh())


def test_a_layer_that_runs_on_nothing_stays() -> None:
    """Its output is a view of an empty matrix, and no dimension of that tells where channels are.

    The layer was cut, and what it returns had another shape than its axes say.
    """
    x = torch.randn(2, 5, 6)
    result = fxprune.prune(Prompted().eval(), x, sparsity=0.5)
    assert result.module.prompt.out_features == 8
    assert result.module.tokens.out_features == 4
    assert fxprune.verify(result.analysis.traced, result.plan, result.module, x).ok


class NoTokens(nn.Module):
    """As of vision transformers that are told to have no class token, or no registers."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        if learned:
            self.tokens = nn.Parameter(torch.zeros(0, 16))
        else:
            self.register_buffer("tokens", torch.zeros(0, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        tokens = self.tokens.unsqueeze(0).expand(x.shape[0], -1, -1)
        result: Tensor = self.last(torch.cat([tokens, x], 1))
        return result


class EmptyPart(nn.Module):
    """An empty part of the tokens, in the shape that `einops.pack` gives it."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.first, self.last, self.flat = nn.Linear(8, 16), nn.Linear(16, 4), flat

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.flat:
            none, all_ = x.unflatten(-1, (2, 8)).split([0, x.shape[1]], 1)
            parts = [none.flatten(2), all_.flatten(2)]
        else:
            parts = [x[:, :0].reshape(x.shape[0], 0, 16), x]
        result: Tensor = self.last(torch.cat(parts, 1))
        return result


@pytest.mark.parametrize(
    "model", [NoTokens(True), NoTokens(False), EmptyPart(True), EmptyPart(False)]
)
def test_channels_beside_nothing_are_prunable(model: nn.Module) -> None:
    model = model.double().eval()
    traced = fxprune.trace(model, torch.randn(2, 5, 8, dtype=torch.float64))
    analysis = fxprune.analyze(traced)
    assert {r.reason for r in analysis.coverage().frozen} == {"model input", "model output"}
    other = torch.randn(3, 7, 8, dtype=torch.float64)
    assert_random_plans_hold(traced, analysis, other)


class Folded(nn.Module):
    """Heads become tokens; the example has none, and both are four."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.last, self.kind = nn.Linear(8, 16), nn.Linear(4, 3), kind

    def forward(self, x: Tensor) -> Tensor:
        heads = self.first(x).unflatten(-1, (4, 4))
        if self.kind == "reshape":
            heads = heads.reshape(heads.shape[0], heads.shape[1] * 4, 4)
        elif self.kind == "flatten":
            heads = heads.flatten(1, 2)
        result: Tensor = self.last(heads)
        return result


@pytest.mark.parametrize("kind", ["reshape", "flatten", "none"])
def test_of_equal_sizes_none_is_taken_for_the_other(kind: str) -> None:
    model = Folded(kind).double().eval()
    traced = fxprune.trace(model, torch.randn(2, 0, 8, dtype=torch.float64))
    analysis = fxprune.analyze(traced)
    assert bool(analysis.groups) == (kind == "none")
    if analysis.groups:
        other = torch.randn(3, 2, 8, dtype=torch.float64)
        assert_random_plans_hold(traced, analysis, other)


class RankZero(nn.Module):
    """A low-rank addition of rank 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.down, self.up = nn.Parameter(torch.zeros(8, 0)), nn.Parameter(torch.zeros(0, 16))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.first(x) + x @ self.down @ self.up)
        return result


@pytest.mark.parametrize("criterion", ["l2", "linf", "lamp", "fpgm"])
def test_empty_members_add_nothing_to_a_score(criterion: str) -> None:
    torch.manual_seed(0)
    analysis = fxprune.analyze(fxprune.trace(RankZero(), torch.randn(2, 5, 8)))
    (scores,) = fxprune.score(analysis, criterion).values()
    assert scores.shape == (16,)
    assert bool((scores > 0).all())
