"""Output shapes by formula, for operations whose meta kernels are slow Python decompositions.

A rule returns None where it does not apply (other layouts, dtypes, arguments); then the operation
itself runs on meta, and raises if the sizes do not fit.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxprune import meta_kernels
from fxprune.formulas import broadcast, convolved
from fxprune.meta_kernels import MetaKernels

Rule = Callable[..., Any]
FUNCTIONS: dict[Any, Rule] = {}
MODULES: dict[Any, Rule] = {}


def _new(x: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _plain(x: Tensor, *others: Tensor | None) -> bool:
    """Whether all tensors are contiguous and of one dtype, and the first is on meta.

    The others may hold data, as weights do: only their shapes matter.
    """
    if not (x.is_meta and x.is_contiguous()):
        return False
    return all(t is None or (t.dtype == x.dtype and t.is_contiguous()) for t in others)


def _sized(shape: Sequence[int], *tensors: Any) -> bool:
    """Whether all tensors that are given have this shape."""
    return all(t is None or tuple(t.shape) == tuple(shape) for t in tensors)


def _like(x: Any, *args: Any, **kwargs: Any) -> Any:
    """Elementwise on a contiguous floating tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or not _plain(x):
        return None
    return x if kwargs.get("inplace") or (args and args[-1] is True) else _new(x, x.shape)


def _like_module(module: nn.Module, x: Any) -> Any:
    return _like(x, inplace=vars(module).get("inplace", False))


def _dropout(module: nn.Module, x: Any) -> Any:
    if not module.training:
        return x if isinstance(x, Tensor) else None
    return _like_module(module, x) if type(module) is nn.Dropout else None


def _conv(module: _ConvNd, x: Any) -> Any:
    weight = module.weight
    if not isinstance(x, Tensor) or isinstance(module, _ConvTransposeNd):
        return None
    padding = module.padding
    if isinstance(padding, str) or not _plain(x, weight) or x.dim() != weight.dim():
        return None
    if x.shape[1] != module.in_channels or not _sized(weight.shape[:1], module.bias):
        return None
    shape = convolved(x.shape, weight.shape, module.stride, padding, module.dilation, module.groups)
    return None if shape is None else _new(x, shape)


def _batch_norm(module: _BatchNorm, x: Any) -> Any:
    if not isinstance(x, Tensor) or x.dim() < 2 or not _plain(x, module.weight):
        return None
    if module.training and x.numel() == x.shape[1]:
        return None
    vectors = (module.weight, module.bias, module.running_mean, module.running_var)
    fits = x.shape[1] == module.num_features and _sized((x.shape[1],), *vectors)
    return _new(x, x.shape) if fits else None


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    if not isinstance(x, Tensor) or x.dim() < 2 or weight.dim() != 2 or not x.numel():
        return None
    if x.shape[-1] != weight.shape[1] or not _plain(x, bias) or x.dtype != weight.dtype:
        return None
    if not _sized(weight.shape[:1], bias):
        return None
    return _new(x, (*x.shape[:-1], weight.shape[0]))


def _linear_module(module: nn.Linear, x: Any) -> Any:
    return _linear(x, module.weight, module.bias)


def _layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5) -> Any:
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    if not isinstance(x, Tensor) or not _plain(x, weight, bias):
        return None
    fits = tuple(x.shape[-len(sizes) :]) == sizes and _sized(sizes, weight, bias)
    return _new(x, x.shape) if fits else None


def _layer_norm_module(module: nn.LayerNorm, x: Any) -> Any:
    return _layer_norm(x, module.normalized_shape, module.weight, module.bias)


def _group_norm(module: nn.GroupNorm, x: Any) -> Any:
    if not isinstance(x, Tensor) or x.dim() < 2 or not _plain(x, module.weight):
        return None
    fits = x.shape[1] == module.num_channels and x.shape[1] % module.num_groups == 0
    return _new(x, x.shape) if fits and _sized((x.shape[1],), module.weight, module.bias) else None


def _by_kernel(kernel: Callable[..., Any], operands: int) -> Rule:
    """The rule for functions that run one op, called with so many arguments by position."""

    def rule(*args: Any) -> Any:
        result = kernel(*args) if len(args) == operands else NotImplemented
        return None if result is NotImplemented else result

    return rule


def _cat(tensors: Any, dim: Any = 0) -> Any:
    if not isinstance(tensors, (list, tuple)) or not tensors:
        return None
    result = meta_kernels.cat(tensors, dim)
    return None if result is NotImplemented else result


def _attention(
    q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: Any = 0.0, is_causal: Any = False,
    *, scale: Any = None, enable_gqa: Any = False,
) -> Any:  # fmt: skip
    """`scaled_dot_product_attention` of queries, keys and values of four dimensions each."""
    if not all(isinstance(t, Tensor) and t.is_meta and t.dim() == 4 for t in (q, k, v)):
        return None
    if enable_gqa or not (q.shape[:2] == k.shape[:2] == v.shape[:2] and q.numel() and v.numel()):
        return None
    fits = q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]
    if not fits or not q.dtype == k.dtype == v.dtype:
        return None
    table = (*q.shape[:3], k.shape[2])
    if attn_mask is not None:
        if is_causal or attn_mask.dtype not in (torch.bool, q.dtype):
            return None
        if tuple(broadcast(attn_mask.shape, table) or ()) != table:
            return None
    return _new(q, (*q.shape[:3], v.shape[-1]))


