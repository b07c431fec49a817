"""Copies of a model on the meta device: the same Python objects, tensors without data."""

from __future__ import annotations

import collections
import copy
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import TraceError


def meta_like(tensor: Tensor) -> Tensor:
    """A meta tensor with the sizes, strides, dtype and class (Tensor or Parameter) of `tensor`."""
    if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
        raise TraceError(
            "the model has parameters without a shape yet (a lazy module). Run the model once on "
            "an input before tracing it."
        )
    with torch._C.DisableTorchFunction(), torch.no_grad():
        if tensor.layout is not torch.strided:
            raise TraceError(
                f"the model holds a tensor of layout {tensor.layout}; only strided tensors can be "
                "captured. Convert it with .to_dense() before tracing."
            )
        twin = torch.empty_strided(
            tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta"
        )
    if isinstance(tensor, nn.Parameter):
        twin = nn.Parameter(twin, requires_grad=False)
        twin.__dict__.update(tensor.__dict__)
    return twin


def set_mode(module: nn.Module, training: bool) -> None:
    """`module.train(training)`; much faster where no class overrides `train`."""
    modules = list(module.modules())
    if any(type(child).train is not nn.Module.train for child in modules):
        module.train(training)
        return
    for child in modules:
        child.__dict__["training"] = training


def _nested(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _nested(item, f"{name}_{index}")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _nested(item, f"{name}_{key}")


_INTERNAL = frozenset(
    {"_parameters", "_buffers", "_modules", "_flat_weights", "training"}
    | {key for key in nn.Module().__dict__ if "hooks" in key}
)


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor the model holds: parameters, buffers, plain attributes (also in lists, dicts).

    The first name of a tensor comes first; parameters win over plain attributes.
    """
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        for key, value in module.__dict__.items():
            if isinstance(value, (Tensor, list, tuple, dict)) and key not in _INTERNAL:
                for name, tensor in _nested(value, _identifier(key)):
                    yield dot + _identifier(name), tensor


_ATOMIC = frozenset({int, float, bool, str, type(None), complex, torch.dtype, torch.device, type})


def _copy_value(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in (tuple, list) and all(type(item) in _ATOMIC for item in value):
        return value if kind is tuple else value.copy()
    if kind in (dict, collections.OrderedDict) and not value:
        return kind()
    return copy.deepcopy(value, memo)


def copy_module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """copy.deepcopy of a module, several times faster for modules that do not customise it."""
    known = memo.get(id(module))
    if known is not None:
        return known  # type: ignore[no-any-return]
    cls: Any = type(module)
    if _customises_copies(cls):
        duplicate: nn.Module = copy.deepcopy(module, memo)
        return duplicate
    twin: nn.Module = cls.__new__(cls)
    memo[id(module)] = twin
    state = twin.__dict__
    for key, value in module.__dict__.items():
        if type(value) in _ATOMIC:
            state[key] = value
        elif key == "_modules":
            state[key] = {
                name: None if child is None else copy_module(child, memo)
                for name, child in value.items()
            }
        elif key in ("_parameters", "_buffers"):
            state[key] = {name: None if t is None else memo[id(t)] for name, t in value.items()}
        else:
            state[key] = _copy_value(value, memo)
    return twin


@functools.cache
def _customises_copies(cls: Any) -> bool:
    """Whether copies of the class are made by code of its own, other than torch.nn's."""
    names = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__")
    if any(getattr(cls, name, None) is not getattr(nn.Module, name, None) for name in names):
        return True
    own_state = cls.__setstate__ is not nn.Module.__setstate__
    return own_state and not cls.__setstate__.__module__.startswith("torch.nn.")


@dataclass(frozen=True)
class Template:
    """A model ready to be copied: its tensors by name and their meta twins."""

    model: nn.Module
    tensors: dict[str, Tensor]
    names: dict[int, str]
    twins: dict[int, Tensor]
    device: torch.device

    def copy(self) -> nn.Module:
        """A fresh copy of the model with the meta twins in place of its tensors."""
        memo: dict[int, Any] = dict(self.twins)
        try:
            with warnings.catch_warnings():
                # torch's own pytree specs warn when they are copied.
                warnings.simplefilter("ignore", FutureWarning)
                duplicate = copy_module(self.model, memo)
        except Exception as error:
            raise TraceError(
                f"the model {type(self.model).__name__} cannot be copied for capture: "
                f"{type(error).__name__}: {error}. Capture runs on a copy.deepcopy of the model; "
                "remove the attribute that cannot be copied, or give its class a __deepcopy__."
            ) from error
        # Switching to train mode and back lets models drop what they cached in earlier runs.
        set_mode(duplicate, True)
        return duplicate


def template(model: nn.Module, device: torch.device) -> Template:
    """Prepare `model` for copying; `names` maps id(meta twin) to the tensor's qualified name.

    device is where a model without tensors runs.
    """
    tensors: dict[str, Tensor] = {}
    twins: dict[int, Tensor] = {}
    names: dict[int, str] = {}
    for name, tensor in named_tensors(model):
        if id(tensor) in twins:
            continue
        twin = meta_like(tensor)
        twins[id(tensor)] = twin
        names[id(twin)] = name
        tensors[name] = tensor
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"the module {path or type(model).__name__!r} is TorchScript, whose operations "
                "cannot be recorded. Trace the Python module that it was scripted from."
            )
    device = next((t.device for t in tensors.values()), device)
    return Template(model, tensors, names, twins, device)
