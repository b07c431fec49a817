"""Copies of a model on the meta device: the same Python objects, tensors without data."""

from __future__ import annotations

import collections
import copy
import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import TraceError
from fxprune.walks import buffers_in, has_hooks, named_modules, parameters_in


def meta_like(tensor: Tensor) -> Tensor:
    """A meta tensor with the sizes, strides, dtype and class (Tensor or Parameter) of `tensor`."""
    if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
        raise TraceError(
            "the model has parameters without a shape yet (a lazy module). Run the model once on "
            "an input before tracing it."
        )
    with torch._C.DisableTorchFunction():
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


def _converted(twin: Tensor, dtype: torch.dtype) -> Tensor:
    """A meta tensor, or parameter, in another dtype."""
    with torch.no_grad():
        other = twin.to(dtype)
    if isinstance(twin, nn.Parameter):
        other = nn.Parameter(other, requires_grad=False)
        other.__dict__.update(twin.__dict__)
    return other


def set_mode(module: nn.Module, training: bool) -> None:
    """`module.train(training)`; much faster where no class overrides `train`."""
    modules = [child for _, child in named_modules(module)]
    if _override_train(modules):
        module.train(training)
        return
    for child in modules:
        child.__dict__["training"] = training


def _override_train(modules: Iterable[nn.Module]) -> bool:
    classes: set[Any] = set(map(type, modules))
    return any(cls.train is not nn.Module.train for cls in classes)


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


def attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module keeps beside parameters, buffers and children; none for layers of torch's."""
    if not _is_plain_layer(module):
        for name, value in module.__dict__.items():
            if name not in _INTERNAL:
                yield name, value


@functools.cache
def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name)


