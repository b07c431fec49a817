"""Samples of the pointwise ops, copies and factories."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tests.rules.harness import Sample, create, write
from tests.rules.samples.inputs import boolean, data, positive, real, sample, stored

aten = torch.ops.aten
fx.wrap("write")
fx.wrap("create")


def _add_in_place(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    x.add_(y)
    return x


def _activation_in_place(x: Tensor) -> Tensor:
    x = x.clone()
    x.relu_()
    x.clamp_(min=0.1)
    x.mul_(2.0)
    return x


def _copy_in_place(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    x.copy_(y)
    return x


def _write_slice(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    write(x, (slice(None), slice(1, 3)), y)
    return x


def _write_view(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    x[:, :3].add_(y)
    return x


def _write_columns(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    write(x, (slice(None), 2), y)
    return x


def _fill_zeros(x: Tensor) -> Tensor:
    out = x.new_zeros(4, 5)
    write(out, (slice(None), slice(0, 3)), x)
    return out


POINTWISE: tuple[Sample, ...] = (
    sample("where", torch.where, boolean(4, 3), real(4, 3), real(4, 3)),
    sample("where", lambda c, x: torch.where(c, x, 0.5), boolean(3), real(4, 3)),
    sample("where", lambda c, x, y: torch.where(c, x, y), boolean(4, 1), real(5, 4, 3), real(3)),
    sample("masked_fill", lambda x, m: x.masked_fill(m, 2.0), real(4, 3), boolean(4, 3)),
    sample(
        "masked_fill",
        lambda x, m: x.masked_fill(m, float("-inf")),
        real(2, 4, 3),
        boolean(3),
        over_flagged="minus infinity swallows whatever it is added to",
    ),
    sample("masked_fill", lambda x, m, v: x.masked_fill(m, v), real(4, 3), boolean(4, 3), real()),
    sample("masked_fill", lambda x, m: x.clone().masked_fill_(m, 0.0), real(4, 3), boolean(4, 3)),
    sample("lerp", lambda x, y: torch.lerp(x, y, 0.3), real(4, 3), real(4, 3)),
    sample("lerp", lambda x, y, w: torch.lerp(x, y, w), real(4, 3), real(3), real(4, 1)),
    sample("clamp", lambda x: x.clamp(-0.5, 0.5), real(4, 3)),
    sample("clamp", lambda x, y: x.clamp(min=y), real(4, 3), real(3)),
    sample("clamp_min", lambda x: x.clamp_min(0.1), real(4, 3)),
    sample("clamp_max", lambda x: x.clamp_max(0.1), real(4, 3)),
    sample("native_dropout", lambda x: aten.native_dropout(x, 0.5, True), real(4, 3), random=True),
    sample("bernoulli", lambda p: torch.bernoulli(p), positive(4, 3), random=True),
    sample("rrelu_with_noise", lambda x: F.rrelu(x), real(4, 3)),
    sample("nan_to_num", torch.nan_to_num, real(4, 3)),
    sample("fmod", lambda x: torch.fmod(x, 0.7), real(4, 3)),
    sample("remainder", lambda x, y: torch.remainder(x, y), real(4, 3), positive(3)),
    sample("floor_divide", lambda x, y: torch.floor_divide(x, y), real(4, 3), positive(3)),
    sample("rsub", lambda x, y: torch.rsub(x, y, alpha=2), real(4, 3), real(3)),
    sample("uniform", lambda x: x.clone().uniform_(), real(4, 3), random=True),
    sample("normal", lambda x: x.clone().normal_(), real(4, 3), random=True),
    sample("exponential", lambda x: x.clone().exponential_(), real(4, 3), random=True),
    sample("gelu", F.gelu, real(4, 3)),
    sample("silu", F.silu, real(4, 3)),
    sample("mish", F.mish, real(4, 3)),
    sample("celu", F.celu, real(4, 3)),
    sample("elu", F.elu, real(4, 3)),
    sample("elu", F.selu, real(4, 3)),
    sample("softplus", F.softplus, real(4, 3)),
    sample("hardsigmoid", F.hardsigmoid, real(4, 3)),
    sample("hardswish", F.hardswish, real(4, 3)),
    sample("hardtanh", F.hardtanh, real(4, 3)),
    sample("leaky_relu", F.leaky_relu, real(4, 3)),
    sample("log_sigmoid_forward", F.logsigmoid, real(4, 3)),
    sample("threshold", lambda x: F.threshold(x, 0.1, 20.0), real(4, 3)),
    sample("softshrink", F.softshrink, real(4, 3)),
    sample("hardshrink", F.hardshrink, real(4, 3)),
    sample("addcmul", torch.addcmul, real(4, 3), real(3), real(4, 1)),
    sample("addcdiv", torch.addcdiv, real(4, 3), real(3), positive(4, 1)),
    sample("fill", lambda x: torch.fill(x, 2.0), real(4, 3)),
    sample("zero", lambda x: x.clone().zero_(), real(4, 3)),
    sample("glu", lambda x: F.glu(x, dim=1), real(4, 6)),
    sample("glu", lambda x: F.glu(x), real(2, 3, 8)),
    sample("clone", lambda x: x.clone(), real(4, 3)),
    sample("detach", lambda x: x.detach(), real(4, 3)),
    sample("alias", lambda x: aten.alias(x), real(4, 3)),
    sample("_to_copy", lambda x: x.to(torch.float32), real(4, 3)),
    sample("lift_fresh", lambda x: aten.lift_fresh(x), real(4, 3)),
    sample("lift_fresh_copy", lambda x: aten.lift_fresh_copy(x), real(4, 3)),
    sample("lift", lambda x: aten.lift(x), real(4, 3)),
    sample("copy", _copy_in_place, real(4, 3), real(3)),
    sample("copy", _write_slice, real(4, 5), real(4, 2)),
    sample("copy", _write_columns, real(4, 5), real(4)),
    sample("copy", _fill_zeros, real(4, 3)),
    sample("clone", _add_in_place, real(4, 3), real(3)),
    sample("clone clamp", _activation_in_place, real(4, 3)),
    sample("clone slice", _write_view, real(4, 5), real(4, 3)),
    sample("_prelu_kernel", F.prelu, real(4, 3), real(3)),
    sample("_prelu_kernel", F.prelu, real(2, 3, 4, 5), real(3)),
    sample("_prelu_kernel", F.prelu, real(2, 3, 4), real(1)),
)

# Binary and unary ops by torch's pointwise tag: a handful that mix broadcasting and fills.
TAGGED: tuple[Sample, ...] = (
    sample("", torch.add, real(4, 3), real(4, 3)),
    sample("", lambda x, y: x + 2 * y, real(5, 4, 3), real(4, 1)),
    sample("", lambda x, y: x * y, real(4, 3), real(3)),
    sample("", lambda x, y: x / y, real(4, 3), positive(3)),
    sample("", lambda x, y: x / (y + 1e-3), real(4, 3), positive(4, 3)),
    sample("", lambda x, y: torch.maximum(x, y), real(4, 3), real(4, 3)),
    sample(
        "",
        lambda x, y: torch.pow(x, y),
        positive(4, 3),
        positive(3),
        over_flagged="the exponents are positive, which the analysis does not know",
    ),
    sample("", lambda x: 1.0 / x, positive(4, 3)),
    sample("", lambda x: torch.rsqrt(x + 1e-5), positive(4, 3)),
    sample("", lambda x: torch.log(x), positive(4, 3)),
    sample("", torch.sigmoid, real(4, 3)),
    sample("", torch.tanh, real(4, 3)),
    sample("", torch.exp, real(4, 3)),
    sample("", torch.cos, real(4, 3)),
    sample("", lambda x: x.relu() - x.abs(), real(4, 3)),
    sample("", lambda x, y: (x > y).to(x.dtype), real(4, 3), real(3)),
    sample("", lambda x, y: torch.logical_and(x > 0, y), real(4, 3), boolean(3)),
    sample("", lambda x, y: x.eq(y), real(4, 3), real(4, 3)),
    sample("", lambda x, y: x.add(y, alpha=2), real(4, 3), data(4, 3)),
    sample("", lambda x, y: x * y, stored(7, 4, 3), stored(5, 3)),
)

FACTORIES: tuple[Sample, ...] = (
    sample("zeros", lambda x: create(x, "zeros", 4, 3, dtype=x.dtype) + x, real(4, 3)),
    sample("ones", lambda x: create(x, "ones", 4, 3, dtype=torch.float64) * x, real(4, 3)),
    sample("full", lambda x: create(x, "full", (4, 3), 2.0, dtype=torch.float64) * x, real(4, 3)),
    sample(
        "empty", lambda x: create(x, "empty", 4, 3, dtype=torch.float64).fill_(1.0) * x, real(4, 3)
    ),
    sample("scalar_tensor", lambda x: create(x, "scalar_tensor", 2.0) * x, real(4, 3)),
    sample("new_zeros", lambda x: x.new_zeros(4, 3) + x, real(4, 3)),
    sample("new_zeros", lambda x: torch.cat([x.new_zeros(4, 2), x], 1), real(4, 3)),
    sample("new_ones", lambda x: x.new_ones(4, 3) * x, real(4, 3)),
    sample("new_full", lambda x: x.new_full((4, 3), 2.0) * x, real(4, 3)),
    sample("new_empty", lambda x: x.new_empty(4, 3).zero_() + x, real(4, 3)),
    sample(
        "empty_strided",
        lambda x: create(x, "empty_strided", (4, 3), (3, 1)).zero_() + x,
        real(4, 3),
    ),
    sample(
        "empty_permuted",
        lambda x: create(x, "empty_permuted", (4, 3), (1, 0)).zero_() + x,
        real(4, 3),
    ),
    sample(
        "new_empty_strided",
        lambda x: x.new_empty_strided((4, 3), (3, 1)).zero_() + x,
        real(4, 3),
    ),
    sample("zeros_like", lambda x, y: torch.zeros_like(x) + y, real(4, 3), real(4, 3)),
    sample("ones_like", lambda x, y: torch.ones_like(x) * y, real(4, 3), real(4, 3)),
    sample("full_like", lambda x, y: torch.full_like(x, 3.0) * y, real(4, 3), real(4, 3)),
    sample("empty_like", lambda x, y: torch.empty_like(x).zero_() + y, real(4, 3), real(4, 3)),
    sample("rand_like", torch.rand_like, real(4, 3), random=True),
    sample("randn_like", torch.randn_like, real(4, 3), random=True),
    sample("randint_like", lambda x: torch.randint_like(x, 5), real(4, 3), random=True),
    sample("arange", lambda x: x + create(x, "arange", 3), real(4, 3)),
    sample("linspace", lambda x: x + create(x, "linspace", 0, 1, 3), real(4, 3)),
    sample("logspace", lambda x: x + create(x, "logspace", 0, 1, 3), real(4, 3)),
    sample("eye", lambda x: x + create(x, "eye", 3), real(3, 3)),
    sample("rand", lambda x: x + create(x, "rand", 3), real(4, 3), random=True),
    sample("randn", lambda x: x + create(x, "randn", 3), real(4, 3), random=True),
    sample("randint", lambda x: x + create(x, "randint", 5, (3,)), real(4, 3), random=True),
    sample("randperm", lambda x: x + create(x, "randperm", 3), real(4, 3), random=True),
    sample("tril_indices", lambda x: x + create(x, "tril_indices", 3, 3), real(2, 6)),
    sample("triu_indices", lambda x: x + create(x, "triu_indices", 3, 3), real(2, 6)),
    sample("hann_window", lambda x: x * create(x, "hann_window", 3), real(4, 3)),
    sample("hamming_window", lambda x: x * create(x, "hamming_window", 3), real(4, 3)),
)
