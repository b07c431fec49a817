"""Dimensions that grow with the model's inputs although some of their units are the model's own.

A class token, registers or a prompt stand beside the tokens of a sequence; channels are folded into
the time steps. Propagation sees one size of such a dimension: there, it is a concatenation or a
product like any other. But where its parts shrink unevenly, its new size is no multiple of the old
one; what is taken of it by position, from the end or to the end are other units at other sizes; and
a view into literal sizes may cut it elsewhere. None of the units may go then.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import fx
from torch.utils._pytree import tree_leaves

from fxprune.axes import Axis, factors_of, find, is_frozen, leaves, segments_of
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
_VIEWS = frozenset("view reshape flatten unflatten view_as reshape_as".split())


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
    views = [*_views(layouts)]
    if not views and not any(found.values()):
        return
    shapes = _shapes_elsewhere(traced, info, values)
    for reason, places in found.items():
        for node, dim, axis in places:
            if shapes is None or shapes[node][0][dim] != axis.size:
                yield axis, reason
    for node in views if shapes is None else _cut_elsewhere(views, layouts, shapes):
        for tensor in (node, *node.all_input_nodes):
            for axis in _axes(layouts[tensor]):
                yield axis, "viewed in another way at other sizes of the inputs"


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
                    if _is_partly_free(axis) and id(find(axis)) not in passed:
                        yield source, dim, axis


def _views(layouts: Layouts) -> Iterator[fx.Node]:
    """The views of or into partly free dimensions."""
    for node in layouts:
        if name_of(node) in _VIEWS:
            around = [a for n in (node, *node.all_input_nodes) for a in _axes(layouts[n])]
            if any(map(_is_partly_free, around)):
                yield node


def _cut_elsewhere(
    views: Sequence[fx.Node], layouts: Layouts, shapes: Mapping[fx.Node, Shapes]
) -> Iterator[fx.Node]:
    """The views that put a free factor elsewhere, or cut it, at the sizes of `shapes`."""
    known: dict[int, int] = {}
    for node, value in layouts.items():
        axes = _axes(value)
        for axis, size in zip(axes, shapes[node][0] if axes else (), strict=True):
            known.setdefault(id(find(axis)), size)
    for node in views:
        source = node.all_input_nodes[0]
        here, there = [], []
        for axis, size in zip(_axes(layouts[source]), shapes[source][0], strict=True):
            runs = _runs(axis)
            here += [(math.prod(f.size for f in run), free) for run, free in runs]
            there += _sizes_elsewhere(runs, size, known)
        now = _places(here, [axis.size for axis in _axes(layouts[node])])
        if now != _places(there, shapes[node][0]):
            yield node


def _runs(axis: Axis) -> list[tuple[list[Axis], bool]]:
    """The factors of an axis, frozen neighbours together; whether they are free."""
    runs: list[tuple[list[Axis], bool]] = []
    for factor in factors_of(axis):
        free = not is_frozen(factor)
        if runs and not free and not runs[-1][1]:
            runs[-1][0].append(factor)
        else:
            runs.append(([factor], free))
    return runs


def _sizes_elsewhere(
    runs: Sequence[tuple[Sequence[Axis], bool]], size: int, known: Mapping[int, int]
) -> list[tuple[int, bool]]:
    """The sizes of runs in a dimension of that size: of one of them it follows from the others'.

    A size of 0 stands for one that is not known.
    """
    sizes = [
        run[0].size if free else math.prod(known.get(id(find(f)), 0) for f in run)
        for run, free in runs
    ]
    if sizes.count(0) == 1:
        sizes[sizes.index(0)] = size // math.prod(s for s in sizes if s)
    return [(s, free) for s, (_, free) in zip(sizes, runs, strict=True)]


def _places(factors: Sequence[tuple[int, bool]], shape: Sequence[int]) -> list[int | None]:
    """The dimension of a view of this shape in which each free factor lies; None if it is cut."""
    ends = list(itertools.accumulate(reversed(shape), operator.mul, initial=1))
    places: list[int | None] = []
    inner = 1
    for size, free in reversed(factors):
        outer = inner * size
        if free:
            around = (
                d for d, (low, high) in enumerate(itertools.pairwise(ends)) if low <= inner < high
            )
            place = next(around, None)
            whole = place is not None and size > 0 and outer <= ends[place + 1]
            aligned = whole and inner % ends[place or 0] == 0
            places.append(place if aligned else None)
        inner = outer
    return places


def _axes(value: Any) -> tuple[Axis, ...]:
    return getattr(value, "axes", ())


def _is_partly_free(axis: Axis) -> bool:
    return len({atom.reason is None for atom in leaves(axis)}) > 1


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
    """Twice (and a step more) or half the sizes that may vary, in the steps that they allow."""
    sizes: dict[tuple[str, int], int] = {}
    for name, value in zip(names, values, strict=True):
        for label, _, tensor in tensors_in(value, name):
            for dim in info.dynamic.get(label, ()):
                size, step = tensor.shape[dim], info.steps.get(label, {}).get(dim, 1)
                steps = 1 - (-size // step) if doubled else -(size // 2 // step)
                sizes[label, dim] = size + steps * step
    return sizes
