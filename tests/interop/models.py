"""Small networks that are exported: convolutions with a shortcut, attention over tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fxprune


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 24, 3, padding=1)
        self.outer = nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        return self.head(x.mean((2, 3)))


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class Attention(nn.Module):
    """Tokens in, an object of a class of its own out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 32)

    def forward(self, tokens: Tensor) -> Output:
        x = self.embed(tokens)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 4, 4).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = self.norm(x + self.out(y.transpose(1, 2).reshape(b, n, 16)))
        return Output(self.head(x), x)


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    example: Callable[[int], Any]

    def pruned(self) -> fxprune.PruneResult:
        torch.manual_seed(0)
        return fxprune.prune(self.build().eval(), self.example(2), sparsity=0.5)


CASES = (
    Case("residual", Residual, lambda batch: torch.randn(batch, 3, 8, 8)),
    Case("attention", Attention, lambda batch: torch.randint(0, 32, (batch, 6))),
)
