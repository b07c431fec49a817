"""The output of a capture: the same structure with references in the place of tensors."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.capture import guards
from fxprune.capture.records import Rebuilt, Spec
from fxprune.capture.sizes import SizeFloat, SizeInt, of_capture
from fxprune.errors import TraceError

if TYPE_CHECKING:
    from fxprune.capture.recorder import Recorder


def referenced(recorder: Recorder, value: Any) -> Any:
    """`value` with references for tensors, and calls of their classes for other containers."""
    if isinstance(value, Tensor):
        return recorder.convert_tensor(value)[0]
    kind = type(value)
    if kind in (SizeInt, SizeFloat):
        return of_capture(value, recorder.log)
    if kind in (tuple, list):
        return kind(referenced(recorder, item) for item in value)
    if kind is dict:
        return {key: referenced(recorder, item) for key, item in value.items()}
    if kind is torch.Size:
        return tuple(value)
    if isinstance(value, tuple):
        items = [referenced(recorder, item) for item in value]
        named = hasattr(value, "_fields")
        return Rebuilt(kind, tuple(items) if named else (items,), {})
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        kept = {k: referenced(recorder, v) for k, v in fields.items() if v is not None}
        return Rebuilt(kind, (), kept)
    if isinstance(value, (collections.OrderedDict, collections.UserDict)) or (
        isinstance(value, Mapping) and kind.__init__ is dict.__init__
    ):
        return Rebuilt(kind, ([(k, referenced(recorder, v)) for k, v in value.items()],), {})
    return _registered(recorder, value)


def _registered(recorder: Recorder, value: Any) -> Any:
    """A class registered as a pytree, or any object that holds tensors in its attributes."""
    flat, spec = pytree.tree_flatten(value)
    if not spec.is_leaf():
        items = [referenced(recorder, item) for item in flat]
        return Rebuilt(pytree.tree_unflatten, (items, Spec(spec)), {})
    if not _holds_tensors(value):
        return value if type(value) in _LITERAL else Spec(value)
    if not hasattr(value, "__dict__"):
        raise TraceError(
            f"the model returns a {type(value).__name__}, whose tensors cannot be found. Register "
            "the class with torch.utils._pytree.register_pytree_node, or return tensors, tuples "
            "and dicts."
        )
    state = {key: referenced(recorder, item) for key, item in vars(value).items()}
    return Rebuilt(guards.new_object, (Spec(type(value)), state), {})


_LITERAL = frozenset({int, float, bool, str, type(None), complex, torch.dtype, torch.device})


def _holds_tensors(value: Any, depth: int = 4) -> bool:
    if isinstance(value, Tensor):
        return True
    if depth == 0:
        return False
    if isinstance(value, (list, tuple)):
        return any(_holds_tensors(item, depth - 1) for item in value)
    if isinstance(value, Mapping):
        return any(_holds_tensors(item, depth - 1) for item in value.values())
    return any(_holds_tensors(item, depth - 1) for item in getattr(value, "__dict__", {}).values())
