"""Compensation in a plan: equal to a refit and to dense OBS, and the plan reproduces the result."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fxprune
from fxprune import PlanError, PruningPlan, compensate
from fxprune.checkpoint import load_plan
from fxprune.compensation import METHODS
from fxprune.compensation.obs import obs_update
from fxprune.compensation.refitting import bias, least_squares
from fxprune.criteria.quadratic import damped
from tests.criteria.test_second_order import Dense
from tests.criteria.test_sides import Attention, Grouped, Inverted, PreActivation, Residual
from tests.statistics.layers import CASES, Case, patches, statistics_of
from tests.statistics.networks import randomized

each_method = pytest.mark.parametrize("method", [name for name in METHODS if name != "batch_norm"])
READERS = tuple(case for case in CASES if case.name not in ("grouped", "depthwise"))


def close(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


class Two(nn.Module):
    """A layer that makes units, and one that reads them."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        reader = case.make()
        width = case.shape[-1] if isinstance(reader, nn.Linear) else case.shape[0]
        kinds = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
        kind = kinds[reader.weight.dim()]
        self.first = kind(2, width) if kind is nn.Linear else kind(2, width, 1)
        self.layer = reader

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.first(x)))


def two(case: Case) -> tuple[Two, Tensor]:
    torch.manual_seed(0)
    net = Two(case).double().eval()
    linear = isinstance(net.layer, nn.Linear)
    shape = (*case.shape[:-1], 2) if linear else (2, *case.shape[1:])
    return net, torch.randn(40, *shape).double()


@pytest.mark.parametrize("case", READERS, ids=lambda case: case.name.replace(" ", "_"))
def test_least_squares_is_the_refit(case: Case) -> None:
    """Without damping: the weights that `lstsq` finds for the original's outputs."""
    net, x = two(case)
    statistics = statistics_of(net, [x[:30], x[30:]], x)
    analysis = statistics.analysis
    (group,) = analysis.groups
    kept = list(range(1, group.size))
    plan = least_squares(PruningPlan.build(analysis, {group.name: kept}), statistics, damping=0.0)
    pruned = fxprune.rewrite(analysis.traced, plan)
    hidden = torch.tanh(net.first(x))
    a = patches(net.layer, hidden)[0].flatten(0, 1)
    full = net.layer.weight.detach().flatten(1)
    if net.layer.bias is not None:
        full = torch.cat([full, net.layer.bias.detach()[:, None]], 1)
    kernel = net.layer.weight[0, 0].numel()
    refit = torch.linalg.lstsq(a[:, kernel:], a @ full.mT).solution.mT
    close(pruned.layer.weight.detach().flatten(1), refit[:, : pruned.layer.weight[0].numel()])
    if net.layer.bias is not None:
        close(pruned.layer.bias.detach(), refit[:, -1])


@pytest.mark.parametrize("case", READERS, ids=lambda case: case.name.replace(" ", "_"))
def test_least_squares_is_obs_of_the_columns_with_equal_outputs(case: Case) -> None:
    """ΔW = -W_P [(A⁻¹)_PP]⁻¹ A⁻¹[P, :] with the same damping."""
    net, x = two(case)
    statistics = statistics_of(net, [x], x, loss=lambda z, _: z.sum() / len(z))
    analysis = statistics.analysis
    (group,) = analysis.groups
    base = PruningPlan.build(analysis, {group.name: list(range(1, group.size))})
    plan = least_squares(base, statistics, damping=1e-2)
    found = plan.values["layer.weight"].flatten(1)
    factor = statistics.kronecker()["layer"].inputs[0].clone()
    kernel, size = net.layer.weight[0, 0].numel(), net.layer.weight[0].numel()
    amount = 1e-2 * factor.diagonal()[kernel:size].mean()
    factor.diagonal()[:size].add_(amount)
    m = torch.linalg.inv(factor)
    p = torch.arange(kernel)
    weight = net.layer.weight.detach().flatten(1)
    change = -weight[:, p] @ torch.linalg.solve(m[p[:, None], p], m[p])
    close(found[:, kernel:], weight[:, kernel:] + change[:, kernel:size])
    if net.layer.bias is not None:
        close(plan.values["layer.bias"], net.layer.bias.detach() + change[:, -1])


