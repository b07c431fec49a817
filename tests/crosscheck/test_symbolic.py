"""Every equality between sizes that torch's symbolic shapes derive holds in our groups."""

from __future__ import annotations

from functools import cache
from unittest.mock import patch

import pytest
import torch
from torch import fx

import fxprune
from fxprune import propagate as propagate_module
from fxprune.rules import RULES
from fxprune.rules.base import Call, Effect, Kind
from tests.crosscheck.symbolic import Derived, derive, violations
from tests.zoo.models import MODELS

# How many equalities there must be, so that the comparison says something. Where a model states its
# sizes as literals, as transformers do in views and normalisations, few symbols are left.
COMPARED = {
    "resnet18": 109,
    "densenet121": 130,
    "squeezenet1_1": 50,
    "mobilenet_v3_small": 165,
    "regnet_y_400mf": 350,
    "convnext_tiny": 13,
    "bert": 11,
    "llama_gqa": 24,
}
ENTRIES = {entry.name: entry for entry in MODELS if entry.name in COMPARED}


@cache
def derived_from(name: str) -> tuple[fx.GraphModule, Derived]:
    """A model's graph, and what torch derives from it: slow, and used by two tests."""
    entry = ENTRIES[name]
    example = entry.example()
    floats = {name: v.float() if v.is_floating_point() else v for name, v in example.items()}
    graph = fxprune.trace(entry.build().eval(), floats)
    return graph, derive(graph)


def test_every_model_is_there() -> None:
    assert ENTRIES.keys() == COMPARED.keys()


@pytest.mark.parametrize("name", COMPARED)
def test_equal_sizes_are_in_one_group(name: str) -> None:
    graph, derived = derived_from(name)
    assert violations(derived, fxprune.analyze(graph)) == []
    assert derived.compared >= COMPARED[name]


def forgetful_add(call: Call) -> Effect:
    return Effect((call.axes("self"),), Kind.POINTWISE)


def forgetful_cat(call: Call) -> Effect:
    """The output is frozen, and nothing follows from it for the inputs."""
    return Effect((call.fresh(call.outputs[0], "forgotten"),), Kind.MOVE)


@pytest.mark.parametrize(
    ("name", "rules"),
    [("resnet18", {"add": forgetful_add}), ("squeezenet1_1", {"cat": forgetful_cat})],
)
def test_a_missing_coupling_is_noticed(name: str, rules: dict[str, propagate_module.Rule]) -> None:
    """The control: residual sums, or concatenations, that couple nothing."""
    graph, derived = derived_from(name)
    with patch.object(propagate_module, "RULES", {**RULES, **rules}):
        wrong = fxprune.analyze(graph)
    assert violations(derived, wrong)


class Sums(torch.nn.Module):
    """Two branches that are concatenated, and a sum with the result."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = torch.nn.Linear(3, 4), torch.nn.Linear(3, 5)
        self.both, self.last = torch.nn.Linear(3, 9), torch.nn.Linear(9, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.left(x), self.right(x)], 1)
        return self.last(joined + self.both(x))


def test_what_is_derived_from_a_small_network() -> None:
    graph = fxprune.trace(Sums().eval(), torch.zeros(2, 3))
    derived = derive(graph)
    classes = {frozenset(found) for found in derived.classes}
    assert {("left.weight", 0), ("left.bias", 0)} in classes
    assert any(len(equation.free_symbols) == 3 for equation in derived.equations), "4 + 5 = 9"
    assert violations(derived, fxprune.analyze(graph)) == []
