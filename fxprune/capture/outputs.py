"""The output of a capture: the same structure with references in the place of tensors."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.capture.records import Rebuilt, Spec
from fxprune.errors import TraceError

if TYPE_CHECKING:
    from fxprune.capture.recorder import Recorder


def referenced(recorder: Recorder, value: Any) -> Any:
    """`value` with references for tensors, and calls of their classes for other containers."""
    if isinstance(value, Tensor):
        return recorder.convert_tensor(value)[0]
    kind = type(value)
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
    flat, spec = pytree.tree_flatten(value)
    if len(flat) == 1 and flat[0] is value:
        return value
    if not any(isinstance(item, Tensor) for item in flat):
        return value
    if not spec.is_leaf():
        return Rebuilt(
            pytree.tree_unflatten, ([referenced(recorder, item) for item in flat], Spec(spec)), {}
        )
    raise TraceError(
        f"the model returns a {type(value).__name__}, whose tensors cannot be found. Register the "
        "class with torch.utils._pytree.register_pytree_node, or return tensors, tuples and dicts."
    )