@pytest.mark.parametrize("rows", [True, False], ids=["rows", "columns"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_the_obs_update_is_that_of_the_dense_matrix(case: Case, rows: bool) -> None:
    dense = Dense(case, rows)
    gone = dense.random_set(1)
    p = dense.weights_of(gone)
    w, inverse = dense.weight.reshape(-1), torch.linalg.inv(dense.fisher)
    expected = w - inverse[:, p] @ torch.linalg.solve(inverse[p[:, None], p], w[p])
    table = gone.reshape(len(dense.weight), -1)
    if not rows:
        table = torch.nn.functional.pad(table, (0, dense.weight.shape[2] - table.shape[1]))
    found = obs_update(dense.factors, dense.weight, {rows: table})
    close(found.reshape(-1), expected)
    assert damped(dense.factors, 0.0) is dense.factors


@pytest.mark.parametrize("case", CASES[:3:2], ids=["linear", "tokens"])
def test_biases_are_the_correction_of_flap(case: Case) -> None:
    """One layer: b += W_P E[h_P]."""
    net, x = two(case)
    statistics = statistics_of(net, [x], x)
    analysis = statistics.analysis
    base = PruningPlan.build(analysis, {"first.weight:0": [0, 2]})
    hidden = torch.tanh(net.first(x)).flatten(0, -2)
    gone = [unit for unit in range(hidden.shape[-1]) if unit not in (0, 2)]
    lost = net.layer.weight[:, gone] @ hidden.mean(0)[gone]
    plan = bias(base, statistics)
    close(plan.values["layer.bias"], (net.layer.bias + lost).detach())
    assert set(plan.values) == {"layer.bias"}


@pytest.mark.parametrize("method", ["bias", "least_squares"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_constant_units_are_removed_exactly(method: str, has_bias: bool) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(2, 6, 1), nn.Tanh(), nn.Conv2d(6, 4, 3, bias=has_bias)]
    layers += [nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten()]
    net = randomized(nn.Sequential(*layers, nn.Linear(16, 3)))
    with torch.no_grad():
        net[0].weight[[1, 4]] = 0
        net[5].weight[[1, 3]] = 0
    x = torch.randn(20, 2, 4, 4).double()
    analysis = fxprune.analyze(fxprune.trace(net, x))
    kept = {"0.weight:0": [0, 2, 3, 5], "5.weight:0": [[0], [0]]}
    plan = PruningPlan.build(analysis, kept)
    pruned = fxprune.rewrite(analysis.traced, plan)
    assert float((pruned(x) - net(x)).detach().abs().max()) > 1e-3
    fixed = compensate(plan, analysis, method, [x])
    exact = fxprune.rewrite(analysis.traced, fixed)
    torch.testing.assert_close(exact(x), net(x), rtol=1e-8, atol=1e-8)
    assert ("3.running_mean" in fixed.values) == (not has_bias)


MODELS = ((Residual, (2, 3, 3)), (Inverted, (2, 3, 3)), (Grouped, (2, 3, 3)))
MODELS += ((PreActivation, (2, 3, 3)), (Attention, (4, 8)))


@each_method
@pytest.mark.parametrize(("make", "shape"), MODELS, ids=[make.__name__ for make, _ in MODELS])
def test_a_stored_plan_and_the_originals_weights_give_the_result(
    make: type[nn.Module], shape: tuple[int, ...], method: str
) -> None:
    torch.manual_seed(0)
    net = randomized(make())
    twin = copy.deepcopy(net)
    x, y = torch.randn(16, *shape).double(), torch.randint(3, (16,))
    result = fxprune.prune(
        net, x, 0.5, "kron_obs", data=iter([(x[:9], y[:9]), (x[9:], y[9:])]), compensate=method
    )
    plan, traced = result.plan, result.analysis.traced
    assert plan.values
    assert any("compensated by" in note for note in plan.notes)
    report = fxprune.verify(traced, plan, result.module, torch.randn(5, *shape).double())
    assert report.ok, report
    masked = copy.deepcopy(traced)  # by hand: value edits, then masks
    state = masked.state_dict()
    state.update(plan.values)
    for name, mask in plan.masks().items():
        state[name] = state[name] * mask
    masked.load_state_dict(state)
    if report.law == "masked equivalence":
        close(result.module(x), masked(x))
    again = fxprune.analyze(fxprune.trace(twin, x))
    stored = PruningPlan.from_json(plan.to_json(), again, dict(plan.values))
    assert stored == plan
    assert torch.equal(fxprune.rewrite(again.traced, stored)(x), result.module(x))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    state = fxprune.apply(plan, twin.state_dict())
    assert all(
        torch.equal(state[n], v) for n, v in result.module.state_dict().items() if n in state
    )


@pytest.mark.parametrize(
    ("make", "shape"), [m for m in MODELS if m[0] in (Residual, Inverted, PreActivation)]
)
def test_errors_on_the_data_fall(make: type[nn.Module], shape: tuple[int, ...]) -> None:
    """Their mean to zero with biases, their squares with least squares."""
    torch.manual_seed(1)
    net, x = randomized(make()), torch.randn(64, *shape).double()
    analysis = fxprune.analyze(fxprune.trace(net, x))
    plan = fxprune.plan(analysis, "random", 0.4)
    errors = {
        method: (fxprune.rewrite(analysis.traced, one)(x) - net(x)).detach()
        for method in (None, "bias", "least_squares")
        for one in [plan if method is None else compensate(plan, analysis, method, [x])]
    }
    assert float(errors[None].mean(0).abs().max()) > 1e-3
    close(errors["bias"].mean(0), torch.zeros(3).double())
    close(errors["least_squares"].mean(0), torch.zeros(3).double())
    assert float(errors["least_squares"].square().sum()) < float(errors[None].square().sum())


def test_a_saved_directory_holds_the_values(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = randomized(Residual()), torch.randn(8, 2, 3, 3).double()
    result = fxprune.prune(net, x, 0.5, data=[x], compensate="least_squares")
    fxprune.save(result, tmp_path)
    assert torch.equal(fxprune.load(tmp_path)(x), result.module(x))
    assert torch.equal(fxprune.load(tmp_path, lambda: randomized(Residual()))(x), result.module(x))
    text, values = (tmp_path / "plan.json").read_text(), load_file(tmp_path / "plan.safetensors")
    plan = PruningPlan.from_json(text, result.analysis, values)
    assert load_plan(tmp_path, result.analysis) == plan == result.plan
    assert torch.equal(fxprune.rewrite(result.analysis.traced, plan)(x), result.module(x))
    with pytest.raises(PlanError, match="are stored beside it"):
        PruningPlan.from_json(text, result.analysis)
    name = next(iter(values))
    values[name] = values[name] + 1
    with pytest.raises(PlanError, match="not those that the plan was saved with"):
        PruningPlan.from_json(text, result.analysis, values)
    del values[name]
    with pytest.raises(PlanError, match="has none"):
        PruningPlan.from_json(text, result.analysis, values)
    fxprune.save(fxprune.prune(net, x, 0.5), tmp_path)
    assert not (tmp_path / "plan.safetensors").exists()


class Unbiased(nn.Module):
    """Layers without bias, as in most language models: one reads what another one makes."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 8, bias=False)
        self.down = nn.Linear(8, 6, bias=False)
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.down(torch.tanh(self.up(x) + 1))))


def test_layers_without_bias_get_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Unbiased().double().eval(), torch.randn(40, 3).double()
    result = fxprune.prune(net, x, 0.5, data=[x], compensate="bias")
    plan, traced = result.plan, result.analysis.traced
    assert plan.added == ("down.bias", "head.bias")
    assert plan.values["down.bias"].shape == (6,)
    assert result.module.down.bias.shape == (3,)
    close((result.module(x) - net(x)).mean(0), torch.zeros(3).double())
    assert net.down.bias is None
    assert traced.down.bias is None
    given = plan.values["down.bias"].clone()
    report = fxprune.verify(traced, plan, result.module, x[:7])
    assert report.ok, report
    assert torch.equal(plan.values["down.bias"], given)
    state = fxprune.apply(plan, net.state_dict())
    assert state.keys() == result.module.state_dict().keys()
    assert all(torch.equal(state[n], v) for n, v in result.module.state_dict().items())
    assert fxprune.apply(plan, {"down.weight": net.down.weight}).keys() == {
        "down.weight",
        "down.bias",
    }
    assert fxprune.restore(plan, state, net.state_dict()).keys() == net.state_dict().keys()
    cost = fxprune.cost(result.analysis, plan)
    assert cost.parameters == sum(p.numel() for p in result.module.parameters())
    assert cost.parameters == sum(node.parameters for node in cost.nodes)
    assert cost.nodes[-1].parameters == result.module.head.weight.numel() + 3
    fxprune.save(result, tmp_path)
    assert torch.equal(fxprune.load(tmp_path)(x), result.module(x))
    assert torch.equal(fxprune.load(tmp_path, lambda: Unbiased().double())(x), result.module(x))


def test_several_methods_are_one_call() -> None:
    """Both are edits of the plan; the statistics are those of the compensated network."""
    torch.manual_seed(0)
    net, x = randomized(Residual()), torch.randn(32, 2, 3, 3).double()
    methods = ["least_squares", "batch_norm"]
    result = fxprune.prune(net, x, 0.5, data=[x], compensate=methods)
    by_hand = fxprune.prune(net, x, 0.5, data=[x], compensate="least_squares").module
    fxprune.recalibrate(by_hand, [x])
    close(result.module(x), by_hand(x))
    assert "recalibrated" in result.plan.notes[-1]
    report = fxprune.verify(result.analysis.traced, result.plan, result.module, x)
    assert report.ok, report


@pytest.mark.parametrize("make", [Residual, Unbiased])
def test_values_survive_another_round(make: type[nn.Module]) -> None:
    """Of two compensated rounds as one plan, the second one's values are those that count."""
    torch.manual_seed(0)
    net = randomized(make()) if make is Residual else make().double().eval()
    x = torch.randn(32, 3).double() if make is Unbiased else torch.randn(32, 2, 3, 3).double()
    first = fxprune.prune(net, x, 0.25, data=[x], compensate="bias")
    for methods in (None, "bias", "least_squares"):
        second = fxprune.prune(first.module, x, 0.4, data=[x], compensate=methods)
        both = fxprune.compose(first.plan, second.plan)
        assert set(both.values) == set(first.plan.values) | set(second.plan.values)
        assert torch.equal(fxprune.rewrite(first.analysis.traced, both)(x), second.module(x))


def test_what_makes_no_sense_says_so() -> None:
    net, x = two(CASES[0])
    analysis = fxprune.analyze(fxprune.trace(net, x))
    plan = fxprune.plan(analysis, "magnitude", 0.5)
    with pytest.raises(PlanError, match="There is no compensation 'magic'"):
        fxprune.prune(net, x, 0.5, data=[x], compensate="magic")
    with pytest.raises(PlanError, match="needs data="):
        fxprune.prune(net, x, 0.5, compensate="bias")
    fixed = compensate(plan, analysis, "bias", [x])
    with pytest.raises(PlanError, match="compensate it once"):
        compensate(fixed, analysis, "bias", [x])
    with pytest.raises(PlanError, match="values of shape"):
        plan.with_values({"layer.weight": torch.zeros(1)}, "")
    for name in ("nowhere.bias", "layer.offset"):
        with pytest.raises(PlanError, match=f"no parameter '{name}'"):
            plan.with_values({name: torch.zeros(1)}, "")
    with pytest.raises(PlanError, match="comes before"):
        compensate(plan, analysis, ["bias", "obs"], [x])
