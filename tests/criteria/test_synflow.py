"""SynFlow: conservation, its flows by definition, its rounds, and what it never empties."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune import Analysis, AnalysisError
from fxprune.criteria import SynapticFlow, SynFlow
from fxprune.groups import Group
from tests.criteria.networks import (
    IMAGES,
    Attentive,
    Concatenated,
    Gated,
    Recurrent,
    Residual,
    analyzed,
    chain,
    chains,
    coupled,
    randomized,
)

FEW = settings(max_examples=15, deadline=None)
TOKENS = torch.randint(11, (2, 4))


def side(group: Group, products: dict[str, Tensor], role: str) -> Tensor:
    """Per unit, the sum of w dR/dw over the members of one role."""
    parts = [m.reduce(products[m.parameter], group) for m in group.members if m.role == role]
    return torch.stack(parts).sum(0)


def assert_same(actual: Tensor, expected: Tensor, total: float) -> None:
    torch.testing.assert_close(actual / total, expected / total, rtol=1e-10, atol=1e-10)


@FEW
@given(st.one_of(chains(), coupled()))
def test_what_is_made_is_read(model: nn.Module) -> None:
    """Conservation, unit by unit, also where layers are coupled by sums and concatenations."""
    analysis = analyzed(model, IMAGES)
    flow = SynapticFlow(analysis)
    products, total = flow.products(), flow.total()
    assert analysis.groups
    for group in analysis.groups:
        assert_same(side(group, products, "producer"), side(group, products, "consumer"), total)


@FEW
@given(chains())
def test_all_that_flows_through_a_chain_flows_through_each_layer(model: nn.Module) -> None:
    analysis = analyzed(model, IMAGES)
    flow = SynapticFlow(analysis)
    total = flow.total()
    for scores in flow.scores(analysis.groups).values():
        assert bool((scores >= 0).all())
        assert_same(scores.sum(), torch.tensor(total, dtype=torch.float64), total)


def by_hand(model: Residual, groups: dict[str, Tensor]) -> Tensor:
    """R of the residual network, with a factor on every read of the stream and of the blocks."""
    stream, hidden = groups["stem.weight:0"], [groups[f"blocks.{i}.0.weight:0"] for i in range(2)]
    weights = {name: p.double().abs() for name, p in model.state_dict().items()}

    def conv(x: Tensor, name: str, padding: int = 0) -> Tensor:
        return torch.conv2d(x, weights[f"{name}.weight"], padding=padding)

    def norm(x: Tensor, name: str) -> Tensor:
        scale = weights[f"{name}.weight"] / (weights[f"{name}.running_var"] + 1e-5).sqrt()
        return x * scale[:, None, None]

    def read(x: Tensor, mask: Tensor) -> Tensor:
        return x * mask[:, None, None]

    x = conv(torch.ones(1, 2, 4, 4, dtype=torch.float64), "stem", 1)
    for i, mask in enumerate(hidden):
        inner = norm(conv(read(x, stream), f"blocks.{i}.0", 1), f"blocks.{i}.1")
        x = x + norm(conv(read(inner, mask), f"blocks.{i}.3"), f"blocks.{i}.4")
    x = x + conv(read(x, stream), "same")
    return (weights["head.weight"] @ (x.mean((2, 3))[0] * stream)).sum()


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_derivatives_by_factors_on_the_reads(seed: int) -> None:
    model = randomized(Residual(4, 3, nn.GELU), seed)
    analysis = analyzed(model, IMAGES)
    masks = {
        group.name: torch.ones(group.size, dtype=torch.float64, requires_grad=True)
        for group in analysis.groups
    }
    assert set(masks) == {"stem.weight:0", "blocks.0.0.weight:0", "blocks.1.0.weight:0"}
    total = by_hand(model, masks)
    expected = dict(zip(masks, torch.autograd.grad(total, list(masks.values())), strict=True))
    flow = SynapticFlow(analysis)
    assert flow.total() == pytest.approx(total.item(), rel=1e-12)
    for name, scores in flow.scores(analysis.groups).items():
        assert_same(scores, expected[name], total.item())


class Bilinear(nn.Module):
    """Tokens that meet as queries and keys: no weight reads the dimensions of a query."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(5, 4), nn.Linear(5, 4)
        self.value, self.head = nn.Linear(5, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.query(x) @ self.key(x).mT @ self.value(x))


