"""The one op that a layer of torch's stands for, told without running it.

The way through nn.Module, torch.nn.functional and torch's dispatcher takes longer than all that an
analysis does with the op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from fxprune.function_ops import is_linear
from fxprune.walks import has_hooks, has_own_forward

OpCall: TypeAlias = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""An operator's overload, and what it is called with, by position and by keyword."""

Row: TypeAlias = Callable[[Any, Tensor], OpCall | None]

aten = torch.ops.aten


def single_op(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> OpCall | None:
    """The op that a module is in eval mode; its first result is the module's.

    None where it may be none, several, or another one.
    """
    row = SINGLE_OPS.get(type(module))
    if row is None or kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
        return None
    if has_hooks(module) or has_own_forward(module):
        return None
    return row(module, args[0])


def _convolution(module: _ConvNd, x: Tensor) -> OpCall | None:
    padding = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":
        return None
    if x.dim() != module.weight.dim() or x.is_complex():
        return None
    numbers = [*module.stride], [*padding], [*module.dilation]
    none = [0] * len(padding)
    args = (x, module.weight, module.bias, *numbers, False, none, module.groups)
    return aten.convolution.default, args, {}


def _batch_norm(*ranks: int) -> Row:
    def row(module: _BatchNorm, x: Tensor) -> OpCall | None:
        if module.running_mean is None or x.dim() not in ranks or not x.numel():
            return None
        momentum = 0.0 if module.momentum is None else module.momentum
        running = module.running_mean, module.running_var
        args = (x, module.weight, module.bias, *running, False, momentum, module.eps)
        return aten.native_batch_norm.default, args, {}

    return row


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> OpCall:
    args = (x, [*module.normalized_shape], module.weight, module.bias, module.eps)
    return aten.native_layer_norm.default, args, {}


def _pointwise(op: Any, in_place: Any, *options: str) -> Row:
    def row(module: Any, x: Tensor) -> OpCall:
        args = (x, *(getattr(module, name) for name in options))
        return in_place if module.inplace else op, args, {}

    return row


def _linear(module: nn.Linear, x: Tensor) -> OpCall | None:
    args = (x, module.weight, module.bias)
    return (aten.linear.default, args, {}) if is_linear(*args) else None


def _gelu(module: nn.GELU, x: Tensor) -> OpCall:
    return aten.gelu.default, (x,), {"approximate": module.approximate}


SINGLE_OPS: Mapping[type[nn.Module], Row] = MappingProxyType(
    {
        nn.Conv1d: _convolution,
        nn.Conv2d: _convolution,
        nn.Conv3d: _convolution,
        nn.BatchNorm1d: _batch_norm(2, 3),
        nn.BatchNorm2d: _batch_norm(4),
        nn.BatchNorm3d: _batch_norm(5),
        nn.Linear: _linear,
        nn.LayerNorm: _layer_norm,
        nn.ReLU: _pointwise(aten.relu.default, aten.relu_.default),
        nn.ReLU6: _pointwise(aten.hardtanh.default, aten.hardtanh_.default, "min_val", "max_val"),
        nn.SiLU: _pointwise(aten.silu.default, aten.silu_.default),
        nn.Hardswish: _pointwise(aten.hardswish.default, aten.hardswish_.default),
        nn.Hardsigmoid: _pointwise(aten.hardsigmoid.default, aten.hardsigmoid_.default),
        nn.GELU: _gelu,
    }
)
"""Exact class → the op, or None where a module of that class runs something else."""
