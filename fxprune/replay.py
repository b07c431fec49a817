"""Run a node's recorded ATen ops on real tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fxprune.meta import unpacked
from fxprune.propagate import Record, TensorAxes
from fxprune.schemas import schema_of


def invoke(record: Record, arguments: Mapping[str, Any], device: torch.device) -> Any:
    """The op's result on arguments by schema name; what it creates is on `device`."""
    func = record.call.func
    if func in _READ_STRIDES:
        seen = record.call.arguments
        arguments = {name: _laid_out(value, seen[name]) for name, value in arguments.items()}
    args, kwargs = schema_of(func).unbind(arguments)
    if kwargs.get("device") is not None:
        kwargs["device"] = device
    return _WITH_ANY_STRIDES.get(func, func)(*args, **kwargs)


def _laid_out(value: Any, seen: Any) -> Any:
    """A tensor, contiguous if the one that the analysis saw was; anything else as it is."""
    return value.contiguous() if isinstance(seen, Tensor) and seen.is_contiguous() else value


_WITH_ANY_STRIDES: Mapping[Any, Callable[..., Tensor]] = MappingProxyType(
    {
        torch.ops.aten.view.default: torch.reshape,
        torch.ops.aten._unsafe_view.default: torch.reshape,
    }
)
"""Ops that ask for strides, and what does the same whatever they are.

Kernels lay out their results as they please, and compacting makes them contiguous.
"""

_READ_STRIDES = frozenset(
    {
        torch.ops.aten.native_group_norm.default,
        torch.ops.aten.as_strided.default,
        torch.ops.aten.view_as_complex.default,
        torch.ops.aten.view.dtype,
    }
)
"""Ops that fail, or return something else, where strides are not those that they were called for.

What made them so in the model (`contiguous`) did nothing on meta, and so is not recorded.
"""


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a node's value or an op's result."""
    return [leaf for leaf in tree_leaves(unpacked(value)) if isinstance(leaf, Tensor)]


def bindings(stated: Any, value: Any) -> Iterator[tuple[int, Tensor]]:
    """The key of each tensor of a node's value, as `Propagation.nodes` states it."""
    axes = [leaf for leaf in tree_leaves(stated) if isinstance(leaf, TensorAxes)]
    for leaf, tensor in zip(axes, tensors_of(value), strict=True):
        yield leaf.key, tensor
