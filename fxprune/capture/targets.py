"""Which torch functions are recorded, and as what."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.utils._device
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from fxprune.capture.lines import user_line
from fxprune.errors import TraceError

ATOMS = frozenset(
    {int, float, bool, str, type(None), complex, torch.dtype, torch.device, torch.memory_format,
     type(Ellipsis), torch.layout}
)  # fmt: skip
"""Arguments that are recorded as they are."""

DTYPES: Mapping[type, torch.dtype] = MappingProxyType(
    {bool: torch.bool, int: torch.int64, float: torch.float64, complex: torch.complex128}
)
"""What torch takes Python's types for; generated code cannot name them."""

_DUNDERS: dict[str, tuple[Callable[..., Any], bool]] = {
    # name of the Tensor method -> (operator, whether the operands are swapped)
    "__getitem__": (operator.getitem, False),
    "__setitem__": (operator.setitem, False),
    "__add__": (operator.add, False),
    "__sub__": (operator.sub, False),
    "__mul__": (operator.mul, False),
    "__truediv__": (operator.truediv, False),
    "__div__": (operator.truediv, False),
    "__floordiv__": (operator.floordiv, False),
    "__mod__": (operator.mod, False),
    "__pow__": (operator.pow, False),
    "__matmul__": (operator.matmul, False),
    "__and__": (operator.and_, False),
    "__or__": (operator.or_, False),
    "__xor__": (operator.xor, False),
    "__lshift__": (operator.lshift, False),
    "__rshift__": (operator.rshift, False),
    "__radd__": (operator.add, True),
    "__rsub__": (operator.sub, True),
    "__rmul__": (operator.mul, True),
    "__rdiv__": (operator.truediv, True),
    "__rtruediv__": (operator.truediv, True),
    "__rfloordiv__": (operator.floordiv, True),
    "__rmod__": (operator.mod, True),
    "__rpow__": (torch.pow, True),  # of -1, the operator would be written as -(1**x)
    "__rmatmul__": (operator.matmul, True),
    "__rand__": (operator.and_, True),
    "__ror__": (operator.or_, True),
    "__rxor__": (operator.xor, True),
    "__neg__": (operator.neg, False),
    "__pos__": (operator.pos, False),
    "__abs__": (operator.abs, False),
    "__invert__": (operator.invert, False),
    "__eq__": (operator.eq, False),
    "__ne__": (operator.ne, False),
    "__lt__": (operator.lt, False),
    "__le__": (operator.le, False),
    "__gt__": (operator.gt, False),
    "__ge__": (operator.ge, False),
}
# `x + y` reaches the mode as Tensor.add: with two plain operands it is written as the operator.
_PLAIN: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "matmul": operator.matmul,
    "pow": operator.pow,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def _getter(name: str) -> Any:
    return getattr(Tensor, name).__get__


#: attributes of a tensor that are themselves tensors -> the method that computes the same
TENSOR_PROPERTIES: dict[Any, tuple[str, tuple[Any, ...]]] = {
    _getter("mT"): ("transpose", (-2, -1)),
    _getter("data"): ("detach", ()),
    _getter("H"): ("adjoint", ()),
    _getter("mH"): ("adjoint", ()),
}
#: attributes of a tensor -> the function that computes the same
PARTS: dict[Any, Callable[..., Any]] = {
    _getter("real"): torch.real,
    _getter("imag"): torch.imag,
}
TRANSPOSE = _getter("T")
SHAPE = _getter("shape")
#: functions that answer with the number of dimensions
RANKS = frozenset({Tensor.dim, Tensor.ndimension, _getter("ndim")})
IS_PROPERTY: dict[Any, str] = {
    _getter("is_cuda"): "cuda",
    _getter("is_cpu"): "cpu",
    _getter("is_meta"): "meta",
}
REQUIRES_GRAD = _getter("requires_grad")
DEVICE = _getter("device")