def _recurrent(module: nn.RNNBase, x: Any, state: Any = None) -> Any:
    if not isinstance(x, Tensor) or x.shape[-1] != module.input_size or x.dim() not in (2, 3):
        return None
    first = module.weight_ih_l0
    if not x.is_meta or x.dtype != first.dtype:  # strides do not matter: steps are stacked
        return None
    width = module.proj_size or module.hidden_size
    directions = 2 if module.bidirectional else 1
    batch = () if x.dim() == 2 else (x.shape[0] if module.batch_first else x.shape[1],)
    layers = directions * module.num_layers
    swapped = module.batch_first and bool(batch)
    # The kernels work in the order (length, batch).
    lead = (x.shape[1], x.shape[0]) if swapped else x.shape[:-1]
    out = _new(x, (*lead, directions * width))
    out = out.transpose(0, 1) if swapped else out
    hidden = _new(x, (layers, *batch, width))
    given = state if isinstance(state, (tuple, list)) else () if state is None else (state,)
    if isinstance(module, nn.LSTM):
        cell = _new(x, (layers, *batch, module.hidden_size))
        fits = not given or [s.shape for s in given] == [hidden.shape, cell.shape]
        return (out, (hidden, cell)) if fits else None
    return (out, hidden) if not given or given[0].shape == hidden.shape else None


MODULES.update(dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), _recurrent))
MODULES.update(dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv))
MODULES.update(dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm))
MODULES.update(
    dict.fromkeys(
        (
            nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid,
            nn.Tanh, nn.LeakyReLU, nn.ELU, nn.Mish, nn.Softplus, nn.Hardtanh, nn.Softmax,
            nn.LogSoftmax,
        ),
        _like_module,
    )
)  # fmt: skip
MODULES.update(dict.fromkeys((nn.Dropout, nn.Dropout2d, nn.Dropout3d), _dropout))
MODULES[nn.Identity] = lambda module, *args, **kwargs: args[0] if args else None
MODULES[nn.Linear] = _linear_module
MODULES[nn.LayerNorm] = _layer_norm_module
MODULES[nn.GroupNorm] = _group_norm
FUNCTIONS.update(
    dict.fromkeys(
        (F.gelu, F.silu, F.hardswish, F.hardsigmoid, F.relu, F.relu6, F.softplus, F.mish), _like
    )
)
FUNCTIONS[F.linear] = _linear
FUNCTIONS[F.layer_norm] = _layer_norm
FUNCTIONS.update(
    dict.fromkeys((Tensor.add, Tensor.mul, Tensor.sub), _by_kernel(meta_kernels.arithmetic, 2))
)
FUNCTIONS[Tensor.div] = _by_kernel(meta_kernels.binary, 2)
FUNCTIONS.update(
    dict.fromkeys((Tensor.add_, Tensor.mul_), _by_kernel(meta_kernels.binary_in_place, 2))
)
FUNCTIONS[torch.cat] = _cat
FUNCTIONS[Tensor.neg] = _by_kernel(meta_kernels.elementwise, 1)
FUNCTIONS[F.scaled_dot_product_attention] = _attention

DECOMPOSED = frozenset(
    {
        torch.batch_norm, F.batch_norm, F.group_norm, F.layer_norm, F.instance_norm, F.interpolate,
        F.scaled_dot_product_attention, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
        F.adaptive_avg_pool3d, F.gelu, F.relu, F.silu, F.hardswish, F.softplus, F.mish, F.normalize,
        torch.add, torch.sub, torch.mul, torch.div, torch.mean, torch.sigmoid, torch.clamp,
        torch.where, torch.logical_and, Tensor.add, Tensor.sub, Tensor.mul, Tensor.div, Tensor.mean,
        torch.sum, Tensor.sum, torch.amax, Tensor.amax, torch.norm, Tensor.norm,
        torch.linalg.vector_norm, torch.addcmul, Tensor.addcmul,
        Tensor.pow, Tensor.clamp, Tensor.relu, Tensor.gt, Tensor.ge, Tensor.lt, Tensor.le,
        Tensor.eq, Tensor.ne, Tensor.sigmoid, torch.istft, Tensor.istft,
    }
)  # fmt: skip
"""Functions that run several ops of `fxprune.meta_kernels`, or one that torch decomposes."""


def by_formula(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of a torch function by formula; None where there is none."""
    rule = FUNCTIONS.get(func)
    return rule(*args, **kwargs) if rule is not None and _accepts(rule, tuple(kwargs)) else None


def of_function(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of a torch function on meta, by formula where there is one."""
    result = by_formula(func, args, kwargs)
    if result is not None:
        return result
    if func not in DECOMPOSED:
        return func(*args, **kwargs)
    with MetaKernels():
        return func(*args, **kwargs)


@functools.cache
def _accepts(rule: Rule, names: tuple[str, ...]) -> bool:
    """Whether a rule has these keyword arguments."""
    parameters = inspect.signature(rule).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return anything or all(name in parameters for name in names)


def of_module(base: Any, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of a module that is a `base`, by formula; None where there is none."""
    rule = MODULES.get(base)
    given = list(args)
    for name in _arguments(base)[len(given) :] if rule is not None and kwargs else ():
        if name in kwargs:
            given.append(kwargs[name])
    whole = len(given) == len(args) + len(kwargs)
    return rule(module, *given) if rule is not None and whole else None


@functools.cache
def _arguments(base: Any) -> tuple[str, ...]:
    """The names that forward gives its arguments, from the first on."""
    return tuple(inspect.signature(base.forward).parameters)[1:]
