"""The rows that make a group's units, or the columns that read them: one side, never both.

A unit is gone as soon as what makes it is, or as what reads it is: a loss summed over both sides
would count it twice. So would the layers of a chain, as an expansion and the depthwise convolution
after it (the last ones before the reads count), and factors of a product, as a gate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fxprune.analysis import Analysis
from fxprune.axes import leaves
from fxprune.errors import NotApplicableError
from fxprune.groups import Group, Member
from fxprune.propagate import TensorAxes
from fxprune.rules.base import Kind, Layout
from fxprune.statistics.layers import Layer
from fxprune.statistics.reads import computed_keys

SideName: TypeAlias = Literal["producer", "consumer"]


@dataclass(frozen=True)
class Slice:
    """One layer's part of a group.

    rows   True for rows of the weight, False for columns
    slots  int64 [groups, n]: the slot (context · size + unit) of each row or entry of a patch in
           each group of the layer, -1 for none
    """

    layer: Layer
    rows: bool
    slots: Tensor


@dataclass(frozen=True)
class Side:
    """The slices of a group on one side. What they lose is summed, and divided by `share`: where
    nothing but the rows of several layers makes a product, each of them alone would remove it.
    """

    slices: tuple[Slice, ...]
    share: int = 1


def find_side(group: Group, analysis: Analysis, layers: Iterable[Layer], prefer: SideName) -> Side:
    """The preferred side if linear layers and convolutions alone are on it, else the other one.

    Producers also need all normalisations of the group folded into them, and must not meet in a
    product. NotApplicableError if neither side will do.
    """
    known = tuple(layers)
    producers = _producers(group, analysis, known)
    consumers = _consumers(group, known)
    product = _meets_in_product(group, analysis)
    able = {
        "producer": Side(producers) if producers and not product else None,
        "consumer": Side(consumers) if consumers else None,
    }
    other: SideName = "consumer" if prefer == "producer" else "producer"
    found = able[prefer] or able[other]
    if found is not None:
        return found
    if producers:
        return Side(producers, len(producers))
    raise NotApplicableError(
        "neither are its units rows of linear layers and convolutions with all norms folded, nor "
        "columns of such alone"
    )


def _producers(group: Group, analysis: Analysis, layers: tuple[Layer, ...]) -> tuple[Slice, ...]:
    """The last layers before the reads; empty if something else makes units, or norms them."""
    members = [m for m in group.members if m.role != "consumer"]
    found: list[Slice] = []
    for layer in layers:
        own = [m for m in members if m.parameter == layer.weight]
        if own:
            slots = _row_slots(own, group, layer)
            if slots is None:
                return ()
            if bool((slots >= 0).any()):
                found.append(Slice(layer, True, slots))
    explained = {name for s in found for name in (s.layer.weight, s.layer.bias)}
    norms = {s.layer.norm for s in found}
    if any(
        m.parameter not in explained and m.parameter.rpartition(".")[0] not in norms
        for m in members
    ):
        return ()
    return tuple(_last(found, group, analysis))


def _row_slots(members: list[Member], group: Group, layer: Layer) -> Tensor | None:
    """[groups, rows]"""
    total = torch.full((layer.rows[1] - layer.rows[0],), -1)
    for member in members:
        laid = _laid(member, group, layer)
        if laid.numel() != laid.shape[0]:
            return None
        rows = laid.reshape(-1)[layer.rows[0] : layer.rows[1]]
        total = torch.where(rows >= 0, rows, total)
    return total.reshape(layer.groups, -1)


def _consumers(group: Group, layers: tuple[Layer, ...]) -> tuple[Slice, ...]:
    """The layers that read the units; empty if something else does, too."""
    members = [m for m in group.members if m.role == "consumer"]
    found: list[Slice] = []
    explained: set[str] = set()
    for layer in layers:
        own = [m for m in members if m.parameter == layer.weight]
        if own:
            slots = _column_slots(own, group, layer)
            if slots is None:
                return ()
            explained.add(layer.weight)
            found.append(Slice(layer, False, slots))
    return tuple(found) if all(m.parameter in explained for m in members) else ()


def _column_slots(members: list[Member], group: Group, layer: Layer) -> Tensor | None:
    """[groups, entries of a patch]"""
    total = torch.full((layer.groups, layer.shape[1]), -1)
    for member in members:
        if member.dim != 1:
            return None
        laid = _laid(member, group, layer)
        if laid.numel() != laid.shape[0] * laid.shape[1]:
            return None
        laid = laid.reshape(laid.shape[:2])
        if len(laid) > 1:  # each group of a convolution reads units of its own
            laid = laid[layer.rows[0] : layer.rows[1]].reshape(layer.groups, layer.outputs, -1)
            if not bool((laid == laid[:, :1]).all()):
                return None
            laid = laid[:, 0]
        total = torch.where(laid >= 0, laid, total)
    return total.repeat_interleave(layer.kernel, 1)


def _laid(member: Member, group: Group, layer: Layer) -> Tensor:
    """The slot of each entry of the layer's parameter; size 1 in dimensions that do not matter."""
    numbers = torch.arange(group.slots).reshape(group.shape)
    return member.spread(numbers, group, fill=-1, rank=len(layer.shape))


def _last(slices: list[Slice], group: Group, analysis: Analysis) -> Iterable[Slice]:
    """Those from which units get to a read without passing another one of the slices.

    A layer that turns each unit into the same unit, as a depthwise convolution, is such a passage.
    """
    reading = {m.parameter for m in group.members if m.role == "consumer"}
    passages = {
        call
        for s in slices
        if s.layer.weight not in reading
        for call in s.layer.calls
        if any(_holds(source, group, analysis) for source in call.all_input_nodes)
    }
    for piece in slices:
        if any(_arrives(call, passages, group, analysis) for call in piece.layer.calls):
            yield piece


def _arrives(start: fx.Node, passages: set[fx.Node], group: Group, analysis: Analysis) -> bool:
    seen, queue = {start}, [start]
    while queue:
        node = queue.pop()
        for user in node.users:
            if user in passages or user in seen:
                continue
            if not _holds(user, group, analysis):
                return True
            seen.add(user)
            queue.append(user)
    return False


def _holds(node: fx.Node, group: Group, analysis: Analysis) -> bool:
    """Whether units of the group are along a dimension of the node's value."""
    stated = analysis.propagation.nodes.get(node)
    tensors = [leaf for leaf in tree_leaves(stated) if isinstance(leaf, TensorAxes)]
    return any(_along(leaf.axes, group, analysis) for leaf in tensors)


def _along(layout: Layout, group: Group, analysis: Analysis) -> bool:
    units = analysis.grouped.units
    return any(units.get(a.key, ("",))[0] == group.name for axis in layout for a in leaves(axis))


_PRODUCTS = frozenset("aten::mul aten::mul_ aten::div aten::div_ aten::addcmul".split())


def _meets_in_product(group: Group, analysis: Analysis) -> bool:
    """Whether two activations that hold the group's units are multiplied with each other."""
    computed = computed_keys(analysis.propagation)
    for record in analysis.propagation.records:
        if record.call.name in _PRODUCTS or record.effect.kind is Kind.CONTRACT:
            known = [(key, axes) for key, axes in record.inputs if key in computed]
            if len({key for key, axes in known if _along(axes, group, analysis)}) > 1:
                return True
    return False