def held_tensors(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that modules hold: parameters, buffers, plain attributes (in lists, dicts, too).

    The first name of a tensor comes first; parameters win over plain attributes.
    """
    modules = list(modules)
    yield from parameters_in(modules)
    yield from buffers_in(modules)
    for prefix, module in modules:
        dot = f"{prefix}." if prefix else ""
        for key, value in module.__dict__.items():
            if key in _INTERNAL or type(value) in _ATOMIC:
                continue
            if isinstance(value, (Tensor, list, tuple, dict)):
                for name, tensor in _nested(value, _identifier(key)):
                    yield dot + _identifier(name), tensor


_ATOMIC = frozenset(
    {int, float, bool, str, type(None), complex, torch.dtype, torch.device, type}
    | {torch.jit.ScriptFunction}  # refuses to be copied
)
_COLLECTIONS = frozenset({tuple, list, dict, set, collections.OrderedDict})


COUNTER = "num_batches_tracked"
"""Where batch norms count their batches in train mode."""

COMPILED = "_compiled_call_impl"
"""Where `module.compile()` leaves what calls the module that it was called on."""


def _copy_value(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in (tuple, list) and _ATOMIC.issuperset(map(type, value)):
        return kind(value)
    return copy.deepcopy(value, memo)


def copy_module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """copy.deepcopy of a module, several times faster for modules that do not customise it.

    As there, what `module.compile()` left is not copied: it calls the original.
    """
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
        kind = type(value)
        if kind in _ATOMIC:
            state[key] = value
        elif kind in _COLLECTIONS and not value:  # first: most are dicts of hooks
            state[key] = kind()
        elif key == "_modules":
            state[key] = {
                name: None if child is None else copy_module(child, memo)
                for name, child in value.items()
            }
        elif key in ("_parameters", "_buffers"):
            state[key] = {name: None if t is None else memo[id(t)] for name, t in value.items()}
        elif key != COMPILED:
            state[key] = _copy_value(value, memo)
    return twin


def shallow_copy(module: nn.Module) -> nn.Module:
    """copy.copy of a module, several times faster for modules that do not customise it."""
    cls: Any = type(module)
    if _customises_copies(cls) or cls.__setstate__ is not nn.Module.__setstate__:
        return copy.copy(module)
    twin: nn.Module = cls.__new__(cls)
    twin.__dict__.update(module.__dict__)
    twin.__dict__.pop(COMPILED, None)
    return twin


@functools.cache
def _customises_copies(cls: Any) -> bool:
    """Whether copies of the class are made by code of its own, other than torch.nn's."""
    names = ("__copy__", "__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__")
    if any(getattr(cls, name, None) is not getattr(nn.Module, name, None) for name in names):
        return True
    own_state = cls.__setstate__ is not nn.Module.__setstate__
    return own_state and not cls.__setstate__.__module__.startswith("torch.nn.")


def _is_plain_layer(module: nn.Module) -> bool:
    torchs = type(module).__module__.startswith("torch.nn.modules.")
    return torchs and not has_hooks(module) and not module._modules


@dataclass(frozen=True)
class Template:
    """A model ready to be copied: its modules by path, its tensors by name, their meta twins."""

    model: nn.Module
    modules: Mapping[str, nn.Module]
    tensors: dict[str, Tensor]
    names: dict[int, str]
    twins: dict[int, Tensor]
    device: torch.device

    def copy(self, training: bool) -> nn.Module:
        """A copy of the model with the meta twins in place of its tensors, in one of the modes.

        Fresh, but for layers of torch's own, which copies share: no forward writes to them.
        """
        memo: dict[int, Any] = {**self.twins, **self._layers}
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
        if _override_train(self.modules.values()):
            # Switching to train mode and back lets models drop what they cached in earlier runs.
            duplicate.train(True)
            if not training:
                duplicate.train(False)
        else:
            set_mode(duplicate, training)
        return duplicate

    def copy_again(self, duplicate: nn.Module) -> nn.Module:
        """A copy of a copy that forward has run on, with what it keeps in its attributes."""
        shared = (*self.twins.values(), *self._layers.values())
        return copy_module(duplicate, {id(value): value for value in shared})

    @functools.cached_property
    def _layers(self) -> dict[int, nn.Module]:
        """Copies of the model's layers of torch's own classes without children and hooks."""
        memo: dict[int, Any] = dict(self.twins)
        return {id(m): copy_module(m, memo) for m in self.modules.values() if _is_plain_layer(m)}

    @functools.cached_property
    def counters(self) -> frozenset[str]:
        """The buffers in which batch norms count their batches in train mode."""
        return frozenset(name for name in self.tensors if name.endswith(COUNTER))

    @property
    def dtype(self) -> torch.dtype | None:
        """The precision of the model: the dtype of its first floating tensor."""
        return next((t.dtype for t in self.tensors.values() if t.is_floating_point()), None)

    def converted(self, old: torch.dtype, new: torch.dtype) -> Template:
        """The same model with its tensors of one dtype in another one."""
        twins = {key: _converted(t, new) if t.dtype == old else t for key, t in self.twins.items()}
        names = {id(twins[key]): self.names[id(t)] for key, t in self.twins.items()}
        return replace(self, twins=twins, names=names)


def template(model: nn.Module, device: torch.device) -> Template:
    """Prepare `model` for copying; `names` maps id(meta twin) to the tensor's qualified name.

    device is where a model without tensors runs.
    """
    tensors: dict[str, Tensor] = {}
    twins: dict[int, Tensor] = {}
    names: dict[int, str] = {}
    modules = named_modules(model)
    for name, tensor in held_tensors(modules):
        if id(tensor) in twins:
            continue
        twin = meta_like(tensor)
        twins[id(tensor)] = twin
        names[id(twin)] = name
        tensors[name] = tensor
    for path, module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"the module {path or type(model).__name__!r} is TorchScript, whose operations "
                "cannot be recorded. Trace the Python module that it was scripted from."
            )
    device = next((t.device for t in tensors.values()), device)
    return Template(model, dict(modules), tensors, names, twins, device)
