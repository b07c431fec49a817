"""What stands at removed positions: each op is followed by one that would see it.

A group that is said to be maskable must be so even if the next op sums over its dimension, or
contracts it with a weight that has zeros there. A group that is said not to be, although zeroing it
is exact, needs a reason in the op table.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fxprune.axes import is_frozen
from fxprune.propagate import TensorAxes
from fxprune.rules.base import Layout
from tests.rules.harness import Case, Sample, is_exact, plain_case
from tests.rules.op_table import IDS, TABLE

Place: TypeAlias = tuple[str, int | None]
Reader: TypeAlias = Callable[[fx.GraphModule, fx.Node, int, int, int], fx.Node]


def _results(case: Case) -> Iterator[tuple[Place, Layout]]:
    """The tensors that a case returns: (node, item) and axes."""
    output = next(n for n in case.traced.graph.nodes if n.op == "output")
    propagation = case.analysis.propagation
    for node in output.all_input_nodes:
        stated = propagation.nodes[node]
        items = list(enumerate(stated)) if isinstance(stated, (tuple, list)) else [(None, stated)]
        for item, value in items:
            if isinstance(value, TensorAxes):
                yield (node.name, item), value.axes


def _append(
    traced: fx.GraphModule, readers: Sequence[tuple[Place, int, int]], make: Reader
) -> None:
    """Replace the outputs by what `make` computes of them, along every given dimension."""
    nodes = {node.name: node for node in traced.graph.nodes}
    output = next(n for n in traced.graph.nodes if n.op == "output")
    results: list[fx.Node] = []
    with traced.graph.inserting_before(output):
        for (name, item), dim, size in readers:
            node = nodes[name]
            if item is not None:
                node = traced.graph.call_function(operator.getitem, (node, item))
            results.append(make(traced, node, dim, size, len(results)))
    output.args = (tuple(results),)


def _sum(traced: fx.GraphModule, node: fx.Node, dim: int, size: int, number: int) -> fx.Node:
    return traced.graph.call_function(torch.sum, (node, dim))


def _contract(traced: fx.GraphModule, node: fx.Node, dim: int, size: int, number: int) -> fx.Node:
    weight = torch.randn(size, 2, dtype=torch.float64)
    traced.register_parameter(f"reader{number}", nn.Parameter(weight, requires_grad=False))
    last = traced.graph.call_function(torch.movedim, (node, dim, -1))
    read = traced.graph.get_attr(f"reader{number}")
    return traced.graph.call_function(torch.matmul, (last, read))


def _followed(sample: Sample, make: Reader) -> Case | None:
    """The sample with every free dimension of its floating results read."""
    plain = plain_case(sample)
    values = [t for t in tree_leaves(plain.traced(*plain.data)) if isinstance(t, Tensor)]
    readers: list[tuple[Place, int, int]] = []
    for value, (place, axes) in zip(values, _results(plain), strict=False):
        if value.dtype == torch.float64:
            free = [d for d, axis in enumerate(axes) if axis.size > 1 and not is_frozen(axis)]
            readers += [(place, d, axes[d].size) for d in free]
    if not readers:
        return None
    return Case.build(sample, partial(_append, readers=readers, make=make))


@pytest.mark.parametrize("make", [_sum, _contract])
@pytest.mark.parametrize("sample", TABLE, ids=IDS)
def test_removed_positions(sample: Sample, make: Reader) -> None:
    case = None if sample.random else _followed(sample, make)
    if case is None:
        return
    mixed = case.mixed()
    for group in case.analysis.groups:
        if group.name in mixed:
            exact = is_exact(case, group, random.Random(0))
            assert exact or not group.maskable, f"{group} is not maskable"
            assert not exact or group.maskable or sample.over_flagged, f"{group} is maskable"
