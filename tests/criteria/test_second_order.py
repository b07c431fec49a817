"""OBD and OBS: block formulas against dense ones, sets, greedy choice, and the loss itself."""

from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import fxprune
from fxprune.criteria import KronObd, KronObs, Obd
from fxprune.criteria.quadratic import Quadratic, damped, damping_of, matrix, quadratics
from fxprune.criteria.removal import (
    greedy_obd_costs,
    greedy_obs_costs,
    obd_cost,
    obd_costs,
    obs_cost,
    obs_costs,
)
from fxprune.criteria.second_order import obd_saliency, obs_saliency
from fxprune.criteria.sides import Slice
from tests.statistics.layers import CASES, Case, Net, statistics_of
from tests.statistics.networks import randomized

DAMPING = 1e-2
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
NAMES = ("obd", "c_obd", "obs", "c_obs", "kron_obd", "kron_obs", "kron_obd_sets", "kron_obs_sets")


def close(found: object, expected: object, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-12, check_dtype=False)


class Dense:
    """One layer's S ⊗ A of each of its groups as a dense matrix, with its weight as one vector."""

    def __init__(self, case: Case, rows: bool, damping: float = DAMPING) -> None:
        torch.manual_seed(0)
        self.net = Net(case).double().eval()
        x, y = torch.randn(6, *case.shape).double(), torch.randint(3, (6,))
        self.statistics = statistics_of(self.net, [(x, y)], x)
        self.factors = damped(self.statistics.kronecker(fold=True)["layer"], damping)
        self.weight = matrix(self.factors, self.statistics)
        groups, outputs, _ = self.weight.shape
        size = outputs if rows else self.factors.layer.inputs
        slots = torch.arange(groups * size).reshape(groups, size)  # a unit each
        self.count, self.rows = groups * size, rows
        self.forms = tuple(
            quadratics(Slice(self.factors.layer, rows, slots), self.factors, self.weight)
        )
        self.indices = torch.arange(self.weight.numel()).reshape(self.weight.shape)
        blocks = zip(self.factors.outputs, self.factors.inputs, strict=True)
        self.fisher = torch.block_diag(*(torch.kron(s, a) for s, a in blocks))

    def weights_of(self, gone: Tensor) -> Tensor:
        """The indices of the weights that a set of slots owns."""
        groups, outputs, inputs = self.weight.shape
        if self.rows:
            mask = gone.reshape(groups, outputs, 1).expand(self.weight.shape)
        else:
            padded = torch.zeros(groups, inputs, dtype=torch.bool)
            padded[:, : self.factors.layer.inputs] = gone.reshape(groups, -1)
            mask = padded[:, None].expand(self.weight.shape)
        return self.indices[mask]

    def obd(self, gone: Tensor) -> Tensor:
        p = self.weights_of(gone)
        w = self.weight.reshape(-1)[p]
        return 0.5 * w @ self.fisher[p[:, None], p] @ w

    def obs(self, gone: Tensor) -> Tensor:
        p = self.weights_of(gone)
        w = self.weight.reshape(-1)[p]
        return 0.5 * w @ torch.linalg.solve(torch.linalg.inv(self.fisher)[p[:, None], p], w)

    def alone(self, slot: int) -> Tensor:
        return torch.arange(self.count) == slot

    def random_set(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self.count, generator=generator) < 0.4


@each_case
@pytest.mark.parametrize("rows", [True, False], ids=["rows", "columns"])
def test_block_formulas_are_dense_obd_and_obs(case: Case, rows: bool) -> None:
    dense = Dense(case, rows)
    singles = [dense.alone(slot) for slot in range(dense.count)]
    close(obd_costs(dense.forms, dense.count), torch.stack([dense.obd(one) for one in singles]))
    close(obs_costs(dense.forms, dense.count), torch.stack([dense.obs(one) for one in singles]))
    for seed in range(3):
        gone = dense.random_set(seed)
        close(obd_cost(dense.forms, gone), float(dense.obd(gone)))
        close(obs_cost(dense.forms, gone), float(dense.obs(gone)))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(CASES), st.booleans(), st.integers(0, 1000), st.floats(1e-6, 10))
