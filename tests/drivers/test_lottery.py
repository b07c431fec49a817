"""Lottery tickets: pruning and rewinding commute, and rounds only ever remove more."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxprune
from fxprune import Analysis, PlanError
from fxprune.lottery import find_ticket, restored, rewind
from tests.criteria.networks import (
    IMAGES,
    Attentive,
    Recurrent,
    Residual,
    analyzed,
    chain,
    randomized,
)

TOKENS = torch.randint(11, (2, 4))


class Grouped(nn.Module):
    """Convolution groups that each choose which of their channels go."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 1)
        self.second, self.last = nn.Conv2d(6, 8, 3, groups=2), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)).relu())


def networks() -> list[Analysis]:
    return [
        analyzed(randomized(Residual(6, 5, nn.ReLU), 0), IMAGES),
        analyzed(randomized(chain([6, 5, 7], nn.ReLU), 1), IMAGES),
        analyzed(randomized(Grouped(), 2), IMAGES),
        analyzed(Attentive().eval(), TOKENS),
        analyzed(Recurrent().eval(), TOKENS),
    ]


def other_values(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: torch.randn_like(value) if value.is_floating_point() else value + 1
        for name, value in state.items()
    }


@pytest.mark.parametrize("analysis", networks(), ids=lambda a: type(a.traced).__name__)
def test_pruning_and_rewinding_commute(analysis: Analysis) -> None:
    plan = fxprune.plan(analysis, "random", sparsity=0.5)
    snapshot = other_values(analysis.traced.state_dict())
    first = fxprune.rewrite(analysis.traced, plan)
    rewind(first, plan, snapshot)
    rewound = copy.deepcopy(analysis.traced)
    rewound.load_state_dict(snapshot)
    second = fxprune.rewrite(rewound, plan)
    left, right = first.state_dict(), second.state_dict()
    assert left.keys() == right.keys()
    assert all(left[name].equal(right[name]) for name in left)


@pytest.mark.parametrize("analysis", networks(), ids=lambda a: type(a.traced).__name__)
def test_what_is_put_back_is_the_masked_original(analysis: Analysis) -> None:
    plan = fxprune.plan(analysis, "random", sparsity=0.5)
    masks, state = plan.masks(), analysis.traced.state_dict()
    pruned = fxprune.rewrite(analysis.traced, plan).state_dict()
    full = restored(plan, pruned, state)
    assert full.keys() == state.keys()
    for name, value in state.items():
        assert full[name].equal(value * masks[name] if name in masks else value)


class Trainer:
    """Adds noise, and notes what it was given."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def __call__(self, module: GraphModule) -> None:
        self.states.append(copy.deepcopy(module.state_dict()))
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("analysis", networks()[:3], ids=lambda a: type(a.traced).__name__)
def test_rounds_remove_more_and_more_and_start_at_the_snapshot(
    analysis: Analysis, scope: str
) -> None:
    before = copy.deepcopy(analysis.traced.state_dict())
    snapshot, trainer = other_values(before), Trainer()
    ticket = find_ticket(analysis.traced, trainer, 0.4, 3, snapshot, scope=scope)
    assert len(ticket.rounds) == len(trainer.states) == 3
    assert ticket.plan is ticket.rounds[-1]
    assert ticket.plan.criterion == "magnitude"
    plans = [fxprune.PruningPlan.build(analysis, {}), *ticket.rounds]
    for earlier, later in pairwise(plans):
        for group in analysis.groups:
            kept = later.kept_mask(group)
            assert bool((earlier.kept_mask(group) | ~kept).all())
        assert later != earlier
    for plan, seen in zip(plans, [*trainer.states, ticket.module.state_dict()], strict=True):
        fresh = fxprune.rewrite(analysis.traced, plan)
        rewind(fresh, plan, snapshot)
        assert all(value.equal(seen[name]) for name, value in fresh.state_dict().items())
    after = analysis.traced.state_dict()
    assert all(before[name].equal(after[name]) for name in before)


def test_the_shares_follow_the_schedule() -> None:
    analysis = analyzed(randomized(chain([16, 16], nn.ReLU), 1), IMAGES)
    ticket = find_ticket(analysis.traced, Trainer(), 0.25, 2, scope="local")
    widths = [[len(row) for row in plan.kept_units.values()] for plan in ticket.rounds]
    assert widths == [[8, 8], [4, 4]]


def test_the_trained_weights_decide() -> None:
    """Units that training makes large stay, whatever they were in the snapshot."""
    model = nn.Sequential(nn.Linear(3, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False))

    def train(module: GraphModule) -> None:
        with torch.no_grad():
            weight = module.get_parameter("0.weight")
            weight.copy_(torch.arange(1.0, len(weight) + 1)[:, None].expand_as(weight) * 100)

    traced = fxprune.trace(model, torch.randn(2, 3))
    ticket = find_ticket(traced, train, 0.5, 1)
    assert ticket.plan.kept_units == {"0.weight:0": (3, 4, 5)}
    expected = model.get_parameter("0.weight")[3:]
    assert ticket.module.get_parameter("0.weight").equal(expected)


def test_criteria_may_need_data() -> None:
    analysis = analyzed(randomized(chain([6, 6], nn.ReLU), 1), IMAGES)
    batches = [(torch.randn(4, 2, 4, 4), torch.randint(3, (4,)))]
    ticket = find_ticket(analysis.traced, Trainer(), 0.5, 2, criterion="taylor", data=batches)
    assert ticket.plan.criterion == "taylor"


def test_a_snapshot_of_another_model_is_refused() -> None:
    analysis = analyzed(randomized(chain([4, 3], nn.ReLU), 0), IMAGES)
    plan = fxprune.plan(analysis, "random", sparsity=0.5)
    pruned = fxprune.rewrite(analysis.traced, plan)
    with pytest.raises(PlanError, match=r"has nothing for '0\.weight', .* shape \(4, 2, 3, 3\)"):
        rewind(pruned, plan, {})
    wrong = analysis.traced.state_dict() | {"0.weight": torch.zeros(5, 2, 3, 3)}
    with pytest.raises(PlanError, match=r"0\.weight has shape \(5, 2, 3, 3\)"):
        rewind(pruned, plan, wrong)
