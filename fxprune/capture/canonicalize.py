"""Rewrites of a captured graph that change nothing but make later analysis exact.

1. Fused projections (`fxprune.capture.projections`).
2. Channel shuffles: a view, a transposition and a view back that only permute one axis become an
   index_select with a constant permutation.
3. Lists of indices, as in ``x[:, [2, 0, 1]]``, become constant tensors, whose values can be
   followed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxprune.capture.chains import (
    UNFLATTEN,
    VIEWS,
    Chain,
    Shape,
    argument,
    calls,
    find_chains,
    is_static,
)
from fxprune.capture.growth import origin
from fxprune.capture.projections import fused

_FLATTEN = {"flatten", torch.flatten}
_INDEXED = {operator.getitem, operator.setitem}


def canonicalize(
    graph: fx.Graph, shapes: dict[fx.Node, Shape], constant: Callable[[Tensor], str]
) -> int:
    """Rewrite `graph` in place; `constant` registers a tensor and returns its attribute name.

    Nodes without an entry in `shapes` are left alone; new ones get one. Returns the number of
    rewrites; nodes that lost their users stay for dead-code elimination.
    """
    count = 0
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is F.channel_shuffle:
            count += _named_shuffle(graph, node, shapes, constant)
        elif node.op == "call_function" and node.target in _INDEXED:
            count += _listed(graph, node, constant)
        elif calls(node, VIEWS) or calls(node, UNFLATTEN):
            count += any(
                fused(graph, chain, shapes) or _shuffle(graph, chain, shapes, constant)
                for chain in find_chains(node, shapes)
            )
    return count


def _shuffle(
    graph: fx.Graph,
    chain: Chain,
    shapes: dict[fx.Node, Shape],
    constant: Callable[[Tensor], str],
) -> bool:
    if len(chain.last.users) != 1 or chain.last is chain.view:
        return False
    (back,) = chain.last.users
    if not (calls(back, VIEWS) or calls(back, _FLATTEN)) or back.args[0] is not chain.last:
        return False
    source = chain.source
    if shapes.get(back) != shapes[source]:
        return False
    stop = chain.first + len(chain.factors)
    # One view may also regroup other axes: only a pure split of one axis is a permutation of it.
    if len(chain.order) != len(shapes[source]) + len(chain.factors) - 1:
        return False
    outside = [d for d in chain.order if not chain.first <= d < stop]
    inside = chain.order[chain.first : stop]
    if outside != sorted(outside) or sorted(inside) != list(range(chain.first, stop)):
        return False
    local = [d - chain.first for d in inside]
    n = math.prod(chain.factors)
    permutation = torch.arange(n).reshape(chain.factors).permute(local).reshape(-1)
    _replace(graph, back, source, chain.axis, permutation, constant, shapes)
    return True


def _named_shuffle(
    graph: fx.Graph,
    node: fx.Node,
    shapes: dict[fx.Node, Shape],
    constant: Callable[[Tensor], str],
) -> bool:
    source, count = node.args[0], argument(node, 1, "groups")
    if not isinstance(source, fx.Node) or source not in shapes or not isinstance(count, int):
        return False
    size = shapes[source][1]
    if not is_static(size):
        return False
    permutation = torch.arange(size[0]).reshape(count, -1).t().reshape(-1)
    _replace(graph, node, source, 1, permutation, constant, shapes)
    return True


def _replace(
    graph: fx.Graph,
    node: fx.Node,
    source: fx.Node,
    axis: int,
    permutation: Tensor,
    constant: Callable[[Tensor], str],
    shapes: dict[fx.Node, Shape],
) -> None:
    with graph.inserting_before(node):
        index = graph.get_attr(constant(permutation))
        made = graph.call_function(torch.index_select, (source, axis, index))
    made.meta.update(origin(node))
    shapes[made] = shapes[source]
    node.replace_all_uses_with(made)


def _listed(graph: fx.Graph, node: fx.Node, constant: Callable[[Tensor], str]) -> int:
    """Replace the lists of integers in an index by constant tensors."""
    key: Any = node.args[1]
    items: tuple[Any, ...] = key if isinstance(key, tuple) else (key,)
    lists = [item for item in items if isinstance(item, list) and _all_integers(item)]
    if not lists:
        return 0
    with graph.inserting_before(node):
        new = [
            graph.get_attr(constant(torch.tensor(list(item)))) if item in lists else item
            for item in items
        ]
    node.update_arg(1, tuple(new) if isinstance(key, tuple) else new[0])
    return 1


def _all_integers(item: list[Any]) -> bool:
    return bool(item) and all(
        _all_integers(entry) if isinstance(entry, list) else type(entry) is int for entry in item
    )
