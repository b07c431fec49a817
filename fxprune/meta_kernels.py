"""Results on meta by formula, for ATen ops whose meta kernels are slow Python decompositions.

A kernel answers NotImplemented where its formula does not apply; torch's own then runs, and raises
if the sizes do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fxprune.formulas import broadcast, convolved, elementwise_strides, joined

Kernel: TypeAlias = Callable[..., Any]

aten = torch.ops.aten


_PROMOTED = frozenset({torch.bool, torch.complex32, torch.complex64, torch.complex128})
"""Types whose arithmetic gives another one, or has rules of its own."""


def _new(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="meta")


def _same(*tensors: Tensor | None) -> bool:
    """Whether all tensors that are given are on meta, contiguous, floating and of one dtype."""
    given = [t for t in tensors if t is not None]
    return all(
        t.is_meta and t.dtype == given[0].dtype and t.is_floating_point() and t.is_contiguous()
        for t in given
    )


def elementwise(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """An op of one tensor; a dense one keeps its strides."""
    if any(isinstance(a, Tensor) for a in args) or kwargs.get("dtype"):
        return NotImplemented
    if not (x.is_meta and x.is_floating_point()):
        return NotImplemented
    return _alike(x)


def rebuilt(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """An op of one tensor whose result is contiguous, however that tensor lies."""
    return _new(x, x.shape) if x.is_meta and x.is_floating_point() else NotImplemented


def in_place(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """An in-place op of one tensor."""
    return x if _same(x) else NotImplemented


def binary(x: Any, y: Any, **kwargs: Any) -> Any:
    """An op of a floating tensor and a number, or of two that broadcast to each other."""
    floating = isinstance(x, Tensor) and x.is_floating_point()
    return arithmetic(x, y) if floating else NotImplemented


def arithmetic(x: Any, y: Any, **kwargs: Any) -> Any:
    """The same of real numbers of any one type, if the result has it, too."""
    if not isinstance(x, Tensor) or not x.is_meta or x.dtype in _PROMOTED:
        return NotImplemented
    if kwargs and not x.is_floating_point():  # a factor of y, which may not fit
        return NotImplemented
    if not isinstance(y, Tensor):
        plain = type(y) is int or (type(y) is float and x.is_floating_point())
        if not plain:
            return NotImplemented
        return _alike(x)
    shape = broadcast(x.shape, y.shape) if y.is_meta and x.dtype == y.dtype else None
    return NotImplemented if shape is None else _laid_out((x, y), shape)


def _alike(x: Tensor) -> Tensor:
    """A new tensor with the strides of an elementwise result of one tensor."""
    return _new(x, x.shape) if x.is_contiguous() else torch.empty_like(x)


def _laid_out(operands: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The same of several, which broadcast to `shape`."""
    if all(t.is_contiguous() for t in operands):
        return _new(operands[0], shape)
    spread = [t.expand(shape) for t in operands]
    dtype, last = spread[0].dtype, torch.channels_last
    if len(shape) == 4 and all(t.is_contiguous(memory_format=last) for t in spread):
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=last)
    strides = elementwise_strides(shape, [t.stride() for t in spread])
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def binary_in_place(x: Tensor, y: Any, **kwargs: Any) -> Any:
    """An in-place op of a tensor and a number, or a tensor that broadcasts to it."""
    result = binary(x, y) if _same(x) else NotImplemented
    return x if result is not NotImplemented and result.shape == x.shape else NotImplemented


def where(condition: Tensor, x: Tensor, y: Tensor) -> Any:
    """``where``."""
    plain = condition.dtype == torch.bool and condition.is_meta and condition.is_contiguous()
    shape = broadcast(x.shape, y.shape) if plain and _same(x, y) else None
    shape = None if shape is None else broadcast(condition.shape, shape)
    return NotImplemented if shape is None else _new(x, shape)


def comparison(x: Any, y: Any, **kwargs: Any) -> Any:
    """A comparison of a contiguous tensor of any type and a number, or another such tensor."""
    if not (isinstance(x, Tensor) and x.is_meta and x.is_contiguous()):
        return NotImplemented
    if not isinstance(y, Tensor):
        return torch.empty(x.shape, dtype=torch.bool, device="meta")
    shape = broadcast(x.shape, y.shape) if y.is_meta and y.is_contiguous() else None
    return NotImplemented if shape is None else torch.empty(shape, dtype=torch.bool, device="meta")


def reduced(
    x: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False, **kwargs: Any
) -> Any:
    """A reduction over dimensions; its result is contiguous."""
    rank = x.dim()
    if not (x.is_meta and x.is_floating_point() and x.numel()) or kwargs.get("dtype") or not dims:
        return NotImplemented
    over = {dim % rank for dim in dims if -rank <= dim < rank}
    if len(over) != len(dims):
        return NotImplemented
    sizes = [1 if d in over else size for d, size in enumerate(x.shape) if keepdim or d not in over]
    return _new(x, sizes)


