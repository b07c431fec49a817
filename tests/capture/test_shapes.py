"""The shape rules answer as torch's own meta kernels do, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capture import shapes


def described(value: Any) -> list[Any]:
    leaves = pytree.tree_leaves(value)
    return [(t.shape, t.dtype, t.stride(), t.device.type) for t in leaves]


def image(channels: int = 6, *size: int) -> Tensor:
    return torch.empty(2, channels, *(size or (9, 12)), device="meta")


MODULES: list[tuple[Any, Tensor]] = [
    (nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=2), image()),
    (nn.Conv2d(6, 8, (3, 1), padding="same"), image()),
    (nn.Conv2d(6, 6, 3, groups=6), image()),
    (nn.Conv1d(6, 4, 5, padding=2), torch.empty(2, 6, 11, device="meta")),
    (nn.Conv3d(6, 4, 3), torch.empty(2, 6, 5, 6, 7, device="meta")),
    (nn.ConvTranspose2d(6, 4, 3, stride=2), image()),
    (nn.BatchNorm2d(6), image()),
    (nn.BatchNorm1d(6), torch.empty(4, 6, device="meta")),
    (nn.GroupNorm(3, 6), image()),
    (nn.LayerNorm((9, 12)), image()),
    (nn.LayerNorm(12), image().transpose(1, 2)),
    (nn.Linear(12, 5), image()),
    (nn.Linear(12, 5), torch.empty(12, device="meta")),
    (nn.GELU(), image().transpose(1, 2)),
    (nn.GELU(), image()),
    (nn.Hardswish(), image()),
    (nn.ReLU(inplace=True), image()),
    (nn.Softmax(-1), image()),
    (nn.Dropout(), image()),
    (nn.Dropout(inplace=True), image()),
    (nn.Dropout(0.0), image()),
    (nn.Dropout2d(), image()),
    (nn.Identity(), image()),
    (nn.LSTM(12, 5, 2, bidirectional=True), torch.empty(7, 3, 12, device="meta")),
    (nn.LSTM(12, 5, proj_size=2, batch_first=True), torch.empty(7, 3, 12, device="meta")),
    (nn.GRU(12, 5, batch_first=True), torch.empty(7, 3, 12, device="meta")),
    (nn.RNN(12, 5), torch.empty(7, 12, device="meta")),
    (nn.GRU(12, 5, bidirectional=True), torch.empty(3, 7, 12, device="meta").transpose(0, 1)),
    (nn.RNN(12, 5, batch_first=True), torch.empty(12, 7, 3, device="meta").permute(2, 1, 0)),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("module", "x"), MODULES, ids=lambda v: type(v).__name__)
def test_modules(module: nn.Module, x: Tensor, training: bool) -> None:
    module = module.to("meta").train(training)
    rule = shapes.MODULES.get(type(module))
    result = None if rule is None else rule(module, x)
    if result is not None:
        assert described(result) == described(module(x))


def test_the_rules_apply_where_they_matter() -> None:
    answered = {
        type(m)
        for m, x in MODULES
        if type(m) in shapes.MODULES and shapes.MODULES[type(m)](m.to("meta").eval(), x) is not None
    }
    assert answered >= {nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.LayerNorm, nn.LSTM, nn.GELU}


@pytest.mark.parametrize("module", [nn.LSTM(12, 5), nn.GRU(12, 5), nn.RNN(12, 5)])
def test_recurrent_modules_need_no_contiguous_input(module: nn.Module) -> None:
    # Their kernels decompose into ops per time step: seconds for what a formula says.
    x = torch.empty(3, 7, 12, device="meta").transpose(0, 1)
    assert shapes.MODULES[type(module)](module.to("meta"), x) is not None


WRONG: list[tuple[Any, Tensor]] = [
    (nn.Conv2d(5, 8, 3), image()),
    (nn.Conv2d(6, 8, 20), image()),
    (nn.BatchNorm2d(5), image()),
    (nn.GroupNorm(5, 5), image()),
    (nn.LayerNorm(11), image()),
    (nn.Linear(11, 5), image()),
    (nn.LSTM(11, 5), torch.empty(7, 3, 12, device="meta")),
    (nn.Linear(12, 5).double(), image()),
]


@pytest.mark.parametrize(("module", "x"), WRONG, ids=lambda v: type(v).__name__)
def test_sizes_that_do_not_fit_are_left_to_the_kernel(module: nn.Module, x: Tensor) -> None:
    assert shapes.MODULES[type(module)](module.to("meta").eval(), x) is None


FUNCTIONS: list[tuple[Any, tuple[Any, ...]]] = [
    (F.gelu, (image(),)),
    (F.relu, (image(), True)),
    (F.silu, (image().transpose(1, 2),)),
    (F.linear, (image(), torch.empty(5, 12, device="meta"))),
    (F.layer_norm, (image(), (12,))),
    (Tensor.add, (image(), image())),
    (Tensor.add, (image(), torch.empty(12, device="meta"))),
    (Tensor.add, (torch.empty(12, device="meta"), image())),
    (Tensor.mul, (image(6, 1, 12), image())),
    (Tensor.mul, (image(), 2.0)),
    (Tensor.sub, (image().to(torch.int64), 2.5)),
    (Tensor.div, (image(), image().double())),
    (Tensor.add_, (image(), image(1))),
    (torch.cat, ([image(), image(3)], 1)),
    (torch.cat, ([image(), image().transpose(2, 3).contiguous().transpose(2, 3)], -1)),
]


@pytest.mark.parametrize(
    ("function", "args"), FUNCTIONS, ids=lambda v: getattr(v, "__name__", "args")
)
def test_functions(function: Any, args: tuple[Any, ...]) -> None:
    result = shapes.FUNCTIONS[function](*args)
    if result is not None:
        assert described(result) == described(function(*args))


@pytest.mark.parametrize("mask", [None, (5, 7), (2, 1, 5, 7), (2, 3, 1, 7), (7,), (5, 1)])
def test_attention(mask: tuple[int, ...] | None) -> None:
    q = torch.empty(2, 5, 3, 4, device="meta").transpose(1, 2)
    k, v = torch.empty(2, 3, 7, 4, device="meta"), torch.empty(2, 3, 7, 6, device="meta")
    masks = [None] if mask is None else [torch.empty(mask, device="meta"), None]
    if mask is not None:
        masks[1] = torch.empty(mask, device="meta", dtype=torch.bool)
    rule = shapes.FUNCTIONS[F.scaled_dot_product_attention]
    for each in masks:
        found = rule(q, k, v, each)
        assert found is not None
        assert described(found) == described(F.scaled_dot_product_attention(q, k, v, each))


def test_attention_that_does_not_fit_is_torchs_to_refuse() -> None:
    q, k = torch.empty(2, 3, 5, 4, device="meta"), torch.empty(2, 3, 7, 4, device="meta")
    rule = shapes.FUNCTIONS[F.scaled_dot_product_attention]
    assert rule(q, k, q) is None
    assert rule(q, k[..., :3], k) is None
    assert rule(q, k[:, :1], k[:, :1], enable_gqa=True) is None
    assert rule(q, k, k, torch.empty(2, 7, device="meta")) is None
    assert rule(q, k, k, torch.empty(3, 2, 3, 5, 7, device="meta")) is None
