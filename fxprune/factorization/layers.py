"""Which layers of a graph can become factors, and what their cost depends on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from fxprune.analysis import Analysis
from fxprune.axes import Axis
from fxprune.costs.factors import LayerSizes
from fxprune.propagate import TensorAxes

SPATIAL: Mapping[type[nn.Module], int] = MappingProxyType(
    {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
)
"""The layers that can become factors: how many dimensions of their input are positions."""


@dataclass(frozen=True, eq=False)
class FactorLayer:
    """A linear layer or convolution that can become factors.

    name   of the module
    sizes  what its cost depends on
    """

    name: str
    module: Any
    sizes: LayerSizes

    @property
    def weight(self) -> Tensor:
        """The weight as [outputs, inputs, taps], float64, detached."""
        weight: Tensor = self.module.weight.detach().double()
        return weight.reshape(*weight.shape[:2], -1)


def factor_layers(analysis: Analysis) -> tuple[dict[str, FactorLayer], dict[str, str]]:
    """The layers that can become factors, by name, and why other layers of their kinds cannot.

    A module that is called several times is one layer.
    """
    calls: dict[str, list[fx.Node]] = {}
    for node in analysis.traced.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    owners = _owners(analysis.traced)
    modules = dict(analysis.traced.named_modules(remove_duplicate=False))
    found: dict[str, FactorLayer] = {}
    left: dict[str, str] = {}
    for name, nodes in calls.items():
        module = modules[name]
        if not isinstance(module, (nn.Linear, _ConvNd)):
            continue
        reason = _obstacle(module) or _shared(name, module, owners)
        if reason is None:
            found[name] = FactorLayer(name, module, _sizes(analysis, module, nodes))
        else:
            left[name] = reason
    return found, left


def input_of(node: fx.Node) -> fx.Node:
    """The node that a call of a layer reads."""
    value = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(value, fx.Node)
    return value


def _obstacle(module: nn.Module) -> str | None:
    if isinstance(module, _ConvNd) and module.transposed:
        return "it is a transposed convolution"
    if isinstance(module, _ConvNd) and module.groups > 1:
        return f"it is a convolution in {module.groups} groups"
    if type(module) not in SPATIAL:
        return f"it is a {type(module).__name__}"
    weight = module.weight
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return "its weight does not hold real numbers"
    if 0 in weight.shape:
        return "its weight is empty"
    return None


def _owners(traced: fx.GraphModule) -> dict[int, list[str]]:
    """The names under which the graph reads each parameter, aliases of a module counted once."""
    owners: dict[int, list[str]] = {}
    for name, parameter in _readings(traced):
        owners.setdefault(id(parameter), []).append(name)
    return owners


def _readings(traced: fx.GraphModule) -> Iterator[tuple[str, Tensor]]:
    for path, module in traced.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{path}.{name}" if path else name, parameter
    modules = dict(traced.named_modules(remove_duplicate=False))
    for target in {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"}:
        path, _, name = target.rpartition(".")
        value = getattr(modules.get(path), name, None)
        if isinstance(value, Tensor) and path:
            yield target, value


def _shared(name: str, module: Any, owners: Mapping[int, list[str]]) -> str | None:
    """Why a weight or bias that something else reads cannot change."""
    for own in ("weight", "bias"):
        parameter = getattr(module, own)
        readers = owners.get(id(parameter), []) if parameter is not None else []
        if len(readers) > 1:
            other = next((r for r in readers if r != f"{name}.{own}"), "the graph itself")
            return f"its {own} is read by {other}, too"
    return None


def _sizes(analysis: Analysis, module: Any, calls: list[fx.Node]) -> LayerSizes:
    outputs, inputs = module.weight.shape[:2]
    taps = math.prod(module.weight.shape[2:])
    before = sum(math.prod(a.size for a in _layout(analysis, input_of(n))) for n in calls)
    after = sum(math.prod(a.size for a in _layout(analysis, n)) for n in calls)
    return LayerSizes(inputs, outputs, taps, before // inputs, after // outputs)


def _layout(analysis: Analysis, node: fx.Node) -> tuple[Axis, ...]:
    value = analysis.propagation.nodes[node]
    assert isinstance(value, TensorAxes)
    return tuple(value.axes)