def test_obs_costs_no_more_than_obd(case: Case, rows: bool, seed: int, damping: float) -> None:
    dense = Dense(case, rows, damping)
    gone = dense.random_set(seed)
    assert obs_cost(dense.forms, gone) <= obd_cost(dense.forms, gone) * (1 + 1e-9) + 1e-15
    single = obs_costs(dense.forms, dense.count), obd_costs(dense.forms, dense.count)
    assert bool((single[0] <= single[1] * (1 + 1e-9) + 1e-15).all())


@each_case
def test_single_costs_add_up_only_where_the_metric_is_diagonal(case: Case) -> None:
    dense = Dense(case, rows=True)
    everything = torch.ones(dense.count, dtype=torch.bool)
    diagonal = tuple(
        Quadratic(torch.diag(form.metric.diagonal()), form.gram, form.slots) for form in dense.forms
    )
    for single, joint in ((obd_costs, obd_cost), (obs_costs, obs_cost)):
        close(float(single(diagonal, dense.count).sum()), joint(diagonal, everything))
        apart = abs(float(single(dense.forms, dense.count).sum()) - joint(dense.forms, everything))
        assert (apart < 1e-9) == (dense.factors.outputs.shape[1] == 1)  # depthwise: a row each


@each_case
@pytest.mark.parametrize("rows", [True, False], ids=["rows", "columns"])
def test_greedy_choice_is_that_of_the_block_formula_after_each_removal(
    case: Case, rows: bool
) -> None:
    dense = Dense(case, rows)
    for greedy, joint in ((greedy_obd_costs, obd_cost), (greedy_obs_costs, obs_cost)):
        scores = greedy(dense.forms, dense.count)
        gone, before, highest = torch.zeros(dense.count, dtype=torch.bool), 0.0, -torch.inf
        for slot in scores.argsort().tolist()[:8]:
            after = {
                other: joint(dense.forms, gone | dense.alone(other))
                for other in range(dense.count)
                if not gone[other]
            }
            assert after[slot] <= min(after.values()) + 1e-10
            highest = max(highest, after[slot] - before)
            close(float(scores[slot]), highest, rtol=1e-6)
            gone, before = gone | dense.alone(slot), after[slot]


@each_case
def test_obs_of_single_weights_is_dense_obs(case: Case) -> None:
    dense = Dense(case, rows=True, damping=0.0)
    found = obs_saliency(dense.statistics.kronecker(fold=True)["layer"], dense.statistics, DAMPING)
    inverse = torch.linalg.inv(Dense(case, rows=True).fisher).diagonal()
    close(found.reshape(-1), 0.5 * dense.weight.reshape(-1).square() / inverse)


@each_case
def test_obd_is_exact_on_a_quadratic_at_its_optimum(case: Case) -> None:
    """Errors of ±√d along each output in turn: the loss is quadratic, its gradient zero, and the
    empirical Fisher information its Hessian. Then OBD is what the loss rises by without a weight.
    """
    torch.manual_seed(0)
    net = nn.Sequential(case.make(), nn.Flatten()).double().eval()
    x = torch.randn(2, *case.shape).double()
    size = net(x).shape[1]
    errors = torch.cat([torch.eye(size), -torch.eye(size)]).double() * size**0.5
    inputs = x.repeat_interleave(2 * size, 0)
    targets = (net(inputs) + errors.repeat(2, 1)).detach()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (z - y).square().sum() / len(z)

    statistics = statistics_of(net, [(inputs, targets)], x, loss=loss)
    (layer,) = statistics.layers
    found = obd_saliency(layer, statistics).reshape(len(net[0].weight), -1)
    with torch.no_grad():
        before = loss(net(inputs), targets)
        for tensor, columns in ((net[0].weight, slice(0, layer.inputs)), (net[0].bias, -1)):
            if tensor is not None:
                flat, expected = tensor.data.reshape(-1), found[:, columns].reshape(-1)
                for entry in range(0, len(flat), 5):
                    value = flat[entry].clone()
                    flat[entry] = 0
                    rise = loss(net(inputs), targets) - before
                    flat[entry] = value
                    close(float(expected[entry]), float(rise))


