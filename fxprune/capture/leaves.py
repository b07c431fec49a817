"""Which modules stay modules in the graph, and what they are emitted as."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from fxprune import modules as own
from fxprune.capture.lowerings import LOWERINGS
from fxprune.capture.metacopy import COMPILED
from fxprune.walks import has_own_forward

_CONTAINERS = frozenset({"container", "transformer", "module", "lazy"})
# What a subclass may define without changing what its inherited forward computes.
_HARMLESS = frozenset(
    "__init__ __module__ __doc__ __annotations__ __annotate__ __annotate_func__ __qualname__ "
    "__repr__ __setstate__ __getstate__ __static_attributes__ __firstlineno__ __orig_bases__ "
    "__dict__ __weakref__ __slots__ __constants__ __parameters__ __annotations_cache__ "
    "__deepcopy__ __abstractmethods__ _abc_impl extra_repr reset_parameters "
    "_check_input_dim _load_from_state_dict _save_to_state_dict _version _get_name train "
    "from_pretrained init_weights".split()
)
# A weight that hooks recompute (weight_norm) is a plain tensor: its ops must be recorded.
_WEIGHTS = frozenset({"weight", "bias", "weight_ih_l0", "weight_hh_l0"})


def _is_torch(cls: type) -> bool:
    parts = cls.__module__.split(".")
    return parts[:3] == ["torch", "nn", "modules"] and parts[-1] not in _CONTAINERS


@functools.cache
def _class_base(cls: Any) -> type | None:
    kind: type = cls
    if kind.__module__ == own.__name__:
        return kind
    ancestors: list[type] = []
    for base in cls.__mro__:
        if base in LOWERINGS or base is nn.Module:
            return None
        if _is_torch(base):
            break
        ancestors.append(base)
    else:
        return None
    for inherited in ancestors:
        for name, value in vars(inherited).items():
            if name in _HARMLESS:
                continue
            if hasattr(base, name) or isinstance(value, property) or name == "__getattr__":
                return None
    forward = getattr(base, "forward", nn.Module.forward)
    abstract = base.__name__.startswith("_")  # _BatchNorm lacks what its forward calls
    return base if forward is not nn.Module.forward and not abstract else None


def lowering_of(module: nn.Module) -> Callable[..., Any] | None:
    """What runs in the place of a module's forward, unless the instance has one of its own."""
    return None if has_own_forward(module) else LOWERINGS.get(type(module))


def leaf_base(module: nn.Module) -> type | None:
    """The class as which `module` is a leaf of the graph; None: its forward is traced through."""
    if has_own_forward(module):
        return None
    cls: Any = type(module)
    base = _class_base(cls)
    if base is None or base.__module__ == own.__name__:
        return base
    if "parametrizations" in module._modules and parametrize.is_parametrized(module):
        return None
    state = module.__dict__
    for name in _WEIGHTS:
        if name in state and isinstance(state[name], Tensor):
            return None
    return base


@functools.cache
def reads_training(cls: Any) -> bool:
    """Whether a method of the class (below torch's own) mentions `training`."""
    for base in cls.__mro__:
        if base is nn.Module or _is_torch(base):
            return False
        for value in vars(base).values():
            function = getattr(value, "__wrapped__", value)
            if isinstance(function, types.FunctionType) and _mentions(function.__code__):
                return True
    return False


def _mentions(code: types.CodeType) -> bool:
    return "training" in code.co_names or any(
        _mentions(const) for const in code.co_consts if isinstance(const, types.CodeType)
    )


def may_drop_path(module: nn.Module) -> bool:
    """Whether the module is free of parameters and children and depends on the mode."""
    cls: Any = type(module)
    empty = not (module._parameters or module._buffers or module._modules)
    return empty and reads_training(cls) and leaf_base(module) is None


def drop_path_like(module: nn.Module) -> own.DropPath | None:
    """Our DropPath with the settings of a stochastic-depth module; None if they are not found."""
    p = getattr(module, "drop_prob", getattr(module, "p", None))
    mode = getattr(module, "mode", "row")
    name = type(module).__name__.lower()
    named = any(word in name for word in ("droppath", "drop_path", "stochasticdepth"))
    if not named or not isinstance(p, (int, float)) or mode not in ("row", "batch"):
        return None
    rescale = getattr(module, "scale_by_keep", True)
    return own.DropPath(float(p), mode, bool(rescale))


def torch_base(cls: type, *wanted: type) -> type | None:
    """The first torch.nn class among the ancestors of `cls` that is one of `wanted`."""
    return next((b for b in cls.__mro__ if _is_torch(b) and issubclass(b, wanted)), None)


_WITHOUT_HOOKS = {k: v for k, v in nn.Module().__dict__.items() if k != "training"}


def emitted(module: nn.Module, base: type | None = None) -> nn.Module:
    """A shallow copy without hooks, as the torch.nn class, that shares parameters and buffers."""
    base = base or leaf_base(module) or type(module)
    twin: nn.Module = nn.Module.__new__(base)
    state: dict[str, Any] = {}
    for key, value in module.__dict__.items():
        if key == COMPILED:
            continue
        if key in ("_parameters", "_buffers", "_modules"):
            state[key] = dict(value)
        elif key == "_non_persistent_buffers_set":
            state[key] = set(value)
        elif key in _WITHOUT_HOOKS:
            empty = _WITHOUT_HOOKS[key]
            state[key] = empty.copy() if isinstance(empty, dict) else empty
        elif not callable(value) or isinstance(value, (types.FunctionType, type)):
            state[key] = list(value) if isinstance(value, list) else value
    twin.__dict__.update(state)
    return twin
