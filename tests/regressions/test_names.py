"""Attributes of a model that have the names of a GraphModule's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.zoo import checks


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.randn(6))
        self.graph = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6))
        self.meta, self.recompile = nn.Linear(6, 7), nn.Linear(7, 3)
        self.register_buffer("print_readable", torch.rand(7), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.graph(x) * self.code)
        return self.recompile(torch.relu(self.meta(x)) * self.print_readable)


def test_they_are_renamed() -> None:
    # GraphModule asked torch to report a bug, or took the model's graph for its own.
    example, inputs = ({"x": torch.randn(n, 5, dtype=torch.float64)} for n in (2, 3))
    model = checks.enliven(Model(), example)
    traced = fxprune.trace(model, example)
    assert torch.equal(traced(**inputs), model(**inputs))
    names = "code graph meta recompile print_readable".split()
    assert traced.meta["fxprune"].renamed == {f"{name}_": name for name in names}
    assert "print_readable_" not in traced.state_dict()
    assert traced.get_parameter("graph_.0.weight") is model.get_parameter("graph.0.weight")
    plan = checks.random_plan(fxprune.analyze(traced, strict=True), lambda group: True)
    pruned = fxprune.rewrite(traced, plan)
    assert checks.verify_all(traced, plan, pruned, inputs).ok
    assert pruned.meta_.in_features == 3


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.code, self.code_ = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.code + self.code_


def test_two_attributes_for_one_name_are_refused() -> None:
    with pytest.raises(fxprune.TraceError, match="two attributes for one name"):
        fxprune.trace(Twice(), torch.randn(2, 5))