#: functions that read values: they cannot be answered on the meta device
READERS = frozenset(
    {
        Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__,
        Tensor.__index__, Tensor.__complex__, Tensor.numpy, Tensor.__array__, Tensor.is_nonzero,
        torch.is_nonzero, Tensor.__contains__, torch.equal, Tensor.equal, torch.allclose,
        Tensor.allclose, Tensor.data_ptr,
    }
)  # fmt: skip
#: functions whose result's shape depends on values
SHAPED_BY_VALUES = frozenset(
    {
        torch.nonzero, Tensor.nonzero, torch.argwhere, Tensor.argwhere, torch.unique,
        Tensor.unique, torch.unique_consecutive, Tensor.unique_consecutive, torch.masked_select,
        Tensor.masked_select, torch.bincount, Tensor.bincount,
    }
)  # fmt: skip
#: functions that make a tensor from Python values
LITERALS = frozenset({torch.tensor, torch.as_tensor, torch.asarray})
RANDOM = frozenset(
    {
        torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like,
        torch.randint_like, torch.bernoulli, torch.multinomial, torch.normal, torch.empty,
        torch.empty_like, torch.empty_strided, Tensor.new_empty, Tensor.bernoulli_,
        Tensor.uniform_, Tensor.normal_, Tensor.random_, Tensor.bernoulli,
    }
)  # fmt: skip
CONSTRUCTORS = frozenset(torch.utils._device._device_constructors())


def _methods() -> dict[Any, tuple[str, str]]:
    table: dict[Any, tuple[str, str]] = {}
    for name in dir(Tensor):
        method = getattr(Tensor, name)
        if callable(method) and not name.startswith("__"):
            table.setdefault(method, ("call_method", name))
    return table


_METHODS = _methods()
_NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim"}
_FIRST = ("condition", "sorted_sequence", "input", "tensor", "tensors")
"""What torch's functions call their first argument; of two, the one that stands first."""
_OPERATORS = {
    getattr(Tensor, name): entry for name, entry in _DUNDERS.items() if hasattr(Tensor, name)
}


def as_documented(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with the names of torch's documentation, not numpy's, and its first argument
    by position, or as many as can be of an operator.
    """
    called = _overload(func) if kwargs else None
    if called is not None:
        return _by_position(called, args, kwargs)
    if not kwargs or "quantize" in getattr(func, "__name__", ""):
        return args, kwargs
    named = {_NUMPY_NAMES.get(name, name): value for name, value in kwargs.items()}
    first = next((name for name in _FIRST if name in named), None)
    return (args, named) if args or first is None else ((named.pop(first),), named)


def _overload(target: Any) -> OpOverload | None:
    """The operator's overload that a call of `target` runs, if it has only one."""
    if isinstance(target, OpOverloadPacket) and len(target.overloads()) == 1:
        target = getattr(target, target.overloads()[0])
    return target if isinstance(target, OpOverload) else None


def _by_position(
    operator: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    names = [a.name for a in operator._schema.arguments[len(args) :] if not a.kwarg_only]
    given = tuple(itertools.takewhile(kwargs.__contains__, names))
    rest = {name: value for name, value in kwargs.items() if name not in given}
    return (*args, *(kwargs[name] for name in given)), rest


def target_of(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, Any, tuple[Any, ...]]:
    """The fx op, target and positional arguments that stand for a call of `func`."""
    entry = _OPERATORS.get(func)
    if entry is not None and not kwargs:
        return "call_function", entry[0], args[::-1] if entry[1] else args
    method = _METHODS.get(func)
    if method is None:
        return "call_function", func, args
    name = method[1]
    if name in _PLAIN and not kwargs and len(args) == 2:
        return "call_function", _PLAIN[name], args
    return method[0], name, args


@functools.cache
def _writes(operator: OpOverload) -> bool:
    """Whether an operator writes into its first argument; TraceError if it does into another."""
    schema = operator._schema
    written = [
        place
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if any(written):
        raise TraceError(
            f"{user_line()}: the model calls {schema.name}, which writes into its argument "
            f"{schema.arguments[written[-1]].name!r}. A graph can only follow writes into the "
            "first one: return a new tensor, or make it the first."
        )
    return bool(written)


def mutates(op: str, target: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the operation writes into its first argument (or into `out=`)."""
    if target is operator.setitem or kwargs.get("out") is not None or kwargs.get("inplace") is True:
        return True
    called = _overload(target)
    if called is not None:
        return _writes(called)
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return op != "call_module" and name.endswith("_") and not name.endswith("__")