@pytest.mark.parametrize("seed", range(3))
def test_where_no_weight_reads_a_unit_one_operand_has_the_factor(seed: int) -> None:
    model = randomized(Bilinear(), seed)
    analysis = analyzed(model, torch.randn(1, 6, 5))
    query, key, value, head = (
        model.get_parameter(f"{name}.weight").detach().double().abs()
        for name in ("query", "key", "value", "head")
    )
    x, mask = torch.ones(1, 6, 5, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    mask.requires_grad_()
    total = ((x @ query.T * mask) @ (x @ key.T).mT @ (x @ value.T) @ head.T).sum()
    (expected,) = torch.autograd.grad(total, mask)
    scores = SynapticFlow(analysis).scores(analysis.groups)
    assert set(scores) == {"query.weight:0", "value.weight:0"}
    assert_same(scores["query.weight:0"], expected, total.item())
    assert_same(scores["query.weight:0"].sum(), total.detach(), total.item())


def one_by_one(analysis: Analysis) -> list[tuple[str, int]]:
    """The order in which units go if all flows are computed again after every removal."""
    flow, order = SynapticFlow(analysis), []
    alive = {group.name: torch.ones(group.shape, dtype=torch.bool) for group in analysis.groups}
    while any(bool(mask.any()) for mask in alive.values()):
        scores = flow.scores(analysis.groups)
        candidates = [
            (float(scores[name][unit]), number, -unit, name)
            for number, (name, mask) in enumerate(alive.items())
            for unit in mask.nonzero()[:, 0].tolist()
        ]
        _, number, unit, name = min(candidates)
        order.append((name, -unit))
        alive[name][-unit] = False
        flow.switch_off(analysis.groups[number], ~alive[name])
    return order


@FEW
@given(chains())
def test_a_chain_is_worn_down_to_one_unit_per_layer(model: nn.Module) -> None:
    """Maximal critical compression: no layer empties before every layer is at its last unit."""
    analysis = analyzed(model, IMAGES)
    last = one_by_one(analysis)[-len(analysis.groups) :]
    assert sorted(name for name, _ in last) == sorted(group.name for group in analysis.groups)


@settings(max_examples=6, deadline=None)
@given(st.one_of(chains(), coupled()))
def test_enough_rounds_remove_units_one_by_one(model: nn.Module) -> None:
    analysis = analyzed(model, IMAGES)
    units = sum(group.size for group in analysis.groups)
    scores = SynFlow(rounds=60 * units).score_all(analysis)
    for place, (name, unit) in enumerate(one_by_one(analysis)[: units - len(analysis.groups)], 1):
        assert float(scores[name][unit]) == pytest.approx(place / units)


def test_one_round_ranks_the_flows() -> None:
    analysis = analyzed(randomized(Residual(7, 5, nn.ReLU), 3), IMAGES)
    flows = SynapticFlow(analysis).scores(analysis.groups)
    order = SynFlow(rounds=1, keep=1.0).score_all(analysis)
    joined = torch.cat([flows[name] for name in order])
    assert torch.cat(list(order.values())).argsort().equal(joined.argsort())
    units = len(joined)
    assert torch.cat(list(order.values())).sort().values.tolist() == pytest.approx(
        [place / units for place in range(1, units + 1)]
    )


def test_magnitude_empties_a_layer_that_synflow_does_not() -> None:
    """Small weights in one layer: a global cut takes all of that layer first."""
    model = randomized(chain([8, 8, 8], nn.ReLU), 5)
    with torch.no_grad():
        for name in ("0.weight", "3.weight"):
            model.get_parameter(name).mul_(1e-3)
    analysis = analyzed(model, IMAGES)
    lowest = {}
    for name in ("magnitude", "synflow"):
        scores = fxprune.score(analysis, name)
        flat = sorted((float(s), group) for group, row in scores.items() for s in row)
        kept = [group for _, group in flat[-len(scores) :]]
        lowest[name] = len(set(kept))
    assert lowest == {"magnitude": 2, "synflow": 3}


def test_a_branch_of_a_residual_network_can_empty() -> None:
    """The stream carries what a branch does not: maximal critical compression is for chains."""
    model = randomized(Residual(4, 4, nn.ReLU), 0)
    with torch.no_grad():
        model.get_parameter("blocks.0.3.weight").mul_(1e-6)
    order = one_by_one(analyzed(model, IMAGES))
    assert {name for name, _ in order[:4]} == {"blocks.0.0.weight:0"}


def test_nothing_of_the_model_changes() -> None:
    model = randomized(Residual(4, 3, nn.ReLU), 1).train()
    model.get_parameter("stem.weight").requires_grad_(False)
    analysis = analyzed(model, IMAGES)
    before = copy.deepcopy(analysis.traced.state_dict())
    fxprune.score(analysis, "synflow")
    after = analysis.traced.state_dict()
    assert all(before[name].equal(after[name]) for name in before)
    named = dict(analysis.traced.named_parameters())
    assert all(p.grad is None for p in named.values())
    assert [name for name, p in named.items() if not p.requires_grad] == ["stem.weight"]
    assert analysis.traced.training


def test_moving_scale_between_layers_changes_nothing() -> None:
    model = randomized(chain([4, 3, 5], nn.ReLU), 2)
    flows = SynapticFlow(analyzed(model, IMAGES)).scores(analyzed(model, IMAGES).groups)
    with torch.no_grad():
        model.get_parameter("1.weight").mul_(7)
        model.get_parameter("3.weight").div_(7)
    moved = SynapticFlow(analyzed(model, IMAGES)).scores(analyzed(model, IMAGES).groups)
    for name, flow in flows.items():
        torch.testing.assert_close(moved[name], flow, rtol=1e-6, atol=0)


def test_an_overflow_is_an_error() -> None:
    layers = [layer for _ in range(40) for layer in (nn.Linear(4, 4), nn.ReLU())]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e8)
    with pytest.raises(AnalysisError, match="sum of the outputs is inf, too large for float64"):
        fxprune.score(analyzed(model, torch.ones(1, 4)), "synflow")