def vector_norm(x: Tensor, order: float = 2, *args: Any, **kwargs: Any) -> Any:
    """``linalg_vector_norm``."""
    return reduced(x, *args, **kwargs)


def addcmul(x: Tensor, y: Tensor, z: Tensor, **kwargs: Any) -> Any:
    """``x + value * y * z``."""
    plain = x.is_floating_point() and all(t.is_meta and t.dtype == x.dtype for t in (x, y, z))
    shape = broadcast(y.shape, z.shape) if plain else None
    shape = None if shape is None else broadcast(x.shape, shape)
    return NotImplemented if shape is None else _laid_out((x, y, z), shape)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Any:
    """``cat`` of tensors of one rank, whose result is contiguous."""
    first = tensors[0]
    if not all(t.is_meta and t.dtype == first.dtype and _channels_outside(t) for t in tensors):
        return NotImplemented
    shape = joined([t.shape for t in tensors], dim)
    return NotImplemented if shape is None else _new(first, shape)


def _channels_outside(x: Tensor) -> bool:
    """Whether torch cannot take the memory format for that with the channels inside."""
    return x.is_contiguous() or x.dim() not in (4, 5) or x.stride(1) > x.stride(-1)


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool,
    output_padding: Sequence[int], groups: int,
) -> Any:  # fmt: skip
    """``convolution`` with the numbers of every dimension."""
    if transposed or not x.numel() or not _same(x, weight, bias):
        return NotImplemented
    if bias is not None and bias.shape != weight.shape[:1]:
        return NotImplemented
    shape = convolved(x.shape, weight.shape, stride, padding, dilation, groups)
    return NotImplemented if shape is None else _new(x, shape)


def safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
    """``_safe_softmax``."""
    return NotImplemented if dtype else rebuilt(x)


def softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    """``_softmax``."""
    return NotImplemented if half_to_float else rebuilt(x)


def batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *options: float
) -> Any:
    """``native_batch_norm``: the result and two vectors of statistics."""
    if x.dim() < 2 or not _same(x, weight, bias, mean, variance):
        return NotImplemented
    given = [t for t in (weight, bias, mean, variance) if t is not None]
    if any(t.shape != (x.shape[1],) for t in given):
        return NotImplemented
    return _new(x, x.shape), _new(x, (x.shape[1],)), _new(x, (x.shape[1],))


