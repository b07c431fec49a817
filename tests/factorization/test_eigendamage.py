"""The eigenbasis of the Kronecker-factored Fisher information: its identities, in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.discrepancy import max_error
from fxprune.factorization import FactorLayer, factor_layers, factored, plan_factorization
from fxprune.factorization.bases import Rotated, core
from fxprune.factorization.eigendamage import eigenbases, in_eigenbasis, with_moments
from fxprune.factorization.planning import leading
from fxprune.factorization.ranks import Prospect
from fxprune.plans import Bases, FactorizationPlan
from fxprune.statistics import Statistics
from fxprune.statistics.channels import ChannelFactors
from tests.factorization.networks import LAYERS, network, random_bases

EXACT = 1e-12


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum() / len(output)


def measured(name: str, seed: int = 0) -> tuple[nn.Module, Tensor, FactorLayer, Statistics]:
    """A network, an input, its one layer, and its statistics on targets of noise."""
    model, x = network(name, seed)
    traced = fxprune.trace(model, x)
    analysis = fxprune.analyze(traced)
    target = torch.randn_like(model(x))
    (layer,) = factor_layers(analysis)[0].values()
    data = [(x[:2], target[:2]), (x[2:], target[2:])]
    return model, x, layer, Statistics(analysis, data, squared, "empirical")


def channel_factors(statistics: Statistics) -> SimpleNamespace:
    """A and S of the one layer."""
    found = statistics.channel_factors["layer"]
    return SimpleNamespace(inputs=found.inputs[0], outputs=found.outputs[0])


def eigenbasis(layer: FactorLayer, statistics: Statistics, old: Bases | None = None) -> Rotated:
    current = {} if old is None else {"layer": old}
    return eigenbases({"layer": layer}, statistics, current, 0.0)["layer"]


def factors_of(inputs: Tensor, outputs: Tensor) -> ChannelFactors:
    return ChannelFactors(inputs[None], outputs[None])


def target_of(statistics: Statistics) -> Tensor:
    return torch.cat([target for _, target in statistics._passes.data])


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """What each output position reads of each sample: [samples, positions, channels, taps]."""
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1], 1)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    channels, kernel = x.shape[1], layer.kernel_size
    taps = int(torch.tensor(kernel).prod())
    # A convolution that copies each tap of each channel to an output of its own.
    copies = torch.eye(channels * taps, dtype=x.dtype).reshape(-1, channels, *kernel)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1]
    read = convolve(x, copies, None, layer.stride, 0, layer.dilation)
    return read.flatten(2).transpose(1, 2).unflatten(2, (channels, taps))


@pytest.mark.parametrize("name", LAYERS)
def test_factors_are_what_their_definition_says(name: str) -> None:
    model, x, _, statistics = measured(name)
    read = patches(model.layer, x.sin())
    samples, positions, channels, taps = read.shape
    inputs = torch.zeros(channels, channels, dtype=torch.float64)
    for tap in range(taps):
        for sample in range(samples):
            inputs += read[sample, :, :, tap].T @ read[sample, :, :, tap]
    before = model.layer(x.sin()).requires_grad_()
    total = squared(torch.tanh(before), target_of(statistics)) * samples
    (gradient,) = torch.autograd.grad(total, before)
    rows = gradient if x.dim() == 2 else gradient.movedim(-1 if "linear" in name else 1, -1)
    rows = rows.reshape(-1, model.layer.weight.shape[0])
    found = channel_factors(statistics)
    assert max_error(found.inputs, inputs / (samples * positions * taps)) < EXACT
    assert max_error(found.outputs, rows.T @ rows / samples) < EXACT
    whole = statistics.kronecker()["layer"]
    assert max_error(found.inputs, whole.channels[0]) < EXACT
    assert max_error(found.outputs, whole.outputs[0]) < EXACT


@pytest.mark.parametrize("name", LAYERS)
def test_saliencies_sum_to_the_trace(name: str) -> None:
    """ΣΘ = ½ tr(S W A Wᵀ), tap by tap."""
    _, _, layer, statistics = measured(name)
    factors = channel_factors(statistics)
    total = torch.zeros((), dtype=torch.float64)
    for tap in layer.weight.unbind(2):
        total += 0.5 * torch.trace(factors.outputs @ tap @ factors.inputs @ tap.T)
    assert max_error(eigenbasis(layer, statistics).saliency.sum(), total) < EXACT


@pytest.mark.parametrize("name", LAYERS)
def test_a_set_costs_its_union(name: str) -> None:
    """The predicted loss of ranks is ½ tr(S ΔW A ΔWᵀ) of what the projection removes."""
    _, _, layer, statistics = measured(name)
    factors = channel_factors(statistics)
    rotated = eigenbasis(layer, statistics)
    prospect = Prospect(rotated, layer.sizes)
    rows, columns = (size // 2 for size in rotated.saliency.shape)
    for choice in ((rows, columns), (rows, 0), (0, columns)):
        removed = layer.weight - leading(layer, rotated, choice).project(layer.weight)
        curved = torch.einsum("op,pit,ij->ojt", factors.outputs, removed, factors.inputs)
        assert prospect.loss(choice) == pytest.approx(float(0.5 * (removed * curved).sum()))
    sums = rotated.saliency.sum(1)[rows:].sum() + rotated.saliency.sum(0)[columns:].sum()
    assert prospect.loss((rows, columns)) < float(sums)


@pytest.mark.parametrize("name", LAYERS)
def test_exact_in_the_real_eigenbasis_when_nothing_is_removed(name: str) -> None:
    model, x, layer, statistics = measured(name)
    rotated = eigenbasis(layer, statistics)
    bases = {"layer": Bases(rotated.inputs, rotated.outputs)}
    analysis = statistics.analysis
    module = factored(analysis.traced, FactorizationPlan.build(analysis, bases))
    assert max_error(module(x), model(x)) < EXACT


@pytest.mark.parametrize("name", ["linear over tokens, no bias", "conv1d", "conv2d strided", "1x1"])
def test_moments_are_those_of_the_gradient_by_the_core(name: str) -> None:
    """Sample by sample, the gradient by the weight in the bases, squared (EKFAC)."""
    model, x, layer, statistics = measured(name)
    found = with_moments({"layer": layer}, statistics, {}, 0.0)["layer"]
    expected = torch.zeros_like(found.saliency)
    weight = model.layer.weight.requires_grad_()
    for one, target in zip(x.split(1), target_of(statistics).split(1), strict=True):
        (gradient,) = torch.autograd.grad(squared(model(one), target), weight)
        turned = core(gradient.reshape(layer.weight.shape), found.inputs, found.outputs)
        entries = core(layer.weight, found.inputs, found.outputs)
        expected += 0.5 * (entries.square() * turned.square()).sum(2) / len(x)
    assert max_error(found.saliency, expected) < EXACT


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    outputs=st.integers(1, 6),
    inputs=st.integers(1, 6),
    taps=st.sampled_from([1, 4]),
)
def test_identities_hold_for_any_factors(seed: int, outputs: int, inputs: int, taps: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    weight = drawn(outputs, inputs, taps)
    a, s = drawn(inputs, inputs + 1), drawn(outputs, outputs)[:, :2]  # S may lack full rank
    rotated = in_eigenbasis(weight, factors_of(a @ a.T, s @ s.T))
    trace = torch.einsum("op,pit,ij,ojt->", s @ s.T, weight, a @ a.T, weight)
    assert max_error(rotated.saliency.sum(), 0.5 * trace) < 1e-10
    assert bool((rotated.saliency.sum(1).diff() <= 0).all())
    assert bool((rotated.saliency.sum(0).diff() <= 0).all())


@pytest.mark.parametrize("name", ["linear", "conv2d strided"])
def test_damping_is_that_of_the_factors(name: str) -> None:
    """A + π√δ and S + √δ/π: the same bases and the trace of the damped factors, moments or not."""
    _, _, layer, statistics = measured(name)
    factors, share = channel_factors(statistics), 0.01
    mean_a = torch.trace(factors.inputs) / len(factors.inputs)
    mean_s = torch.trace(factors.outputs) / len(factors.outputs)
    pi, delta = (mean_a / mean_s).sqrt(), share * mean_a * mean_s
    a = factors.inputs + pi * delta.sqrt() * torch.eye(len(factors.inputs)).double()
    s = factors.outputs + delta.sqrt() / pi * torch.eye(len(factors.outputs)).double()
    expected = in_eigenbasis(layer.weight, factors_of(a, s)).saliency.sum()
    plain = in_eigenbasis(layer.weight, factors_of(factors.inputs, factors.outputs)).saliency.sum()
    found = eigenbases({"layer": layer}, statistics, {}, share)["layer"]
    assert max_error(found.saliency.sum(), expected) < EXACT
    measured_, undamped = (
        with_moments({"layer": layer}, statistics, {}, each)["layer"].saliency.sum()
        for each in (share, 0.0)
    )
    assert max_error(measured_ - undamped, expected - plain) < 1e-10


def test_the_prediction_is_exact_for_a_linear_layer_at_its_optimum() -> None:
    """Squared loss with S = I: no other network is needed to know the rise of the loss."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, dtype=torch.float64, generator=generator)
    weight = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    rotated = in_eigenbasis(weight[:, :, None], factors_of(x.T @ x / len(x), torch.eye(4).double()))
    for rows, columns in ((2, None), (None, 3), (2, 3)):
        inputs = None if columns is None else rotated.inputs[:, :columns]
        outputs = None if rows is None else rotated.outputs[:, :rows]
        left = Bases(inputs, outputs).project(weight)
        rise = 0.5 * (x @ (left - weight).T).square().sum(1).mean()
        predicted = rotated.saliency.sum() - rotated.saliency[:rows, :columns].sum()
        assert max_error(predicted, rise) < EXACT