def test_kron_obd_of_columns_is_exact_for_sets_on_a_quadratic_at_its_optimum() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    x = torch.randn(6, 3).double()
    errors = torch.cat([torch.eye(4), -torch.eye(4)]).double() * 2
    inputs = x.repeat_interleave(8, 0)
    targets = (net(inputs) + errors.repeat(6, 1)).detach()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (z - y).square().sum() / len(z)

    statistics = statistics_of(net, [(inputs, targets)], x, loss=loss)
    (group,) = statistics.analysis.groups
    factors = statistics.kronecker(fold=True)["2"]
    slots = torch.arange(5)[None]
    piece = Slice(factors.layer, False, slots)
    forms = tuple(quadratics(piece, factors, matrix(factors, statistics)))

    @torch.no_grad()
    def rise(gone: Tensor) -> float:
        hidden = net[1](net[0](inputs)) * ~gone
        return float(loss(net[2](hidden), targets) - loss(net(inputs), targets))

    for pair in combinations(range(5), 2):
        gone = torch.zeros(5, dtype=torch.bool)
        gone[list(pair)] = True
        close(obd_cost(forms, gone), rise(gone))
    singles = [rise(torch.arange(5) == unit) for unit in range(5)]
    expected = torch.tensor(singles, dtype=torch.float64)
    close(KronObd("consumer").score(group, statistics), expected)
    close(Obd("consumer").score(group, statistics), expected)


def folding_pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = randomized(
        nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 3, 3),
            nn.Flatten(), nn.Linear(12, 3),
        )
    )  # fmt: skip
    rest = copy.deepcopy(net[2:])
    fused = nn.Sequential(fuse_conv_bn_eval(net[0], net[1]), *rest).eval()
    return net, fused


@pytest.mark.parametrize("name", [*NAMES, "scaled"])
def test_folding_norms_and_scaling_units_change_no_undamped_score(name: str) -> None:
    net, other = folding_pair()
    x, y = torch.randn(30, 2, 4, 4).double(), torch.randint(3, (30,))
    criterion: object = name
    if name == "scaled":
        criterion = KronObd()
        factor = torch.tensor([0.2, 0.5, 1, 2, 5]).double()
        with torch.no_grad():
            other[0].weight.mul_(factor[:, None, None, None])
            other[0].bias.mul_(factor)
            other[2].weight.div_(factor[:, None, None])
    scores = [
        fxprune.score(statistics.analysis, criterion, statistics)
        for model in (net, other)
        for statistics in [statistics_of(model, [(x, y)], x)]
    ]
    for mine, theirs in zip(*(one.values() for one in scores), strict=True):
        close(mine, theirs)


def test_damping_is_the_formula() -> None:
    factors = Dense(CASES[4], rows=True, damping=0.0).factors
    inputs, outputs = factors.inputs[0], factors.outputs[0]
    found = damping_of(factors, 1e-3)
    a, s = inputs.trace() / len(inputs), outputs.trace() / len(outputs)
    close(found.pi**2, float(a / s))
    close(found.delta, float(1e-3 * a * s))
    regular = damped(factors, 1e-3)
    close(regular.inputs[0], inputs + found.pi * found.delta**0.5 * torch.eye(len(inputs)))
    close(regular.outputs[0], outputs + found.delta**0.5 / found.pi * torch.eye(len(outputs)))


def test_what_cannot_be_inverted_says_so() -> None:
    net, x = folding_pair()[0], torch.randn(2, 2, 4, 4).double()
    statistics = statistics_of(net, [(x, torch.tensor([0, 1]))], x)
    with pytest.raises(fxprune.AnalysisError, match="damping above zero"):
        fxprune.score(statistics.analysis, KronObs(damping=0.0), statistics)
