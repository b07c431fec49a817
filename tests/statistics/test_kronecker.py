"""Kronecker factors: equal to their definition, and exact where theory says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

import fxprune
from fxprune.statistics import BlockDiagonalWarning, KroneckerFactors
from fxprune.statistics.objective import Loss
from tests.statistics.layers import (
    CASES,
    Case,
    Net,
    factors,
    reduced_factors,
    statistics_of,
    weight_gradients,
)
from tests.statistics.networks import randomized

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))


def problem(case: Case, samples: int = 5) -> tuple[Net, Tensor, Tensor]:
    torch.manual_seed(0)
    net = Net(case).double().eval()
    return net, torch.randn(samples, *case.shape).double(), torch.randint(3, (samples,))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@each_case
def test_factors_are_their_definition(case: Case) -> None:
    net, x, y = problem(case)
    found = statistics_of(net, [(x[:3], y[:3]), (x[3:], y[3:])], x).kronecker()["layer"]
    inputs, outputs = factors(net, net.layer, x, y)
    close(found.inputs, inputs)
    close(found.outputs, outputs)
    assert found.has_bias == (net.layer.bias is not None)
    assert found.is_whole


@each_case
def test_reduced_factors_are_their_definition(case: Case) -> None:
    net, x, y = problem(case)
    found = statistics_of(net, [(x, y)], x, micro_batch=2).kronecker("reduced")["layer"]
    inputs, outputs = reduced_factors(net, net.layer, x, y)
    close(found.inputs, inputs)
    close(found.outputs, outputs)


@each_case
def test_moments_are_those_of_the_gradients_of_samples(case: Case) -> None:
    net, x, y = problem(case)
    statistics = statistics_of(net, [(x, y)], x)
    gradients = weight_gradients(net, net.layer, x, y)
    _, groups, outputs, inputs = gradients.shape
    torch.manual_seed(1)
    left = torch.linalg.qr(torch.randn(groups, outputs, outputs).double())[0]
    right = torch.linalg.qr(torch.randn(groups, inputs, inputs).double())[0]
    found = statistics.kronecker_moments({"layer": (left, right)})["layer"]
    close(found, (left.mT @ gradients @ right).square().mean(0))


@each_case
def test_moments_in_the_basis_of_channels_rotate_each_kernel_position_alike(case: Case) -> None:
    net, x, y = problem(case)
    gradients = weight_gradients(net, net.layer, x, y)[..., : net.layer.weight[0].numel()]
    channels = net.layer.weight.shape[1]
    torch.manual_seed(1)
    right = torch.linalg.qr(torch.randn(channels, channels).double())[0]
    left = torch.eye(gradients.shape[2]).double()
    moments = statistics_of(net, [(x, y)], x).kronecker_moments({"layer": (left, right)})
    apart = gradients.unflatten(-1, (channels, -1))
    turned = torch.einsum("ngock,cd->ngodk", apart, right).flatten(-2)
    close(moments["layer"], turned.square().mean(0))


ONE_POSITION = (
    Case("linear", lambda: nn.Linear(4, 3), (4,)),
    Case("conv1d dilated", lambda: nn.Conv1d(2, 3, 2, dilation=2), (2, 3)),
    Case("conv2d grouped", lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 3, 3)),
    Case("conv2d padded", lambda: nn.Conv2d(2, 3, 3, padding=1, bias=False), (2, 1, 1)),
    Case("conv2d strided", lambda: nn.Conv2d(2, 3, 2, stride=2, padding=1, dilation=2), (2, 2, 2)),
)
each_exact = pytest.mark.parametrize("case", ONE_POSITION, ids=lambda c: c.name.replace(" ", "_"))


@each_exact
def test_one_sample_with_one_position_is_exact(case: Case) -> None:
    exact(*problem(case, 1))


@each_exact
def test_all_pairs_of_inputs_and_gradients_are_exact(case: Case) -> None:
    """Where every input meets every gradient, they are independent."""
    net, x, _ = problem(case, 3)
    slopes = torch.randn(4, *net.layer(x).shape[1:]).double()
    data = x.repeat_interleave(4, 0), slopes.repeat(3, *[1] * (slopes.dim() - 1))
    exact(net.layer, *data, loss=lambda z, y: (z * y).sum() / len(z))


@each_exact
def test_a_squared_loss_has_the_identity_as_its_output_factor(case: Case) -> None:
    """Errors of ±√d along each output stand for those of a normal distribution: E[e eᵀ] = 1."""
    net, x, _ = problem(case, 3)
    size = net.layer(x).shape[1]
    errors = torch.cat([torch.eye(size), -torch.eye(size)]).double() * size**0.5
    inputs = x.repeat_interleave(2 * size, 0)
    outputs = net.layer(inputs)
    targets = (outputs - errors.repeat(3, 1).reshape(outputs.shape)).detach()
    loss = lambda z, y: 0.5 * (z - y).square().sum() / len(z)  # noqa: E731
    found = exact(net.layer, inputs, targets, loss=loss)
    groups = getattr(net.layer, "groups", 1)
    close(found.outputs, torch.eye(size // groups).double().repeat(groups, 1, 1))


def exact(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss = functional.cross_entropy
) -> KroneckerFactors:
    """Assert that S ⊗ A is the Fisher information of the layer."""
    layer = model.layer if isinstance(model, Net) else model
    wrapped = model if isinstance(model, Net) else Alone(model)
    found = statistics_of(wrapped, [(x, y)], x, loss=loss).kronecker()["layer"]
    gradients = weight_gradients(wrapped, layer, x, y, loss).transpose(0, 1).flatten(2)
    fisher = gradients.mT @ gradients / len(x)
    for group in range(found.groups):
        close(torch.kron(found.outputs[group], found.inputs[group]), fisher[group])
    return found


class Alone(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.readout = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


def test_a_layer_used_twice_has_the_sum_of_its_uses() -> None:
    torch.manual_seed(0)
    net, x, y = Shared().double(), torch.randn(4, 4).double(), torch.randint(3, (4,))
    statistics = statistics_of(net, [(x, y)], x)
    for positions, literal in (("expanded", factors), ("reduced", reduced_factors)):
        inputs, outputs = literal(net, net.layer, x, y)
        found = statistics.kronecker(positions)["layer"]  # type: ignore[arg-type]
        close(found.inputs, inputs)
        close(found.outputs, outputs)
    moments = statistics.kronecker_moments({"layer": (torch.eye(4), torch.eye(5))})["layer"]
    close(moments[0], weight_gradients(net, net.layer, x, y)[:, 0].square().mean(0))


class Positioned(nn.Module):
    """A layer that reads a table of positions, the same for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Parameter(torch.randn(5, 4)), nn.Linear(4, 4)
        self.readout = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(torch.tanh(x + self.layer(self.table)).flatten(1))


