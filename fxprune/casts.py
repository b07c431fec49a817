"""Keeping a graph from computing in less precision than its parameters have."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from fxprune.walks import named_tensors

_METHODS: Mapping[Any, torch.dtype] = MappingProxyType(
    {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16}
)


def widen_casts(module: fx.GraphModule) -> None:
    """Let a graph's casts to narrower floating types lead to the type of its parameters, in place.

    Models compute norms, softmax and states in float32, whatever their own precision is.
    """
    floating = (t.dtype for _, t in named_tensors(module) if t.is_floating_point())
    own = max(floating, key=_digits, default=torch.float16)

    def widened(value: Any) -> Any:
        narrow = isinstance(value, torch.dtype) and value.is_floating_point
        return own if narrow and _digits(value) < _digits(own) else value

    for node in module.graph.nodes:
        if node.op == "call_method" and _digits(_METHODS.get(node.target, own)) < _digits(own):
            node.target, node.args = "to", (node.args[0], own)
        elif node.op in ("call_method", "call_function"):
            node.args = _mapped(node.args, widened)
            node.kwargs = _mapped(node.kwargs, widened)
    module.recompile()


def _mapped(value: Any, change: Any) -> Any:
    return tree_map(change, value, is_leaf=lambda v: isinstance(v, (fx.Node, Tensor)))


def _digits(dtype: torch.dtype) -> float:
    return -torch.finfo(dtype).eps
