"""Dimensions that grow with the model's inputs although some of their units are the model's own.

A class token, registers or a prompt stand beside the tokens of a sequence; channels are folded into
the time steps. Propagation sees one size of such a dimension: there, it is a concatenation or a
product like any other. But where its parts shrink unevenly, its new size is no multiple of the old
one; and what is taken of it by position, from the end or to the end are other units at other sizes.
None of the units may go then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx
from torch.utils._pytree import tree_leaves

from fxprune.axes import Axis, find, leaves, segments_of
from fxprune.capture.inputs import Sizes, on_meta, tensors_in
from fxprune.capture.records import TraceInfo
from fxprune.dynamic_sizes import name_of
from fxprune.meta import Shapes, shapes_on_meta

Values = tuple[Any, ...]
Layouts = Mapping[fx.Node, Any]
Place = tuple[fx.Node, int, Axis]

_BY_POSITION = frozenset(
    "getitem setitem narrow select split split_with_sizes chunk tensor_split unbind roll unfold "
    "index_select index_add index_copy index_fill gather take_along_dim scatter scatter_add "
    "slice_scatter select_scatter index_put index_put_ glu".split()
)


def growing(traced: fx.GraphModule, values: Values, layouts: Layouts) -> Iterator[tuple[Axis, str]]:
    """The axes that may not shrink because their size follows the inputs, and why not.

    values   the placeholders' values on meta that the graph was propagated with
    layouts  node → its value, with something that has `axes` in the place of each tensor

    None of a graph that `trace` did not make: only its example's sizes are known.
    """
    info = traced.meta.get("fxprune")
    if not isinstance(info, TraceInfo):
        return
    found = {
        "beside a part whose size follows the inputs": [*_uneven(layouts)],
        "read by position, and its size follows the inputs": [*_taken_apart(layouts)],
    }
    if not any(found.values()):
        return
    shapes = _shapes_elsewhere(traced, info, values)
    for reason, places in found.items():
        for node, dim, axis in places:
            if shapes is None or shapes[node][0][dim] != axis.size:
                yield axis, reason


def _uneven(layouts: Layouts) -> Iterator[Place]:
    """The concatenations of which some segments hold other free atoms than others."""
    places = {
        id(find(axis)): (node, dim, axis)
        for node, value in layouts.items()
        for dim, axis in enumerate(_axes(value))
    }
    for node, dim, axis in places.values():
        segments = segments_of(axis)
        partly = len(segments) > 1 and any(atom.reason is not None for atom in leaves(axis))
        if partly and len({_free(segment) for segment in segments}) > 1:
            yield node, dim, axis


def _taken_apart(layouts: Layouts) -> Iterator[Place]:
    """The partly free dimensions that a node reads by position and does not pass on whole."""
    for node, value in layouts.items():
        if name_of(node) in _BY_POSITION:
            passed = {id(find(a)) for leaf in tree_leaves(value) for a in _axes(leaf)}
            for source in node.all_input_nodes:
                for dim, axis in enumerate(_axes(layouts[source])):
                    kinds = {atom.reason is None for atom in leaves(axis)}
                    if len(kinds) > 1 and id(find(axis)) not in passed:
                        yield source, dim, axis


def _axes(value: Any) -> tuple[Axis, ...]:
    return getattr(value, "axes", ())


def _free(axis: Axis) -> frozenset[int]:
    """The keys of the atoms of an axis that may shrink."""
    return frozenset(atom.key for atom in leaves(axis) if atom.reason is None)


def _shapes_elsewhere(
    traced: fx.GraphModule, info: TraceInfo, values: Values
) -> Mapping[fx.Node, Shapes] | None:
    """The nodes' shapes where all that may vary of the inputs has other sizes.

    Far from the example's, because convolutions and pooling round. None where the graph takes no
    such inputs.
    """
    names = [str(node.target) for node in traced.graph.nodes if node.op == "placeholder"]
    for doubled in (True, False):
        sizes = _other_sizes(info, names, values, doubled)
        try:
            return shapes_on_meta(traced, tuple(on_meta(values, names, sizes)))
        except Exception:  # a guard's, or whatever the model's operations raise at these sizes
            continue
    return None


def _other_sizes(info: TraceInfo, names: list[str], values: Values, doubled: bool) -> Sizes:
    """Twice or half the sizes of the dimensions that may vary, in the steps that they allow."""
    sizes: dict[tuple[str, int], int] = {}
    for name, value in zip(names, values, strict=True):
        for label, _, tensor in tensors_in(value, name):
            for dim in info.dynamic.get(label, ()):
                size, step = tensor.shape[dim], info.steps.get(label, {}).get(dim, 1)
                steps = -(-size // step) if doubled else -(size // 2 // step)
                sizes[label, dim] = size + steps * step
    return sizes