def test_a_further_step_rotates_inside_of_what_is_left() -> None:
    """Q ← Q_old Q_new: the new directions lie in the old ones, and are orthonormal."""
    _, _, layer, statistics = measured("conv2d padded")
    old = random_bases(layer.module, 4, 2)
    rotated = eigenbasis(layer, statistics, old)
    assert rotated.saliency.shape == (4, 2)
    for new, before in ((rotated.inputs, old.inputs), (rotated.outputs, old.outputs)):
        assert max_error(before @ before.T @ new, new) < EXACT
        assert max_error(new.T @ new, torch.eye(new.shape[1]).double()) < EXACT
    projected = old.project(layer.weight)
    assert max_error(Bases(rotated.inputs, rotated.outputs).project(projected), projected) < EXACT


def digits_like() -> tuple[nn.Module, Tensor, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 16, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 10),
    )
    x = torch.randn(8, 1, 8, 8, dtype=torch.float64)
    data = [(x, torch.randint(10, (8,)))]
    return model.double().eval(), x, data


def test_steps_reach_the_budget_and_leave_the_model_alone() -> None:
    model, x, data = digits_like()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = fxprune.factorize(model, x, data=iter(data), budget=fxprune.Budget(macs=0.4), steps=3)
    assert result.report.macs_after <= 0.4 * result.report.macs_before
    assert result.plan.notes == (
        "Kronecker factors are damped by 0.001",
        "The budget was reached in 3 steps",
    )
    assert fxprune.verify(result.analysis.traced, result.plan, result.module, x[:3]).ok
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in result.module.modules())


