"""Batch normalisations get the statistics of what they read now."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from fxprune import AnalysisError, PlanError, compensate, recalibrate
from tests.criteria.networks import IMAGES, analyzed, chain, randomized

BATCHES = [torch.randn(n, 2, 4, 4, dtype=torch.float64) for n in (5, 3)]


def test_recalibrated_statistics_are_those_of_the_inputs() -> None:
    model = randomized(chain([4, 3], nn.ReLU), 4).double()
    analysis = analyzed(model, BATCHES[0])
    pruned = fxprune.rewrite(analysis.traced, fxprune.plan(analysis, "random", sparsity=0.5))
    inputs = [pruned.get_submodule("0")(batch) for batch in BATCHES]
    recalibrate(pruned, BATCHES)
    norm = pruned.get_submodule("1")
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert norm.momentum == 0.1
    assert not any(module.training for module in pruned.modules())


def test_recalibration_leaves_dropout_off() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.9), nn.BatchNorm1d(4), nn.Linear(4, 2))
    traced = fxprune.trace(model.eval(), torch.randn(8, 2))
    x = torch.randn(64, 2)
    recalibrate(traced, [(x, None)])
    expected = model.get_submodule("0")(x).mean(0)
    torch.testing.assert_close(traced.get_submodule("2").running_mean, expected)


def test_batches_by_name_may_hold_labels() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    traced = fxprune.trace(model.eval(), torch.randn(8, 2))
    recalibrate(traced, [{"input": torch.randn(8, 2), "labels": torch.zeros(8)}])


def test_what_cannot_be_done_is_an_error() -> None:
    bare = fxprune.trace(nn.Sequential(nn.Linear(2, 2)), torch.randn(2, 2))
    with pytest.raises(AnalysisError, match="no batch normalisation that keeps"):
        recalibrate(bare, [torch.randn(2, 2)])
    analysis = analyzed(randomized(chain([4, 3], nn.ReLU), 4), IMAGES)
    plan = fxprune.plan(analysis, "random", sparsity=0.5)
    pruned = fxprune.rewrite(analysis.traced, plan)
    with pytest.raises(AnalysisError, match="the data hold no batch"):
        compensate(plan, analysis, "bias", [])
    with pytest.raises(AnalysisError, match="the data hold no batch"):
        recalibrate(pruned, [])
    other = analyzed(randomized(chain([4, 4], nn.ReLU), 4), IMAGES)
    with pytest.raises(PlanError, match="another graph"):
        compensate(plan, other, "bias", [IMAGES])