def test_a_layer_that_samples_share_is_seen_sample_by_sample() -> None:
    torch.manual_seed(0)
    net, x, y = Positioned().double(), torch.randn(4, 5, 4).double(), torch.randint(3, (4,))
    statistics = statistics_of(net, [(x, y)], x)
    gradients = weight_gradients(net, net.layer, x, y)[:, 0]
    outputs = gradients[:, :, -1:] @ gradients[:, :, -1:].mT  # the bias's are Σ_t ds
    close(statistics.kronecker("reduced")["layer"].outputs[0], outputs.mean(0))
    found = statistics.kronecker()
    rows = torch.cat([net.table, torch.ones(5, 1)], 1).detach().double()
    close(found["layer"].inputs[0], rows.mT @ rows / 5)
    close(found["readout"].outputs[0], factors(net, net.readout, x, y)[1][0])


def test_a_norm_is_folded_like_torch_folds_it() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
    randomized(norm)
    net = nn.Sequential(conv, norm, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 3)).double()
    x, y = torch.randn(4, 3, 3, 3).double(), torch.randint(3, (4,))
    fused = nn.Sequential(fuse_conv_bn_eval(conv.eval(), norm.eval()), *net[2:]).eval()
    found = statistics_of(net, [(x, y)], x).kronecker(fold=True)["0"]
    expected = statistics_of(fused, [(x, y)], x).kronecker()["0"]
    assert found.folded
    assert found.has_bias
    close(found.inputs, expected.inputs)
    close(found.outputs, expected.outputs)
    assert not statistics_of(net, [(x, y)], x).kronecker()["0"].folded


def test_rows_of_a_fused_projection_have_factors_of_their_own() -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 6, dropout=0.0, batch_first=True).double().eval()
    x, y = torch.randn(3, 4, 8).double(), torch.randn(3, 4, 8).double()
    loss = lambda z, y: (z * y).sum() / len(z)  # noqa: E731
    statistics = statistics_of(net, [(x, y)], x, loss=loss)
    found = statistics.kronecker("reduced")
    name = "self_attn.in_proj_weight"
    parts = [found[f"{name}[{start}:{start + 8}]"] for start in (0, 8, 16)]
    assert [one.layer.rows for one in parts] == [(0, 8), (8, 16), (16, 24)]
    fisher = statistics.fisher_diag()["self_attn.in_proj_bias"]  # of the bias it is exact
    close(torch.cat([one.outputs[0].diagonal() for one in parts]), fisher)


def test_factors_beyond_the_memory_are_blocks_of_the_whole_ones() -> None:
    net, x, y = problem(CASES[4])
    statistics = statistics_of(net, [(x, y)], x)
    whole = statistics.kronecker()["layer"]
    with pytest.warns(BlockDiagonalWarning, match="layer"):
        cut = statistics.kronecker(memory=8 * 28 * 10)["layer"]
    assert not cut.is_whole
    assert [block.shape[-1] for block in cut.input_blocks] == [9, 9, 9, 1]  # channel by channel
    mask = torch.block_diag(*(torch.ones_like(block[0]) for block in cut.input_blocks))
    close(cut.inputs, whole.inputs * mask)
    close(cut.outputs, whole.outputs)


def test_channels_average_over_kernel_positions() -> None:
    net, x, y = problem(CASES[4])
    found = statistics_of(net, [(x, y)], x).kronecker()["layer"]
    expected = sum(found.inputs[:, k:27:9, k:27:9] for k in range(9)) / 9
    close(found.channels, expected)


def test_an_unknown_layer_is_an_error() -> None:
    net, x, y = problem(CASES[0])
    with pytest.raises(fxprune.AnalysisError, match="no linear layer or convolution 'nowhere'"):
        statistics_of(net, [(x, y)], x).kronecker_moments({"nowhere": (torch.eye(1), torch.eye(1))})
