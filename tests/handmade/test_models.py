"""Every hand-written model has the groups that a person expects, and prunes exactly."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable

import pytest
import torch
from torch import nn

import fxprune
from fxprune import Analysis, Group
from tests.handmade import (
    assorted,
    attention,
    convolutional,
    detection,
    mixing,
    positions,
    recurrent,
    structured,
    transformers,
)
from tests.handmade.table import Handmade
from tests.zoo import checks

FAMILIES = (
    detection,
    convolutional,
    recurrent,
    transformers,
    attention,
    positions,
    structured,
    mixing,
    assorted,
)
MODELS: dict[str, Handmade] = {k: row for family in FAMILIES for k, row in family.MODELS.items()}
every_model = pytest.mark.parametrize("name", MODELS)

# torch's encoder packs what padding leaves when it runs eagerly; that is what is compared with.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


@functools.lru_cache(maxsize=1)
def prepared(name: str) -> tuple[nn.Module, torch.fx.GraphModule, Analysis]:
    """The model with live weights, its graph and its analysis; the tests of a model share them."""
    return checks.prepared(MODELS[name].build, MODELS[name].example)


def described(groups: Iterable[Group]) -> str:
    """The sizes of groups, as the table writes them."""
    ordered = sorted(groups, key=lambda group: (group.contexts, group.size))
    return " ".join("x".join(map(str, group.shape)) for group in ordered)


def at(groups: Iterable[Group], place: str) -> str:
    """The sizes of the groups that a parameter's dimension is in."""
    return described(g for g in groups if any(f"{m.parameter}:{m.dim}" == place for m in g.members))


def coverage(analysis: Analysis) -> float:
    """The share of the entries of weight matrices (and kernels) that a group could remove."""
    entries = removable = 0
    for name, parameter in analysis.traced.named_parameters():
        if parameter.dim() < 2:
            continue
        reached = torch.zeros(parameter.shape, dtype=torch.bool)
        for group in analysis.groups:
            for member in group.members:
                if member.parameter == name:
                    units = torch.ones(group.shape, dtype=torch.bool)
                    reached |= member.spread(units, group, False, parameter.dim())
        entries += parameter.numel()
        removable += int(reached.sum())
    return removable / entries


def test_no_two_models_share_a_name() -> None:
    assert len(MODELS) == sum(len(family.MODELS) for family in FAMILIES)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=row.limit))
        if row.limit
        else name
        for name, row in MODELS.items()
    ],
)
def test_its_groups_are_those_that_a_person_expects(name: str) -> None:
    _, _, analysis = prepared(name)
    row = MODELS[name]
    assert described(analysis.groups) == row.groups, str(analysis)
    assert {place: at(analysis.groups, place) for place in row.at} == dict(row.at)
    assert coverage(analysis) >= row.share


@every_model
def test_pruned_equals_the_masked_original(name: str) -> None:
    model, traced, analysis = prepared(name)
    inputs = MODELS[name].inputs()
    eager = checks.run(model, inputs)
    assert checks.relative_error(checks.run(traced, inputs), eager) <= 1e-12
    checks.assert_alive(eager)

    plan = checks.random_plan(analysis, lambda group: group.maskable)
    pruned = fxprune.rewrite(traced, plan)
    masked = copy.deepcopy(model)
    checks.apply_masks(masked, plan)
    expected = checks.run(masked, inputs)
    assert checks.relative_error(checks.run(pruned, inputs), expected) <= checks.TOLERANCE
    assert checks.relative_error(eager, expected) > 1e-3, "nothing was masked"

    largest = max((plan.group(group) for group in plan.kept_units), key=lambda group: group.size)
    checks.spoil(pruned, largest, inputs)
    wrong = checks.relative_error(checks.run(pruned, inputs), expected)
    assert wrong > 100 * checks.TOLERANCE, "one wrong index went unnoticed"


@every_model
def test_all_groups_equal_the_masked_interpretation(name: str) -> None:
    model, traced, analysis = prepared(name)
    plan = checks.random_plan(analysis, lambda group: True, seed=1)
    pruned = fxprune.rewrite(traced, plan)
    inputs = MODELS[name].inputs()
    report = checks.verify_all(traced, plan, pruned, inputs)
    assert report.ok, str(report)
    output = checks.run(pruned, inputs)
    checks.assert_alive(output)
    assert checks.structure(output) == checks.structure(checks.run(model, inputs))
    checks.train_one_step(pruned, inputs)