def layer_norm(x: Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    """``native_layer_norm``: the result, and the statistics per position."""
    rank = len(shape)
    if not (x.is_meta and x.is_floating_point()) or not all(  # any strides: it makes a copy
        t is None or (t.dtype == x.dtype and _same(t)) for t in (weight, bias)
    ):
        return NotImplemented
    if rank == 0 or tuple(x.shape[-rank:]) != tuple(shape):
        return NotImplemented
    if any(t is not None and tuple(t.shape) != tuple(shape) for t in (weight, bias)):
        return NotImplemented
    statistics = (*x.shape[:-rank], *[1] * rank)
    return _new(x, x.shape), _new(x, statistics), _new(x, statistics)


def group_norm(
    x: Tensor, weight: Any, bias: Any, batch: int, channels: int, rest: int, groups: int, eps: float
) -> Any:
    """``native_group_norm``: the result, and the statistics per sample and group."""
    given = [t for t in (weight, bias) if t is not None]
    if not _same(x, *given) or channels % groups or x.numel() != batch * channels * rest:
        return NotImplemented
    if any(t.shape != (channels,) for t in given):
        return NotImplemented
    return _new(x, x.shape), _new(x, (batch, groups)), _new(x, (batch, groups))


def resized(x: Tensor, size: Sequence[int], *options: Any) -> Any:
    """An interpolation to `size`."""
    if x.dim() != len(size) + 2 or not x.numel() or min(size) <= 0:
        return NotImplemented
    shape = (*x.shape[:2], *size)
    if _same(x):
        return _new(x, shape)
    last = torch.channels_last
    if not (x.is_meta and x.dim() == 4 and x.is_contiguous(memory_format=last)):
        return NotImplemented
    if 1 in x.shape[1:]:  # the strides of such dimensions decide, which this does not look at
        return NotImplemented
    return torch.empty(shape, dtype=x.dtype, device="meta", memory_format=last)


def addmm(bias: Tensor, a: Tensor, b: Tensor, **scales: Any) -> Any:
    """``bias + a @ b``; b is mostly a transposed weight, which is not contiguous."""
    fits = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and bias.shape == (b.shape[1],)
    plain = a.is_meta and b.is_meta and bias.is_meta and a.dtype == b.dtype == bias.dtype
    return _new(a, (a.shape[0], b.shape[1])) if fits and plain else NotImplemented


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """``x @ weight.T + bias``."""
    if x.dim() < 2 or weight.dim() != 2 or not x.numel() or not _same(x, weight, bias):
        return NotImplemented
    fits = x.shape[-1] == weight.shape[1] and (bias is None or bias.shape == weight.shape[:1])
    return _new(x, (*x.shape[:-1], weight.shape[0])) if fits else NotImplemented


def matmul(a: Tensor, b: Tensor) -> Any:
    """``a @ b`` of matrices, or of batches of them; its result is contiguous however they lie."""
    if not (a.is_meta and b.is_meta and a.is_floating_point() and a.dtype == b.dtype):
        return NotImplemented
    if min(a.dim(), b.dim()) < 2 or a.shape[-1] != b.shape[-2]:
        return NotImplemented
    batch = broadcast(a.shape[:-2], b.shape[:-2])
    return NotImplemented if batch is None else _new(a, (*batch, a.shape[-2], b.shape[-1]))


def equal(a: Tensor, b: Tensor) -> Any:
    """Whether two tensors are equal, which torch asks itself to refuse values: they are not."""
    return False if a.is_meta or b.is_meta else NotImplemented


def _overloads(names: str, *overloads: str) -> list[Any]:
    """The overloads of these ops: those named, or the default."""
    kinds = overloads or ("default",)
    return [getattr(getattr(aten, name), kind) for name in names.split() for kind in kinds]


KERNELS: Mapping[Any, Kernel] = MappingProxyType(
    {
        **dict.fromkeys(
            _overloads(
                "gelu hardtanh hardswish silu hardsigmoid leaky_relu sigmoid rsqrt relu elu "
                "mish softplus clamp clamp_min square neg"
            ),
            elementwise,
        ),
        **dict.fromkeys(
            _overloads("hardtanh_ hardswish_ silu_ hardsigmoid_ leaky_relu_ sigmoid_ relu_"),
            in_place,
        ),
        **dict.fromkeys(_overloads("gt ge lt le eq ne", "Tensor", "Scalar"), comparison),
        **dict.fromkeys(_overloads("logical_and logical_or"), comparison),
        **dict.fromkeys(_overloads("maximum minimum"), binary),
        **dict.fromkeys(
            _overloads("upsample_linear1d upsample_bilinear2d upsample_bicubic2d"), resized
        ),
        aten.upsample_trilinear3d.default: resized,
        aten.where.self: where,
        **dict.fromkeys(_overloads("div", "Tensor", "Scalar"), binary),
        **dict.fromkeys(_overloads("add sub mul", "Tensor", "Scalar"), arithmetic),
        aten.rsub.Scalar: arithmetic,
        **dict.fromkeys(_overloads("add_ sub_ mul_ div_", "Tensor"), binary_in_place),
        aten.mean.dim: reduced,
        aten.sum.dim_IntList: reduced,
        aten.amax.default: reduced,
        aten.linalg_vector_norm.default: vector_norm,
        aten.addcmul.default: addcmul,
        aten.cat.default: cat,
        aten.roll.default: rebuilt,
        aten.convolution.default: convolution,
        aten._safe_softmax.default: safe_softmax,
        aten.pow.Tensor_Scalar: elementwise,
        **dict.fromkeys(_overloads("_softmax _log_softmax"), softmax),
        aten.native_batch_norm.default: batch_norm,
        aten.native_layer_norm.default: layer_norm,
        aten.native_group_norm.default: group_norm,
        aten.addmm.default: addmm,
        aten.linear.default: linear,
        aten.matmul.default: matmul,
    }
)
"""ATen overload → kernel, which agrees with torch's own on meta."""

MISSING: Mapping[Any, Kernel] = MappingProxyType({aten.equal.default: equal})
"""The same for ops that torch has no kernel of on meta."""


def run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The result of an op on meta tensors, and on tensors of data that stand beside them."""
    kernel = KERNELS.get(func) or MISSING.get(func)
    result = NotImplemented if kernel is None else kernel(*args, **kwargs)
    if result is not NotImplemented:
        return result
    try:
        return func(*args, **kwargs)
    except RuntimeError:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        written = func._schema.is_mutable and given and not given[0].is_meta
        if written or len({tensor.is_meta for tensor in given}) < 2:
            raise
    # Many kernels take both; first, because some need the data, as `index` by a mask does.
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
    return func(*args, **kwargs)


class PlainDispatchMode(TorchDispatchMode):
    """A dispatch mode whose handler torch calls as it is.

    Around others it puts one that keeps them from being compiled, which imports torch's compiler.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class MetaKernels(PlainDispatchMode):
    """Runs ops on meta tensors by the kernels of this module."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})
