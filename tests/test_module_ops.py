"""The ops that layers are said to run are those that they run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.module_ops import SINGLE_OPS, single_op
from fxprune.schemas import schema_of

IMAGE, VOLUME, ROWS = (2, 4, 6, 5), (2, 4, 6, 5, 3), (2, 4)
SEQUENCE = (2, 4, 6)

KNOWN: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=1), SEQUENCE),
    (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), bias=False), IMAGE),
    (nn.Conv2d(4, 8, 1, groups=4), IMAGE),
    (nn.Conv3d(4, 6, 2, groups=2), VOLUME),
    (nn.BatchNorm1d(4), ROWS),
    (nn.BatchNorm1d(4, eps=0.1), SEQUENCE),
    (nn.BatchNorm2d(4, momentum=0.3), IMAGE),
    (nn.BatchNorm2d(4, momentum=None, affine=False), IMAGE),
    (nn.BatchNorm3d(4), VOLUME),
    (nn.LayerNorm(5), IMAGE),
    (nn.LayerNorm((6, 5), eps=0.1, elementwise_affine=False), IMAGE),
    (nn.LayerNorm(5, bias=False), IMAGE),
    (nn.GELU(), IMAGE),
    (nn.GELU("tanh"), ROWS),
    *((kind(), IMAGE) for kind in (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid)),
    *((kind(True), IMAGE) for kind in (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid)),
]

bounded = nn.ReLU6()
bounded.min_val, bounded.max_val = 0.5, 2.0
KNOWN.append((bounded, IMAGE))

LINEAR: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(5, 3), IMAGE),
    (nn.Linear(4, 3, bias=False), ROWS),
    (nn.Linear(4, 3), ROWS[1:]),
]
"""Layers of an op that torch's dispatcher takes apart."""

shifted = nn.Linear(5, 3)
shifted.bias = nn.Parameter(torch.ones(1))

UNKNOWN: list[tuple[nn.Module, tuple[int, ...]]] = [
    (shifted, IMAGE),
    (nn.Conv2d(4, 6, 3, padding="same"), IMAGE),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), IMAGE),
    (nn.Conv2d(4, 6, 3), IMAGE[1:]),
    (nn.ConvTranspose2d(4, 6, 3), IMAGE),
    (nn.BatchNorm2d(4, track_running_stats=False), IMAGE),
    (nn.BatchNorm2d(4), (0, *IMAGE[1:])),
    (nn.BatchNorm2d(4), ROWS),
]


class Ops(TorchDispatchMode):
    """Notes the ops that run, but for the space that a batch norm asks for and does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.empty.memory_format:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def name(value: tuple[nn.Module, tuple[int, ...]]) -> str:
    return f"{value[0]} on {value[1]}"


def first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def same(one: Any, two: Any) -> bool:
    return one is two if isinstance(one, Tensor) else bool(one == two and type(one) is type(two))


@pytest.mark.parametrize(("module", "shape"), KNOWN, ids=map(name, KNOWN))
def test_the_op_is_the_one_that_runs(module: nn.Module, shape: tuple[int, ...]) -> None:
    module = copy.deepcopy(module).to("meta").eval()
    x = torch.empty(shape, device="meta")
    with torch.no_grad(), Ops() as ops:
        result = module(x)
    ((func, args, kwargs),) = ops.calls
    known = single_op(module, (x,), {})
    assert known is not None
    assert known[0] is func
    expected, stated = (schema_of(func).bind(*given) for given in ((args, kwargs), known[1:]))
    assert all(same(stated[key], value) for key, value in expected.items())
    assert result.shape == first(func(*args, **kwargs)).shape


@pytest.mark.parametrize(("module", "shape"), [*KNOWN, *LINEAR], ids=map(name, [*KNOWN, *LINEAR]))
def test_the_op_computes_what_the_layer_does(module: nn.Module, shape: tuple[int, ...]) -> None:
    module, x = copy.deepcopy(module).double().eval(), torch.randn(shape, dtype=torch.float64)
    known = single_op(module, (x.clone(),), {})
    assert known is not None
    func, args, kwargs = known
    torch.testing.assert_close(first(func(*args, **kwargs)), module(x))


def test_every_row_has_a_layer_here() -> None:
    assert {type(module) for module, _ in [*KNOWN, *LINEAR]} == set(SINGLE_OPS)


@pytest.mark.parametrize(("module", "shape"), UNKNOWN, ids=map(name, UNKNOWN))
def test_others_have_none(module: nn.Module, shape: tuple[int, ...]) -> None:
    assert single_op(module.eval(), (torch.empty(shape),), {}) is None


def test_complex_convolutions_run_several() -> None:
    x = torch.empty(IMAGE, dtype=torch.complex64)
    assert single_op(nn.Conv2d(4, 6, 3, dtype=torch.complex64), (x,), {}) is None


@pytest.mark.parametrize("change", ["forward", "hook", "pre-hook"])
def test_layers_that_were_changed_have_none(change: str) -> None:
    x, relu = torch.empty(2), nn.ReLU()
    if change == "forward":
        relu.forward = torch.sigmoid  # type: ignore[method-assign]
    elif change == "hook":
        relu.register_forward_hook(lambda module, args, output: output * 2)
    else:
        relu.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    assert single_op(relu, (x,), {}) is None


def test_other_arguments_have_none() -> None:
    x, relu = torch.empty(2), nn.ReLU()
    assert single_op(relu, (x,), {}) is not None
    assert single_op(relu, (), {"input": x}) is None
    assert single_op(relu, (x, x), {}) is None
    assert single_op(relu, (1.0,), {}) is None


def test_subclasses_have_none() -> None:
    class Own(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    assert single_op(Own(), (torch.empty(2),), {}) is None
