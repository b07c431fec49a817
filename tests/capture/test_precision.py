"""Graphs can be converted to another precision: dtypes that a model reads are not fixed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import trace


class RMSNorm(nn.Module):
    """Computes in single precision and returns what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        given = x.dtype
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * x.to(given)


class Masked(nn.Module):
    """Makes tensors of its input's dtype by keyword, by method and by function."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        keep = torch.ones(x.shape[1], dtype=x.dtype, device=x.device)
        half = torch.tensor(0.5, dtype=x.dtype)
        return x * keep * half + x.new_zeros(6, dtype=x.dtype) + (x > 0).type(x.dtype)


class Tokens(nn.Module):
    """Reads the dtype of a parameter; its input has integers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        weights = (tokens > 2).to(self.embedding.weight.dtype)
        return self.head(self.embedding(tokens) * weights.unsqueeze(-1))


MODELS: dict[str, tuple[nn.Module, Tensor]] = {
    "norm": (nn.Sequential(nn.Linear(4, 6), RMSNorm(), nn.Linear(6, 2)), torch.rand(3, 4)),
    "mask": (nn.Sequential(Masked(), nn.Linear(6, 2)), torch.rand(3, 6)),
    "tokens": (Tokens(), torch.randint(9, (2, 5))),
}
PRECISIONS = (torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_traced_and_a_pruned_model_can_be_converted(name: str, dtype: torch.dtype) -> None:
    model, x = MODELS[name]
    traced = trace(model, x)
    converted = x.to(dtype) if x.is_floating_point() else x
    expected = copy.deepcopy(model).to(dtype)(converted)
    assert expected.dtype == dtype
    torch.testing.assert_close(copy.deepcopy(traced).to(dtype)(converted), expected)
    pruned = fxprune.prune(model, x, 0.5).module
    assert copy.deepcopy(pruned).to(dtype)(converted).dtype == dtype


def test_a_precision_that_the_model_names_stays() -> None:
    traced = trace(RMSNorm(), torch.rand(2, 6))
    dtypes = [a for node in traced.graph.nodes for a in node.args if isinstance(a, torch.dtype)]
    assert dtypes == [torch.float32]


def test_a_model_without_dtypes_is_captured_as_it_is() -> None:
    traced = trace(nn.Sequential(nn.Linear(3, 2)), torch.rand(1, 3))
    assert not [node for node in traced.graph.nodes if node.op == "get_attr"]


class Picky(nn.Module):
    """Takes another path in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x).to(x.dtype)
        if x.dtype != torch.float32:
            raise ValueError("single precision only")
        return y


def test_a_model_for_one_precision_keeps_it() -> None:
    model, x = Picky(), torch.rand(2, 3)
    traced = trace(model, x)
    torch.testing.assert_close(traced(x), model(x))
    found = [v for node in traced.graph.nodes for v in (*node.args, *node.kwargs.values())]
    assert torch.float32 in found


def test_a_file_keeps_the_freedom(tmp_path: Path) -> None:
    model, x = MODELS["norm"]
    fxprune.save(fxprune.prune(model, x, 0.5), tmp_path)
    assert fxprune.load(tmp_path).bfloat16()(x.bfloat16()).dtype == torch.bfloat16
