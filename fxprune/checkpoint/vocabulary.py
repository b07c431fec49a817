"""What a stored graph may call: an explicit list, by public names. Nothing else is ever looked up.

Functions of torch are those that torch itself lists as calculating with tensors and that are ATen
operators or written in Python over them; `_NOT` takes from them what is not a calculation.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.overrides import get_overridable_functions

from fxprune import modules as own
from fxprune.capture import guards

# Functions that could reach anything; `rebuilding` checks their arguments where they are called.
CHECKED = (getattr, guards.new_object)
# Attributes that `getattr` may read.
ATTRIBUTES = frozenset("device dtype shape ndim T mT H mH real imag is_cuda is_cpu".split())

_FACTORIES = (
    "arange as_strided asarray as_tensor bartlett_window blackman_window empty empty_like "
    "empty_strided eye full full_like hamming_window hann_window kaiser_window linspace logspace "
    "normal ones ones_like rand rand_like randint randint_like randn randn_like randperm range "
    "scalar_tensor tensor tril_indices triu_indices vander zeros zeros_like relu_ sigmoid_ tanh_ "
    "result_type promote_types is_tensor is_grad_enabled"
).split()
_OPERATORS = (
    "abs add and_ contains eq floordiv ge getitem gt iadd iand ifloordiv imatmul imod imul "
    "index inv invert ior ipow isub itruediv ixor le lshift lt matmul mod mul ne neg not_ or_ pos "
    "pow rshift setitem sub truediv truth xor"
).split()
_MATH = "ceil copysign cos erf exp fabs floor fsum gcd isqrt lcm log log10 log1p log2 pow prod sin"
_MATH += " sqrt tan tanh trunc"
_BUILTINS: tuple[Any, ...] = (
    *(abs, bool, dict, divmod, float, getattr, int, len, list, max, min, pow, round, slice, sum),
    tuple,
)
_GUARDS = "fixed_sizes fixed_value holds new_object same_size stepped_size".split()
_METHODS = (
    "bfloat16 bool byte cdouble cfloat char double float half int long ndimension nelement short "
    "type unique lu size to new_empty new_empty_strided new_full new_ones new_tensor new_zeros"
).split()
# No calculations: files, values, gradients, storages, threads.
_NOT = frozenset(
    "apply_ backward const_data_ptr data_ptr from_file map2_ map_ module_load numpy "
    "pin_memory record_stream register_hook requires_grad_ retain_grad set_ share_memory_ storage "
    "storage_type tolist untyped_storage xpu ipu mtia autocast is_shared dim_order save load"
    .split()
)  # fmt: skip
_NAMESPACES: Mapping[str, Any] = MappingProxyType(
    {
        "torch": torch,
        "torch.nn.functional": nn.functional,
        "torch.linalg": torch.linalg,
        "torch.fft": torch.fft,
        "torch.special": torch.special,
    }
)


def _aten() -> frozenset[str]:
    names = (schema.name for schema in torch._C._jit_get_all_schemas())
    return frozenset(n.removeprefix("aten::") for n in names if n.startswith("aten::"))


def _functions() -> Iterator[tuple[str, Any]]:
    listed = get_overridable_functions()
    aten = _aten()
    calculating = {id(f) for functions in listed.values() for f in functions}
    for prefix, namespace in _NAMESPACES.items():
        for name, value in vars(namespace).items():
            written_in_python = inspect.isfunction(value) or name.startswith("sym_")
            known = name in aten or prefix != "torch" or written_in_python
            if id(value) in calculating and known and _is_plain(name, value):
                yield f"{prefix}.{name}", value
    yield from ((f"torch.{name}", getattr(torch, name)) for name in _FACTORIES)
    in_place = ("celu_", "elu_", "hardtanh_", "leaky_relu_", "relu_", "rrelu_", "selu_", "silu_")
    more = (*in_place, "threshold_", "hardswish", "hardsigmoid", "sigmoid", "tanh")
    found = ((name, getattr(nn.functional, name, None)) for name in more)
    yield from ((f"torch.nn.functional.{name}", value) for name, value in found if value)
    yield from ((f"operator.{name}", getattr(operator, name)) for name in _OPERATORS)
    yield from ((f"math.{name}", getattr(math, name)) for name in _MATH.split())
    yield from ((f"builtins.{value.__name__}", value) for value in _BUILTINS)
    yield from ((f"fxprune.{name}", getattr(guards, name)) for name in _GUARDS)
    yield "collections.OrderedDict", OrderedDict


def _is_plain(name: str, value: Any) -> bool:
    return not (name.startswith("_") or name in _NOT or isinstance(value, type))


@functools.cache
def _functions_by_name() -> Mapping[str, Callable[..., Any]]:
    return MappingProxyType(dict(_functions()))


@functools.cache
def _names_by_id() -> Mapping[int, str]:
    found: dict[int, str] = {}
    for name, value in _functions_by_name().items():
        found.setdefault(id(value), name)
    return MappingProxyType(found)


@functools.cache
def methods() -> frozenset[str]:
    """The methods of tensors that a graph may call."""
    aten = _aten()
    listed = get_overridable_functions()[torch.Tensor]
    names = {getattr(method, "__name__", "_") for method in listed}
    calculating = {name for name in names if not name.startswith("_") and name in aten}
    return frozenset((calculating | set(_METHODS)) - _NOT)


def name_of(value: Any) -> str:
    """The name by which a file calls a function. Raises KeyError for one that it may not call."""
    if isinstance(value, _OPERATOR):
        name = f"ops.{value}"
        function(name)
        return name
    return _names_by_id()[id(value)]


_OPERATOR = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_NAMESPACES_OF_OPERATORS = ("aten", "torchvision")


def function(name: str) -> Callable[..., Any]:
    """The function of that name. Raises KeyError if it is not on the list."""
    if not name.startswith("ops."):
        return _functions_by_name()[name]
    namespace, *path = name.removeprefix("ops.").split(".")
    if namespace not in _NAMESPACES_OF_OPERATORS or not 1 <= len(path) <= 2 or path[0] in _NOT:
        raise KeyError(name)
    found: Any = getattr(torch.ops, namespace)
    for part in path:
        found = getattr(found, part, None)
    if not isinstance(found, _OPERATOR) or not (_is_public(path[0]) or _is_core(found)):
        raise KeyError(name)
    return found


def _is_public(name: str) -> bool:
    """Internal operators trust their callers: some read what an index says, unchecked."""
    return not name.startswith("_") or name == "_unsafe_view"


def _is_core(operator: Any) -> bool:
    """An internal operator of the set that torch itself tells backends to implement."""
    return torch.Tag.core in getattr(operator, "tags", ())


# -- Modules --------------------------------------------------------------------------------------

# Classes whose constructor needs more than ones for what it requires.
_ARGUMENTS: Mapping[type, tuple[Any, ...]] = MappingProxyType(
    {
        nn.FractionalMaxPool2d: (1, 1),
        nn.FractionalMaxPool3d: (1, 1),
        **dict.fromkeys((nn.GRU, nn.LSTM, nn.RNN), (1, 1)),
        nn.Unflatten: (1, (1,)),
        own.DropPath: (0.0,),
        own.ByMode: (None, None),
    }
)
_CONTAINERS = frozenset({"container", "transformer", "lazy", "adaptive", "module"})
# Attributes that say the same as others, and are made from those.
DERIVED = frozenset({"_flat_weights", "_flat_weight_refs", "_all_weights", "_flat_weights_names"})
_BASE = frozenset(nn.Module().__dict__)


@functools.cache
def modules() -> Mapping[str, type[nn.Module]]:
    """The leaf modules that a graph may call, by name; `torch.nn.Module` only holds others."""
    found: dict[str, type[nn.Module]] = {"torch.nn.Module": nn.Module}
    for name, value in vars(nn).items():
        leaf = isinstance(value, type) and issubclass(value, nn.Module)
        kept = name not in ("NLLLoss2d", "RNNBase")  # deprecated; abstract
        if leaf and kept and value.__module__.split(".")[-1] not in _CONTAINERS:
            found[f"torch.nn.{name}"] = value
    found["torch.nn.NonDynamicallyQuantizableLinear"] = NonDynamicallyQuantizableLinear
    found |= {f"fxprune.{kind.__name__}": kind for kind in (own.DropPath, own.ByMode)}
    return MappingProxyType(found)


@functools.cache
def module_names() -> Mapping[type, str]:
    """Class → the name by which a file calls it."""
    return MappingProxyType({kind: name for name, kind in modules().items()})


@functools.cache
def attributes(kind: Any) -> frozenset[str]:
    """The attributes of a class's instances besides tensors, children and the mode.

    They are those of an instance made with the smallest arguments.
    """
    arguments = _ARGUMENTS.get(kind)
    if arguments is None:
        parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
        ordinary = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        needed = [p for p in parameters if p.default is p.empty and p.kind in ordinary]
        arguments = (1,) * len(needed)
    with torch.device("meta"):
        sample = kind(*arguments)
    return frozenset(sample.__dict__) - _BASE - DERIVED
