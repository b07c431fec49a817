"""The functions that SynFlow runs in place of the network's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.criteria.linearized import Linearized
from tests.criteria.networks import randomized


def linear(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with Linearized():
        return function(*args, **kwargs)


POSITIVE = torch.rand(2, 4, 3, 3, dtype=torch.float64) * 10 + 0.1

MODULES = [
    *(nn.GELU(), nn.SiLU(), nn.Mish(), nn.ELU(), nn.SELU(), nn.CELU(), nn.Softplus(), nn.Tanh()),
    *(nn.Hardswish(), nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.LeakyReLU(), nn.Softsign()),
    *(nn.SiLU(inplace=True), nn.ReLU6(inplace=True), nn.LocalResponseNorm(2), nn.LogSoftmax(1)),
]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "normalize": F.normalize,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "Tensor.tanh": Tensor.tanh,
    "Tensor.tanh_": Tensor.tanh_,
    "clamp": lambda x: x.clamp(0, 1),
    "clip": lambda x: torch.clip(x, max=2),
    "hardtanh": lambda x: F.hardtanh(x, 0, 6),
}

ACTIVATIONS = [
    *(pytest.param(module, id=repr(module)) for module in MODULES),
    *(pytest.param(function, id=name) for name, function in FUNCTIONS.items()),
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_pass_positive_numbers(activation: Callable[[Tensor], Tensor]) -> None:
    assert linear(activation, POSITIVE.clone()).equal(POSITIVE)


NORMS = [
    nn.BatchNorm2d(4),
    nn.BatchNorm2d(4, affine=False),
    nn.BatchNorm2d(4, track_running_stats=False),
    nn.InstanceNorm2d(4, affine=True),
    nn.GroupNorm(2, 4),
    nn.LayerNorm([3, 3]),
    nn.LayerNorm([3, 3], elementwise_affine=False),
]


@pytest.mark.parametrize("norm", NORMS, ids=repr)
def test_norms_scale_and_do_not_shift(norm: nn.Module) -> None:
    randomized(norm.double(), seed=0)
    parameters = dict(norm.named_parameters())
    weight = parameters.get("weight", torch.ones(1, dtype=torch.float64))
    scale = weight.reshape(-1, 1, 1) if weight.dim() == 1 else weight
    if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
        scale = scale / (norm.running_var + norm.eps).sqrt().reshape(-1, 1, 1)
    torch.testing.assert_close(linear(norm, POSITIVE), POSITIVE * scale)


def test_a_batch_norm_without_mean_and_shift_is_itself() -> None:
    norm = randomized(nn.BatchNorm2d(4).double(), seed=1)
    norm.running_mean.zero_()
    nn.init.zeros_(norm.bias)
    torch.testing.assert_close(linear(norm, POSITIVE), norm(POSITIVE))
    arguments = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    direct = linear(torch.batch_norm, POSITIVE, *arguments, False, 0.1, norm.eps, False)
    torch.testing.assert_close(direct, norm(POSITIVE))


@pytest.mark.parametrize("module", [nn.Sigmoid(), nn.Hardsigmoid(), nn.Softmax(-1)], ids=repr)
def test_gates_keep_their_value_and_pass_gradients_in_proportion(module: nn.Module) -> None:
    x = (POSITIVE / 4).requires_grad_()
    value = linear(module, x)
    torch.testing.assert_close(value, module(x))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(gradient, (module(x) / x).detach())


def test_a_masked_gate_has_no_gradient_where_it_is_closed() -> None:
    x = torch.tensor([1.0, 2.0, float("-inf"), 0.0], requires_grad=True)
    value = linear(torch.softmax, x, -1)
    torch.testing.assert_close(value, x.softmax(-1))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient[2:].tolist() == [0, 0]


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}, {"mask": "bool"}])
def test_attention_keeps_its_value(options: dict[str, Any]) -> None:
    q, k, v = torch.rand(3, 2, 4, 5, 6, dtype=torch.float64)
    if options.get("mask"):
        options = {"attn_mask": torch.rand(5, 5) > 0.3}
        options["attn_mask"].fill_diagonal_(True)
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    value = linear(F.scaled_dot_product_attention, q, k, v, **options)
    torch.testing.assert_close(value, expected)


def test_grouped_queries_keep_their_value() -> None:
    q, (k, v) = torch.rand(2, 4, 5, 6), torch.rand(2, 2, 2, 5, 6)
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    value = linear(F.scaled_dot_product_attention, q, k, v, enable_gqa=True)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("shape", [(5, 2), (5,)])
def test_multi_head_attention_keeps_its_value(separate: bool, shape: tuple[int, ...]) -> None:
    widths = {"kdim": 6, "vdim": 7} if separate else {}
    module = nn.MultiheadAttention(8, 2, bias=False, **widths).double()
    q = torch.rand(*shape, 8, dtype=torch.float64)
    k = torch.rand(*shape, widths.get("kdim", 8), dtype=torch.float64)
    v = torch.rand(*shape, widths.get("vdim", 8), dtype=torch.float64)
    torch.testing.assert_close(linear(module, q, k, v)[0], module(q, k, v)[0])


def test_an_rms_norm_is_divided_by_a_constant() -> None:
    norm = randomized(nn.RMSNorm(6).double(), seed=2)
    x = torch.rand(3, 6, dtype=torch.float64, requires_grad=True)
    value = linear(norm, x)
    torch.testing.assert_close(value, norm(x))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close((gradient * x).sum(), value.sum())

    def by_hand(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)) * norm.weight

    (same,) = torch.autograd.grad(linear(by_hand, x).sum(), x)
    torch.testing.assert_close(same, gradient)


def test_a_gated_linear_unit_keeps_its_value() -> None:
    x = torch.rand(3, 8, dtype=torch.float64)
    torch.testing.assert_close(linear(nn.GLU(), x), F.glu(x))


@pytest.mark.parametrize("call", [lambda e, x: e(x), lambda e, x: torch.embedding(e.weight, x)])
def test_embeddings_return_the_mean_row(call: Callable[..., Tensor]) -> None:
    embedding, tokens = nn.Embedding(7, 3), torch.tensor([[1, 6], [0, 0]])
    expected = embedding.weight.mean(0).expand(2, 2, 3)
    torch.testing.assert_close(linear(call, embedding, tokens), expected)


def test_bags_of_embeddings_return_the_mean_row() -> None:
    bag, tokens = nn.EmbeddingBag(7, 3), torch.tensor([1, 6, 0])
    value = linear(bag, tokens, torch.tensor([0, 2]))
    torch.testing.assert_close(value, bag.weight.mean(0).expand(2, 3))


def test_floating_numbers_stay_double_and_integers_stay_integers() -> None:
    x, n = torch.rand(2, dtype=torch.float64), torch.tensor([1, 9])
    assert linear(Tensor.float, x).dtype == torch.float64
    assert linear(Tensor.to, x, torch.bfloat16).dtype == torch.float64
    assert linear(Tensor.to, n, torch.float32).dtype == torch.float64
    assert linear(Tensor.to, n, torch.int32).dtype == torch.int32
    assert linear(Tensor.clamp, n, max=5).tolist() == [1, 5]