def test_the_seed_of_the_labels_makes_results_repeat() -> None:
    model, x, data = digits_like()
    budget = fxprune.Budget(macs=0.5)
    first, second = (fxprune.factorize(model, x, data=data, budget=budget) for _ in range(2))
    assert first.plan.to_json() == second.plan.to_json()


def test_what_cannot_be_asked_for_is_an_error() -> None:
    model, x, data = digits_like()
    analysis = fxprune.analyze(fxprune.trace(model, x))
    budget = fxprune.Budget(macs=0.5)
    statistics = Statistics(analysis, data, labels="model")
    assert plan_factorization(analysis, data=statistics, budget=budget).layers
    for kwargs, message in (
        ({"budget": budget}, "needs data="),
        ({"method": "svd", "data": data, "budget": budget}, "leave data= out"),
        ({"method": "pca", "budget": budget}, "method is one of 'svd', 'tucker', 'eigendamage', "),
        ({"data": data}, "a budget, such as"),
        ({"data": data, "budget": budget, "energy": 0.5}, "not both"),
        ({"data": data, "energy": 1.5}, r"in \(0, 1\]; got 1.5"),
        ({"data": data, "budget": fxprune.Budget(activation_memory=0.5)}, "adds activations"),
        ({"data": data, "budget": budget, "damping": -1.0}, "at least 0; got -1.0"),
        ({"data": data, "budget": budget, "steps": 0}, "at least 1; got 0"),
        ({"method": "svd", "budget": budget, "steps": 2}, "Several steps need"),
        ({"data": statistics, "budget": budget, "steps": 2}, "of one network"),
        ({"data": data, "budget": budget, "spread": "even"}, "spread is one of 'price'"),
        ({"data": data, "budget": budget, "ignore": "layer4"}, "'layer4' names no linear layer"),
        ({"data": [(x / 0, data[0][1])], "budget": budget}, "not finite"),
    ):
        with pytest.raises(fxprune.PlanError, match=message):
            plan_factorization(analysis, **kwargs)


def test_dead_directions_go_first() -> None:
    """Inputs that are always zero have no saliency."""
    inputs = torch.diag(torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=torch.float64))
    rotated = in_eigenbasis(torch.ones(3, 4, 1).double(), factors_of(inputs, torch.eye(3).double()))
    assert rotated.saliency[:, 2:].count_nonzero() == 0
    assert rotated.saliency[:, :2].sum() > 0