class Constant(nn.Module):
    """Its parameters have no part in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x)).argmax(1)


def test_outputs_without_a_flow_are_an_error() -> None:
    with pytest.raises(AnalysisError, match="no output depends on the graph's parameters"):
        fxprune.score(analyzed(Constant(), torch.ones(1, 3)), "synflow")


NETWORKS = [
    (Gated(), IMAGES),
    (Attentive(), TOKENS),
    (Recurrent(), TOKENS),
    (Concatenated(3, 4, nn.SiLU), IMAGES),
]


@pytest.mark.parametrize(("model", "inputs"), NETWORKS, ids=lambda value: type(value).__name__)
def test_every_kind_of_group_has_a_flow(model: nn.Module, inputs: Tensor) -> None:
    analysis = analyzed(model.eval(), inputs)
    assert len(analysis.groups) >= 2
    flows = SynapticFlow(analysis).scores(analysis.groups)
    for group in analysis.groups:
        assert flows[group.name].shape == group.shape
        assert bool((flows[group.name] > 0).all()), group
    order = fxprune.score(analysis, "synflow")
    for group in analysis.groups:
        rows = order[group.name].reshape(group.contexts, group.size)
        assert all(len(set(row.tolist())) == group.size for row in rows)
        assert all(sorted(row.tolist()) == sorted(rows[0].tolist()) for row in rows)
    result = fxprune.prune(model, inputs, sparsity=0.5, criterion="synflow", scope="global")
    assert fxprune.verify(analysis.traced, result.plan, result.module, inputs).ok


def test_heads_and_their_dimensions_are_scored_apart() -> None:
    analysis = analyzed(Attentive().eval(), TOKENS)
    nested = [group for group in analysis.groups if group.outer is not None]
    outer = {group.outer for group in nested}
    assert outer
    scores = fxprune.score(analysis, "synflow")
    for group, inner in itertools.product(analysis.groups, nested):
        if group.name == inner.outer:
            assert float(scores[group.name].max()) > 0.1
            assert float(scores[inner.name].max()) > 0.1
