"""Every equality between sizes that torch's symbolic shapes derive holds in our groups."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import fx

import fxprune
from fxprune import propagate as propagate_module
from fxprune.rules import RULES
from fxprune.rules.base import Call, Effect, Kind
from tests.crosscheck.symbolic import derive, violations
from tests.zoo.models import MODELS, ZooModel

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
ENTRIES = [entry for entry in MODELS if entry.name in COMPARED]


def traced(entry: ZooModel) -> fx.GraphModule:
    example = entry.example()
    floats = {name: v.float() if v.is_floating_point() else v for name, v in example.items()}
    return fxprune.trace(entry.build().eval(), floats)


def test_every_model_is_there() -> None:
    assert {entry.name for entry in ENTRIES} == COMPARED.keys()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_equal_sizes_are_in_one_group(entry: ZooModel) -> None:
    graph = traced(entry)
    derived = derive(graph)
    assert violations(derived, fxprune.analyze(graph)) == []
    assert derived.compared >= COMPARED[entry.name]


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
    (entry,) = (entry for entry in ENTRIES if entry.name == name)
    graph = traced(entry)
    with patch.object(propagate_module, "RULES", {**RULES, **rules}):
        wrong = fxprune.analyze(graph)
    assert violations(derive(graph), wrong)


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
