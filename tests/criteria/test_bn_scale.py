"""Network Slimming's score: the mean scale of a group's batch normalisations, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import LeftWholeWarning, PlanError
from tests.criteria.networks import IMAGES, Concatenated, Residual, analyzed, randomized


def test_a_stream_averages_its_norms() -> None:
    model = randomized(Residual(5, 4, nn.ReLU), seed=1)
    scores = fxprune.score(analyzed(model, IMAGES), "bn_scale")
    norms = [model.get_parameter(f"blocks.{i}.4.weight").double().abs() for i in range(2)]
    torch.testing.assert_close(scores["stem.weight:0"], (norms[0] + norms[1]) / 2)
    inner = model.get_parameter("blocks.1.1.weight").double().abs()
    torch.testing.assert_close(scores["blocks.1.0.weight:0"], inner)


def test_a_concatenation_is_split() -> None:
    model = randomized(Concatenated(3, 4, nn.ReLU), seed=2)
    with pytest.warns(LeftWholeWarning, match=r"1 x it has no batch norm.*\n.*'mix.weight:0'"):
        scores = fxprune.score(analyzed(model, IMAGES), "bn_scale")
    scale = model.get_parameter("norm.weight").double().abs()
    assert scores["left.weight:0"].equal(scale[:3])
    assert scores["right.weight:0"].equal(scale[3:])
    assert "mix.weight:0" not in scores


def test_units_of_several_channels_average_them() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(2, 8), nn.BatchNorm1d(8)
            self.depthwise, self.last = nn.Conv1d(4, 4, 1, groups=4), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x)).reshape(-1, 4, 2)  # pairs of features are one channel
            return self.last(self.depthwise(x).flatten(1))

    model = randomized(Wide(), seed=3)
    scores = fxprune.score(analyzed(model, torch.randn(2, 2)), "bn_scale").values()
    pairs = next(values for values in scores if values.shape == (4,))
    expected = model.get_parameter("norm.weight").double().abs().reshape(4, 2).mean(1)
    torch.testing.assert_close(pairs, expected)


def test_other_norms_do_not_count() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(PlanError, match=r"'bn_scale' applies to none of the 1 groups"):
        fxprune.score(analyzed(model, torch.randn(2, 4)), "bn_scale")
