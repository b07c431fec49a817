"""`factored`: the graph with layers in factors, as ordinary layers under the layer's name.

A convolution becomes `layer.reduce` (1×1), `layer.core` (stride, padding and dilation as before)
and `layer.expand` (1×1, with the bias, so that zero padding stays exact); where a side keeps all
its directions its 1×1 is left out. A linear layer or a 1×1 convolution becomes two of them,
`layer.reduce` and `layer.expand`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.analysis import analysis_of
from fxprune.errors import PlanError, VerifyError
from fxprune.factorization.bases import core
from fxprune.factorization.layers import SPATIAL, factor_layers, input_of
from fxprune.plans import Bases, FactorizationPlan, PruningPlan
from fxprune.rewriter import rewrite

PARTS = REDUCE, CORE, EXPAND = "reduce", "core", "expand"


def factored(traced: fx.GraphModule, plan: FactorizationPlan) -> fx.GraphModule:
    """A new graph in which the plan's layers are factors; `traced` is not modified.

    Each factor has the dtype, device, `requires_grad`, memory format and mode of the weight that it
    is made of; the factors are calculated in float64. The node of a layer's last factor keeps the
    layer's name. Everything else is as `rewrite` leaves it.

    Raises PlanError if the plan was made for another graph, or if a layer cannot become factors.
    """
    analysis = analysis_of(traced)
    plan.check_fingerprint(analysis.fingerprint)
    possible, left = factor_layers(analysis)
    for name in plan.layers:
        if name not in possible:
            reason = left.get(name, "the graph has no linear layer or convolution of that name")
            raise PlanError(f"Layer {name!r} cannot become factors: {reason}.")
    module = rewrite(traced, PruningPlan.build(analysis, {}))
    for name, bases in plan.layers.items():
        _replace(module, name, bases)
    module.graph.lint()
    module.recompile()
    return module


def _replace(module: fx.GraphModule, name: str, bases: Bases) -> None:
    layer = module.get_submodule(name)
    holder = nn.Module()
    for part, new in _parts(layer, bases):
        new.training = layer.training
        holder.add_module(part, new)
    holder.training = layer.training
    calls = [n for n in module.graph.nodes if n.op == "call_module" and n.target == name]
    module.set_submodule(name, holder)
    *before, last = [f"{name}.{part}" for part in holder._modules]
    for node in calls:
        value = input_of(node)
        with module.graph.inserting_before(node):
            for path in before:
                value = module.graph.call_module(path, (value,))
                value.meta |= {k: v for k, v in node.meta.items() if k != "val"}
        node.target, node.args, node.kwargs = last, (value,), {}


def _parts(layer: Any, bases: Bases) -> Iterator[tuple[str, nn.Module]]:
    """The factors in order, each a layer of the same kind."""
    reduce, middle, expand = factors(layer, bases)
    window = {} if SPATIAL[type(layer)] == 0 else _window(layer)
    if reduce is not None:
        yield REDUCE, _like(layer, reduce, {} if middle is not None else window, None)
    if middle is not None:
        yield CORE, _like(layer, middle, window, None if expand is not None else layer.bias)
    if expand is not None:
        yield EXPAND, _like(layer, expand, {}, layer.bias)


def factors(layer: Any, bases: Bases) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The weights of a layer's factors, float64 [outputs, inputs, *kernel]; None for no factor.

    A pointwise core is merged into the factor on its smaller side.
    """
    weight = layer.weight.detach().double()
    inputs, outputs = (
        None if basis is None else basis.to(weight.device)
        for basis in (bases.inputs, bases.outputs)
    )
    flat = weight.reshape(*weight.shape[:2], -1)
    middle = core(flat, inputs, outputs)
    if flat.shape[2] > 1:
        shaped = middle.reshape(*middle.shape[:2], *weight.shape[2:])
        return _pointwise(inputs, weight, True), shaped, _pointwise(outputs, weight, False)
    middle = middle[:, :, 0]
    if outputs is not None and (inputs is None or outputs.shape[1] <= inputs.shape[1]):
        reduce = middle if inputs is None else middle @ inputs.T
        expand = outputs
    else:
        assert inputs is not None
        reduce = inputs.T
        expand = middle if outputs is None else outputs @ middle
    kernel = (1,) * (weight.dim() - 2)
    return reduce.reshape(*reduce.shape, *kernel), None, expand.reshape(*expand.shape, *kernel)


def product_of_factors(module: fx.GraphModule, name: str) -> tuple[Tensor, torch.dtype]:
    """The weight that a layer's factors make together, float64, and the dtype that they have.

    Raises VerifyError if the module has no such factors.
    """
    try:
        holder = module.get_submodule(name)
    except AttributeError as error:
        raise VerifyError(f"the module has no layer {name!r}: {error}.") from error
    weights = [getattr(holder, part).weight for part in PARTS if hasattr(holder, part)]
    if not weights:
        raise VerifyError(f"layer {name!r} of the module has no factors: it is no {PARTS}.")
    product = weights[0].detach().double()
    for weight in weights[1:]:
        # Of two neighbours at most one has a kernel, and its taps are those of the product.
        product = torch.einsum("ab...,bc...->ac...", weight.detach().double(), product)
    return product, weights[0].dtype


def _pointwise(basis: Tensor | None, weight: Tensor, transpose: bool) -> Tensor | None:
    if basis is None:
        return None
    matrix = basis.T if transpose else basis
    return matrix.reshape(*matrix.shape, *(1,) * (weight.dim() - 2))


def _window(layer: Any) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "padding_mode")
    return {name: getattr(layer, name) for name in names}


def _like(
    layer: Any, weight: Tensor, window: dict[str, Any], bias: nn.Parameter | None
) -> nn.Module:
    """A layer of the same kind with this weight."""
    kind, (outputs, inputs, *kernel) = type(layer), weight.shape
    sizes = (inputs, outputs, tuple(kernel)) if kernel else (inputs, outputs)
    new = kind(*sizes, bias=bias is not None, device="meta", **window)
    data = weight.to(layer.weight.dtype).clone(memory_format=_memory_format(layer.weight))
    new.weight = nn.Parameter(data, layer.weight.requires_grad)  # a clone: bases belong to the plan
    new.bias = bias
    return new  # type: ignore[no-any-return]


def _memory_format(weight: Tensor) -> torch.memory_format:
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(weight.dim())
    if channels_last is None or weight.is_contiguous():
        return torch.contiguous_format
    return channels_last
