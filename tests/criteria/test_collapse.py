"""Critical compression: what empties when nothing is guarded, and that the masks are removals."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import fxprune
from fxprune import LeftWholeWarning
from fxprune.collapse import critical_compression
from fxprune.criteria import Lamp, SynFlow
from fxprune.masking import MaskedCopy
from tests.criteria.networks import (
    IMAGES,
    Residual,
    analyzed,
    chain,
    chains,
    coupled,
    randomized,
)

FLOW = SynFlow(rounds=1, keep=1.0)  # rescored after every removal by the driver


def uneven() -> nn.Module:
    """Three layers of eight units; the weights of the second are small."""
    model = randomized(chain([8, 8, 8], nn.ReLU), 5)
    with torch.no_grad():
        for name in ("3.weight", "7.weight"):
            model.get_parameter(name).mul_(1e-2)
    return model


@settings(max_examples=10, deadline=None)
@given(chains())
def test_synflow_reaches_the_maximal_compression_of_every_chain(model: nn.Module) -> None:
    report = critical_compression(analyzed(model, IMAGES), FLOW)
    assert report.critical == report.maximal


@settings(max_examples=10, deadline=None)
@given(chains())
def test_so_does_lamp_by_construction(model: nn.Module) -> None:
    report = critical_compression(analyzed(model, IMAGES), Lamp())
    assert report.critical == report.maximal


def test_magnitude_empties_the_layer_of_small_weights_long_before() -> None:
    analysis = analyzed(uneven(), IMAGES)
    magnitude = critical_compression(analysis, "magnitude")
    assert magnitude.emptied[0][0] == "3.weight:0"
    assert magnitude.critical < magnitude.maximal / 3
    flow = critical_compression(analysis, FLOW)
    assert flow.critical == flow.maximal == magnitude.maximal


def bottleneck(seed: int) -> tuple[fxprune.Analysis, list[tuple[Tensor, Tensor]]]:
    """An untrained chain of layers of unequal widths, and data for it."""
    torch.manual_seed(seed)
    widths = [16, 24, 16, 8, 16, 24]
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(24, 4))
    return analyzed(model, torch.randn(2, 16)), [(torch.randn(64, 16), torch.randint(4, (64,)))]


@pytest.mark.parametrize("criterion", ["magnitude", "snip", "grasp"])
def test_others_empty_a_layer_even_if_they_rescore_after_every_removal(criterion: str) -> None:
    analysis, data = bottleneck(0)
    report = critical_compression(analysis, criterion, data=data)
    assert report.critical < report.maximal / 3
    flow = critical_compression(analysis, FLOW)
    assert flow.critical == flow.maximal == report.maximal


def test_a_report_follows_every_round() -> None:
    analysis = analyzed(uneven(), IMAGES)
    report = critical_compression(analysis, "magnitude")
    totals = [sum(r.widths.values()) for r in report.rounds]
    assert totals == list(range(24, -1, -1))
    assert report.rounds[0].compression == 1
    compressions = [r.compression for r in report.rounds]
    assert compressions == sorted(compressions)
    assert [name for name, _ in report.emptied] == [
        name
        for name, _ in sorted(
            ((n, sum(r.widths[n] > 0 for r in report.rounds)) for n in report.rounds[0].widths),
            key=lambda pair: pair[1],
        )
    ]
    text = str(report)
    assert text.startswith("magnitude: critical compression ")
    assert f"maximal {report.maximal:.1f}" in text
    assert text.count("weight:0") == 3


def test_larger_rounds_are_fewer() -> None:
    analysis = analyzed(uneven(), IMAGES)
    report = critical_compression(analysis, "magnitude", share=0.5)
    assert [sum(r.widths.values()) for r in report.rounds] == [24, 12, 6, 3, 2, 1, 0]


def test_groups_that_a_criterion_does_not_apply_to_stay_whole() -> None:
    analysis = analyzed(uneven(), IMAGES)
    with pytest.warns(LeftWholeWarning):
        report = critical_compression(analysis, "bn_scale")
    assert report.rounds[-1].widths == {"0.weight:0": 0, "3.weight:0": 8, "7.weight:0": 8}


def test_nothing_of_the_model_changes() -> None:
    analysis = analyzed(uneven().train(), IMAGES)
    before = copy.deepcopy(analysis.traced.state_dict())
    critical_compression(analysis, "random")
    assert all(tensor.equal(before[name]) for name, tensor in analysis.traced.state_dict().items())


@settings(max_examples=10, deadline=None)
@given(coupled())
def test_a_masked_copy_computes_what_the_pruned_graph_does(model: nn.Module) -> None:
    analysis = analyzed(model.double(), IMAGES.double())
    plan = fxprune.plan(analysis, "random", sparsity=0.5)
    masked = MaskedCopy(analysis)
    for name in plan.kept_units:
        masked.remove(name, ~plan.kept_mask(name))
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    pruned = fxprune.rewrite(analysis.traced, plan)
    torch.testing.assert_close(masked.analysis.traced(x), pruned(x), rtol=1e-9, atol=1e-9)
    assert masked.parameters_left == sum(p.numel() for p in pruned.parameters())
    for group in analysis.groups:
        assert masked.widths[group.name] == plan.kept(group).shape[-1]


def test_a_network_without_units_has_infinite_compression() -> None:
    class Bare(nn.Module):
        """Nothing is left of it when its only group is gone."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 4, bias=False)
            self.last = nn.Linear(4, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    report = critical_compression(analyzed(Bare(), torch.randn(2, 3)))
    assert report.rounds[-1].compression == math.inf
    assert report.critical == report.maximal == 4


def test_a_residual_network_loses_its_branches_first() -> None:
    report = critical_compression(analyzed(randomized(Residual(8, 8, nn.ReLU), 3), IMAGES), FLOW)
    assert [name for name, _ in report.emptied][-1] == "stem.weight:0"
    assert report.critical < report.maximal
