"""Every model of the zoo prunes exactly: masked equivalence, masked interpretation, training."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import fxprune
from tests.zoo import checks
from tests.zoo.models import MODELS, ZooModel

by_name = pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.name)


@functools.lru_cache(maxsize=1)
def prepared(entry: ZooModel) -> tuple[nn.Module, torch.fx.GraphModule, fxprune.Analysis]:
    """The model with live weights, its graph and its analysis; the tests of a model share them."""
    return checks.prepared(entry.build, entry.example)


@by_name
def test_pruned_equals_the_masked_original(entry: ZooModel) -> None:
    model, traced, analysis = prepared(entry)
    plan = checks.random_plan(analysis, lambda group: group.maskable)
    assert plan.kept_units
    pruned = fxprune.rewrite(traced, plan)
    inputs = entry.inputs()

    masked = copy.deepcopy(model)
    checks.apply_masks(masked, plan)
    expected = checks.run(masked, inputs)
    checks.assert_alive(expected)
    assert checks.relative_error(checks.run(traced, inputs), checks.run(model, inputs)) <= 1e-12
    assert checks.relative_error(checks.run(pruned, inputs), expected) <= checks.TOLERANCE
    assert checks.relative_error(checks.run(traced, inputs), expected) > 1e-3, "nothing was masked"

    groups = [plan.group(name) for name in plan.kept_units]
    checks.assert_heard(pruned, groups[0], inputs)
    checks.assert_heard(pruned, groups[-1], inputs)
    checks.spoil(pruned, groups[len(groups) // 2], inputs)
    wrong = checks.relative_error(checks.run(pruned, inputs), expected)
    assert wrong > 100 * checks.TOLERANCE, "one wrong index went unnoticed"


@by_name
def test_all_groups_equal_the_masked_interpretation(entry: ZooModel) -> None:
    model, traced, analysis = prepared(entry)
    plan = checks.random_plan(analysis, lambda group: True, seed=1)
    pruned = fxprune.rewrite(traced, plan)
    inputs = entry.inputs()
    report = checks.verify_all(traced, plan, pruned, inputs)
    assert report.ok, str(report)
    output = checks.run(pruned, inputs)
    checks.assert_alive(output)
    assert checks.structure(output) == checks.structure(checks.run(model, inputs))

    spoiled = copy.deepcopy(pruned)
    checks.spoil(spoiled, plan.group(next(iter(plan.kept_units))), inputs)
    control = checks.verify_all(traced, plan, spoiled, inputs)
    assert not control.ok
    assert control.first_mismatch is not None
    checks.train_one_step(pruned, inputs)
