"""What is coupled is found in another way at other sizes: groups are told by their parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import AnalysisError, TraceError


class Gated(nn.Module):
    """Four heads of six, each scaled by gates that a view takes from other heads and time steps.

    What the view ties together depends on the number of time steps: at 7 all heads are one unit,
    at 8 they are frozen, at 4 they are pairs of one unit each, or the time steps themselves.
    """

    def __init__(self, time_first: bool, norm: bool) -> None:
        super().__init__()
        self.time_first, self.norm = time_first, norm
        self.values, self.gates, self.last = nn.Linear(5, 24), nn.Linear(5, 4), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        values = self.values(x).view(batch, time, 4, 6).transpose(1, 2)
        if self.norm:
            values = F.layer_norm(values, (values.shape[-1],))
        gates = self.gates(x)
        if self.time_first:
            gates = gates.transpose(0, 1)
        values = values * gates.reshape(batch, 4, time, 1)
        return self.last(values.transpose(1, 2).reshape(batch, time, 24))


def data(batch: int, time: int) -> Tensor:
    return torch.randn(batch, time, 5, dtype=torch.float64)


def made(
    example: Tensor, time_first: bool, norm: bool
) -> tuple[torch.fx.GraphModule, fxprune.PruningPlan, torch.fx.GraphModule]:
    torch.manual_seed(0)
    traced = fxprune.trace(Gated(time_first, norm).double().eval(), example)
    analysis = fxprune.analyze(traced, strict=True)
    plan = fxprune.plan(analysis, criterion="random", sparsity=0.5)
    assert not plan.is_empty
    return traced, plan, fxprune.rewrite(traced, plan)


OTHERS = [(2, 8), (3, 8), (3, 7), (1, 7), (2, 1)]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("time_first", [False, True])
def test_groups_are_found_again_at_other_sizes(time_first: bool, norm: bool) -> None:
    # They were told by names, which depend on what else is a group: a right network FAILED.
    traced, plan, pruned = made(data(2, 7), time_first, norm)
    for batch, time in OTHERS:
        report = fxprune.verify(traced, plan, pruned, data(batch, time))
        assert report.ok, (batch, time, str(report))


def test_parameters_and_output_suffice_for_maskable_groups() -> None:
    # At 4 time steps the group is made of pairs of heads.
    traced, plan, pruned = made(data(2, 7), True, False)
    assert fxprune.verify(traced, plan, pruned, data(2, 4)).ok
    with torch.no_grad():
        pruned.last.bias[0] += 1e-6
    report = fxprune.verify(traced, plan, pruned, data(2, 4))
    assert not report.ok
    assert "is coupled differently" in str(report.first_mismatch)
    assert "node 'last'" in str(fxprune.verify(traced, plan, pruned, data(3, 7)).first_mismatch)


@pytest.mark.parametrize(("batch", "time"), [(2, 4), (3, 7)])
def test_contexts_that_other_sizes_lack_are_refused(batch: int, time: int) -> None:
    # Each head loses its own units, but at these sizes heads are not told apart, or are the time
    # steps: other units were masked than the plan removes.
    traced, plan, pruned = made(data(2, 8), False, True)
    (name,) = plan.kept_units
    assert plan.group(name).contexts == 4
    assert fxprune.verify(traced, plan, pruned, data(5, 8)).ok
    with pytest.raises(AnalysisError, match="is coupled differently"):
        fxprune.verify(traced, plan, pruned, data(batch, time))


@pytest.mark.parametrize("norm", [nn.Identity(), nn.LayerNorm(8)], ids=["equivalence", "statistic"])
def test_a_size_that_the_graph_does_not_take_is_named_as_in_a_call(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(5, 8), norm, nn.Flatten(), nn.Linear(56, 3)).double().eval()
    traced = fxprune.trace(model, data(2, 7))
    plan = fxprune.plan(fxprune.analyze(traced), criterion="random", sparsity=0.5)
    pruned = fxprune.rewrite(traced, plan)
    with pytest.raises(TraceError, match=r"traced for 7 there.* with an input of that size\.$"):
        fxprune.verify(traced, plan, pruned, data(2, 9))


class Untransposed(nn.Module):
    """A view takes rows of pixels, of all channels each, for channels of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hidden = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 6, 1)
        self.bottom, self.last = nn.Conv2d(6, 32, 1), nn.Conv2d(32, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        batch, _, height, width = x.shape
        rows = self.bottom(torch.tanh(self.hidden(x))).flatten(2).transpose(1, 2)
        return self.last(x + rows.reshape(batch, 32, height, width))


def test_what_a_size_divides_is_frozen_whole() -> None:
    # At 2 x 2 pixels the first 8 of 32 channels were free: the factor that is left of them there.
    model = Untransposed().double().eval()
    traced = fxprune.trace(model, torch.randn(2, 3, 2, 2, dtype=torch.float64))
    analysis = fxprune.analyze(traced, strict=True)
    assert [group.name for group in analysis.groups] == ["hidden.weight:0"]
    assert "its size follows the inputs" in {group.reason for group in analysis.frozen}
    plan = fxprune.plan(analysis, criterion="random", sparsity=0.5)
    pruned = fxprune.rewrite(traced, plan)
    for size in (2, 3, 4):
        x = torch.randn(3, 3, size, size, dtype=torch.float64)
        assert fxprune.verify(traced, plan, pruned, x).ok
