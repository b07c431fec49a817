"""Recurrent modules as one op each: their kernels decompose into thousands.

A hidden unit of an LSTM owns one row in each of the four gates of ``weight_ih`` and ``weight_hh``
(``4*H`` rows), one column of ``weight_hh``, and one column of whatever reads the output. A unit
whose weights are zero stays at zero: ``h = o * tanh(c)`` with ``c = f*c + i*tanh(0)``, and alike
for GRU and RNN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxprune.algebra import Algebra
from fxprune.axes import Axis
from fxprune.rules.base import Call, Effect, Kind, Layout

LayoutOf: TypeAlias = Callable[[Tensor], Layout]


@dataclass(frozen=True)
class ModuleResult:
    """The module's value on meta tensors, and the calls (with effects) that stand for it."""

    value: Any
    calls: tuple[tuple[Call, Effect], ...]


ModuleRule: TypeAlias = Callable[..., ModuleResult]


def recurrent(
    module: nn.RNNBase,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    layout_of: LayoutOf,
    algebra: Algebra,
) -> ModuleResult:
    """``RNN``, ``GRU`` and ``LSTM``: stacked, bidirectional, with projections, batched or not.

    A module has one hidden size for all layers and directions, so all of them share their units.
    """
    x: Tensor = args[0] if args else kwargs["input"]
    state = args[1] if len(args) > 1 else kwargs.get("hx")
    if not isinstance(x, Tensor):
        raise TypeError("packed sequences are not supported; pass a padded tensor")
    directions = 2 if module.bidirectional else 1
    time = 1 if x.dim() == 3 and module.batch_first else 0
    algebra.freeze(layout_of(x)[time], "time steps of a recurrent layer")
    features = layout_of(x)[-1]
    tensors = [x]
    over: list[Axis] = []
    widths: list[tuple[Axis, Axis]] = []
    for layer in range(module.num_layers):
        over.append(features)
        for direction in range(directions):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            widths.append(_direction(module, suffix, features, layout_of, algebra, tensors))
            for first, own in zip(widths[0], widths[-1], strict=True):
                algebra.unify(first, own)
        features = algebra.concat([widths[0][0]] * directions)
    states = (widths[0][0], widths[0][1])
    over += states
    return _result(module, x, state, features, states, over, tensors, layout_of, algebra)


def _direction(
    module: nn.RNNBase,
    suffix: str,
    features: Axis,
    layout_of: LayoutOf,
    algebra: Algebra,
    tensors: list[Tensor],
) -> tuple[Axis, Axis]:
    """Couple the weights of one layer and direction; its output axis and its cell axis."""
    weight_ih = getattr(module, "weight_ih" + suffix)
    weight_hh = getattr(module, "weight_hh" + suffix)
    tensors += [weight_ih, weight_hh]
    rows, columns = layout_of(weight_ih)
    algebra.unify(columns, features)
    gates = weight_ih.shape[0] // module.hidden_size
    gate, cell = algebra.factor(rows, [gates, module.hidden_size])
    algebra.freeze(gate, "gates of a recurrent layer")
    hidden_rows, hidden_columns = layout_of(weight_hh)
    algebra.unify(hidden_rows, rows)
    hidden = cell
    if module.proj_size:
        weight_hr = getattr(module, "weight_hr" + suffix)
        tensors.append(weight_hr)
        hidden, projected = layout_of(weight_hr)
        cell = algebra.unify(projected, cell)
        algebra.freeze(cell, "torch tells projected layers by having more cells than outputs")
    hidden = algebra.unify(hidden_columns, hidden)
    if module.bias:
        for name in ("bias_ih", "bias_hh"):
            bias = getattr(module, name + suffix)
            tensors.append(bias)
            algebra.unify(layout_of(bias)[0], rows)
    return hidden, cell


def _result(
    module: nn.RNNBase,
    x: Tensor,
    state: Any,
    features: Axis,
    widths: tuple[Axis, Axis],
    over: list[Axis],
    tensors: list[Tensor],
    layout_of: LayoutOf,
    algebra: Algebra,
) -> ModuleResult:
    """Meta outputs and their axes: ``output, h_n`` or ``output, (h_n, c_n)``."""
    lstm = isinstance(module, nn.LSTM)
    x_axes = layout_of(x)
    batch_dims = [] if x.dim() == 2 else [0 if module.batch_first else 1]
    output = x.new_empty([*x.shape[:-1], features.size])
    given = [] if state is None else list(state) if lstm else [state]
    count = module.num_layers * (2 if module.bidirectional else 1)
    layers = algebra.constant(count, "recurrent layers")
    states: list[Tensor] = []
    layouts: list[Layout] = [(*x_axes[:-1], features)]
    for position, width in enumerate(widths if lstm else widths[:1]):
        if given:
            first, *batch, hidden = layout_of(given[position])
            algebra.freeze(first, "recurrent layers")
            algebra.unify(hidden, width)
            for own, dim in zip(batch, batch_dims, strict=True):
                algebra.unify(own, x_axes[dim])
        states.append(x.new_empty([layers.size, *(x.shape[d] for d in batch_dims), width.size]))
        layouts.append((layers, *(x_axes[d] for d in batch_dims), width))
    value = (output, (states[0], states[1])) if lstm else (output, states[0])
    call = Call(
        f"fxprune::{type(module).__name__.lower()}",
        MappingProxyType({"tensors": tensors, "state": given}),
        (output, *states),
        algebra=algebra,
        layout_of=layout_of,
        constant_of=lambda _: None,
        func=torch.nn.Module,
    )
    effect = Effect(tuple(layouts), Kind.RECURRENT, tuple(over))
    return ModuleResult(value, ((call, effect),))


MODULE_RULES: Mapping[type[nn.Module], ModuleRule] = MappingProxyType(
    {nn.LSTM: recurrent, nn.GRU: recurrent, nn.RNN: recurrent}
)
