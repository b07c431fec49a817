"""The ops that functions are said to be compute what the functions do."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.function_ops import FUNCTIONS, call_function

aten = torch.ops.aten


def real(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


QUERY, KEY, VALUE = real(2, 3, 4, 6), real(2, 3, 5, 6), real(2, 3, 5, 7)
BLIND = torch.ones(4, 5, dtype=torch.bool)
BLIND[1] = False
BLIND[2, :3] = False

ATTENTION = {F.scaled_dot_product_attention, aten.scaled_dot_product_attention.default}
LAST = ["_safe_softmax", "matmul"]

KNOWN: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[str]]] = [
    (F.linear, (real(2, 4, 3), real(5, 3)), {"bias": real(5)}, ["linear"]),
    (F.linear, (real(3), real(5, 3)), {}, ["linear"]),
    (F.linear, (), {"input": real(4, 3), "weight": real(5, 3)}, ["linear"]),
    (aten.linear.default, (real(4, 3), real(5, 3), real(5)), {}, ["linear"]),
    (torch.matmul, (real(4, 3), real(3, 5)), {}, ["matmul"]),
    (torch.matmul, (real(2, 6, 4, 3), real(3, 5)), {}, ["matmul"]),
    (operator.matmul, (real(2, 6, 4, 3), real(2, 6, 3, 5)), {}, ["matmul"]),
    (aten.matmul.default, (), {"self": real(2, 4, 3), "other": real(2, 3, 5)}, ["matmul"]),
]
KNOWN += [
    (function, args, kwargs, ["transpose", "mul", "mul", "matmul", *masking])
    for function in sorted(ATTENTION, key=str)
    for args, kwargs, masking in [
        ((QUERY, KEY, VALUE), {}, []),
        ((QUERY[0], KEY[0], VALUE[0]), {"scale": 0.3}, []),
        ((QUERY[0, 0], KEY[0, 0], VALUE[0, 0]), {"dropout_p": 0.0, "is_causal": False}, []),
        ((QUERY, KEY, VALUE, real(4, 5)), {"scale": -2.0}, ["add"]),
        (
            (QUERY, KEY, VALUE),
            {"attn_mask": BLIND},
            ["scalar_tensor", "scalar_tensor", "where", "add"],
        ),
    ]
]
"""Function, arguments and keywords, and the ops, but for the last ones of attention."""

UNKNOWN: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (torch.relu, (real(3),), {}),
    (F.linear, (real(4, 3), real(3)), {}),
    (F.linear, (real(4, 3), real(5, 3), real(1)), {}),
    (F.linear, (real(4, 3), real(5, 3), 1.0), {}),
    (torch.matmul, (real(4, 3), real(3)), {}),
    (torch.matmul, (real(2, 1, 4, 3), real(2, 6, 3, 5)), {}),
    (torch.matmul, (real(4, 3), real(2, 3, 5)), {}),
    (torch.matmul, (real(3), real(3, 4)), {}),
    (torch.matmul, (real(4, 3), real(3, 5)), {"out": real(4, 5)}),
    (operator.matmul, (real(4, 3), object()), {}),
    (F.scaled_dot_product_attention, (QUERY, KEY, VALUE), {"is_causal": True}),
    (F.scaled_dot_product_attention, (QUERY, KEY, VALUE), {"dropout_p": 0.5}),
    (F.scaled_dot_product_attention, (QUERY, KEY[:, :1], VALUE[:, :1]), {}),
    (F.scaled_dot_product_attention, (QUERY, KEY[:, :1], VALUE[:, :1]), {"enable_gqa": True}),
    (F.scaled_dot_product_attention, (QUERY.half(), KEY.half(), VALUE.half()), {}),
]


class Ops:
    """Runs ops and notes their names."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.names.append(op._schema.name.removeprefix("aten::"))
        return op(*args, **kwargs)


@pytest.mark.parametrize(("function", "args", "kwargs", "names"), KNOWN)
def test_the_ops_compute_what_the_function_does(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]
) -> None:
    ops = Ops()
    result = call_function(function, args, kwargs, ops)
    torch.testing.assert_close(result, function(*args, **kwargs), rtol=1e-12, atol=1e-14)
    assert ops.names == names + (LAST if function in ATTENTION else [])


def test_every_function_is_called_here() -> None:
    assert {function for function, *_ in KNOWN} == set(FUNCTIONS)


@pytest.mark.parametrize(("function", "args", "kwargs"), UNKNOWN)
def test_others_are_left_to_torch(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    ops = Ops()
    assert call_function(function, args, kwargs, ops) is None
    assert ops.names == []
