"""Dimensions that grow with the model's inputs although some of their units are the model's own.

A class token, registers or a prompt stand beside the tokens of a sequence; channels are folded into
the time steps. Propagation sees one size of such a dimension: there, it is a concatenation or a
product like any other. But where its parts shrink unevenly, its new size is no multiple of the old
one; what is taken of it by position, from the end or to the end are other units at other sizes; and
a view into literal sizes may cut it elsewhere. None of the units may go then.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from torch import fx

from fxprune.axes import Axis, factors_of, find, is_frozen, leaves, segments_of
from fxprune.capture.growth import REGROUPS, VARIES
from fxprune.capture.inputs import Sizes, on_meta, tensors_in
from fxprune.capture.records import TraceInfo
from fxprune.dynamic_sizes import name_of
from fxprune.meta import Shapes, shapes_on_meta
from fxprune.rules.base import Layout

if TYPE_CHECKING:
    from fxprune.propagate import Record

Values = tuple[Any, ...]
Layouts = Mapping[fx.Node, Any]
Run = tuple[tuple[Axis, ...], bool]
Place = tuple[int | None, ...]

_BY_POSITION = frozenset(
    "aten::slice aten::select aten::split aten::split_with_sizes aten::index aten::index_select "
    "aten::roll aten::glu".split()
)
_VIEWS = frozenset("view reshape unflatten view_as reshape_as".split())


def growing(
    traced: fx.GraphModule, values: Values, layouts: Layouts, records: Sequence[Record]
) -> Iterator[tuple[Axis, str]]:
    """The axes that may not shrink because their size follows the inputs, and why not.

    values   the placeholders' values on meta that the graph was propagated with
    layouts  node → its value, with something that has `axes` in the place of each tensor
    records  the executed ops

    Each must be frozen before the next is asked for: what is frozen already cannot move. None of a
    graph that `trace` did not make: only its example's sizes are known.
    """
    info = traced.meta.get("fxprune")
    if not isinstance(info, TraceInfo):
        return
    fixed = _fixed(layouts) if info.far else frozenset()

    def loose(axes: Iterable[Axis]) -> list[Axis]:
        return [axis for axis in axes if id(find(axis)) not in fixed]

    found = {
        "beside a part whose size follows the inputs": loose(_uneven(layouts)),
        "read by position, and its size follows the inputs": loose(_taken_apart(records)),
    }
    whole = loose(_passed_on(layouts, records))
    views = {
        node: around
        for node, around in _views(layouts)
        if node.meta.get(REGROUPS, True) or not info.far or loose(filter(_may_grow, around))
    }
    if not (views or whole or any(found.values())):
        return
    shapes = _shapes_elsewhere(traced, info, values)
    everywhere = {} if shapes is None else _sizes_of_axes(layouts, shapes)
    sizes = {key: occurring[0] for key, occurring in everywhere.items()}
    for reason, axes in found.items():
        yield from ((axis, reason) for axis in axes if sizes.get(id(find(axis))) != axis.size)
    for axis in whole:
        if len(set(everywhere.get(id(find(axis)), ()))) != 1:
            yield axis, "read by position, and its size follows the inputs"
    for node, around in views.items():
        if _is_cut(node, layouts, shapes, sizes) if shapes else _may_be_cut(node, around):
            for axis in around:
                yield axis, "viewed in another way at other sizes of the inputs"


def _uneven(layouts: Layouts) -> list[Axis]:
    """The concatenations of which some segments hold other free atoms than others."""
    axes = {id(axis): axis for value in layouts.values() for axis in _axes(value)}
    return [
        axis
        for axis in axes.values()
        if any(atom.reason for atom in leaves(axis)) and len(set(map(_free, segments_of(axis)))) > 1
    ]


def _taken_apart(records: Iterable[Record]) -> Iterator[Axis]:
    """The dimensions that may grow, that an op reads by position and does not pass on whole."""
    for record in records:
        if record.call.name in _BY_POSITION:
            yield from filter(_may_grow, record.moved)


def _passed_on(layouts: Layouts, records: Iterable[Record]) -> Iterator[Axis]:
    """The dimensions that may grow, of which an op reads all positions at the example's size.

    Where it does so by number (`x[:, :12]`, or a list of indices), it cuts them at other sizes.
    """
    for record in records:
        if record.call.name in _BY_POSITION:
            yield from filter(_may_grow, record.inputs[0][1])
    for node, value in layouts.items():
        if name_of(node) == "getitem":  # of all that there is, it executes nothing
            yield from filter(_may_grow, _axes(value))


def _views(layouts: Layouts) -> Iterator[tuple[fx.Node, Layout]]:
    """The views of or into channels, and the axes around them."""
    for node, value in layouts.items():
        if name_of(node) in _VIEWS:
            around = (*_axes(layouts[node.all_input_nodes[0]]), *_axes(value))
            if any(map(_free, around)):
                yield node, around


def _may_be_cut(view: fx.Node, around: Layout) -> bool:
    """`_is_cut` where no other sizes can be tried, by those near the example's alone."""
    return view.meta.get(REGROUPS, True) or any(map(_may_grow, around))


def _fixed(layouts: Layouts) -> Set[int]:
    """The identities of the axes that capture saw, of one size wherever it did."""
    seen: set[int] = set()
    varying: set[int] = set()
    for node, value in layouts.items():
        varies: tuple[int, ...] | None = () if node.op == "get_attr" else node.meta.get(VARIES)
        if varies is not None:
            for dim, axis in enumerate(_axes(value)):
                (varying if dim in varies else seen).add(id(find(axis)))
    return seen - varying


def _axes(value: Any) -> Layout:
    return getattr(value, "axes", ())


def _may_grow(axis: Axis) -> bool:
    """Whether units that may go stand beside frozen ones, or occur more than once.

    A channel at each of six time steps is a product with a frozen factor of six, or six times that
    unit where the product was taken apart into units. Only of such a dimension can the size follow
    the inputs, because all that is free is the model's own.
    """
    return 0 < len(_free(axis)) < len([*leaves(axis)])


def _free(axis: Axis) -> frozenset[int]:
    """The keys of the atoms of an axis that may shrink."""
    return frozenset(atom.key for atom in leaves(axis) if atom.reason is None)


# Elsewhere ----------------------------------------------------------------------------------------


def _shapes_elsewhere(
    traced: fx.GraphModule, info: TraceInfo, values: Values
) -> Mapping[fx.Node, Shapes] | None:
    """The nodes' shapes where all that may vary of the inputs has other sizes.

    Far from the example's, because convolutions and pooling round. None where the graph takes no
    such inputs.
    """
    names = [str(node.target) for node in traced.graph.nodes if node.op == "placeholder"]
    for doubled in (True, False):
        sizes = other_sizes(info, names, values, doubled)
        if not doubled and sizes.items() & _sizes_here(values, names):
            break  # half a step is none: these sizes would show nothing
        # A guard may refuse these sizes, and the model's operations may raise anything.
        with contextlib.suppress(Exception):
            return shapes_on_meta(traced, tuple(on_meta(values, names, sizes)))
    return None


def _sizes_here(values: Values, names: Sequence[str]) -> Set[tuple[tuple[str, int], int]]:
    """The example's sizes: ((label, dimension), size)."""
    return {
        ((label, dim), size)
        for value, name in zip(values, names, strict=True)
        for label, _, tensor in tensors_in(value, name)
        for dim, size in enumerate(tensor.shape)
    }


def other_sizes(info: TraceInfo, names: Sequence[str], values: Values, doubled: bool) -> Sizes:
    """Twice (and a step more) or half the sizes that may vary, in the steps that they allow."""
    sizes: dict[tuple[str, int], int] = {}
    for name, value in zip(names, values, strict=True):
        for label, _, tensor in tensors_in(value, name):
            for dim in info.dynamic.get(label, ()):
                size, step = tensor.shape[dim], info.steps.get(label, {}).get(dim, 1)
                steps = 1 - (-size // step) if doubled else -(size // 2 // step)
                sizes[label, dim] = size + steps * step
    return sizes


def _sizes_of_axes(
    layouts: Layouts, shapes: Mapping[fx.Node, Shapes]
) -> Mapping[int, tuple[int, ...]]:
    """The sizes of each dimension's axis, by its identity, wherever it occurs."""
    sizes: dict[int, tuple[int, ...]] = {}
    for node, value in layouts.items():
        for axis, size in zip(_axes(value), *shapes[node][:1], strict=False):
            key = id(find(axis))
            sizes[key] = (*sizes.get(key, ()), size)
    return sizes


# Views --------------------------------------------------------------------------------------------


def _is_cut(
    view: fx.Node,
    layouts: Layouts,
    shapes: Mapping[fx.Node, Shapes],
    sizes: Mapping[int, int],
) -> bool:
    """`is_cut` for a node of the graph and its source."""
    source = view.all_input_nodes[0]
    before, after = _axes(layouts[source]), _axes(layouts[view])
    return is_cut(before, shapes[source][0], after, shapes[view][0], sizes)


def is_cut(
    before: Layout,
    sizes_before: Sequence[int],
    after: Layout,
    sizes_after: Sequence[int],
    sizes: Mapping[int, int],
) -> bool:
    """Whether a view puts a free factor into another dimension at other sizes, or cuts it there.

    before, after  the axes of what is viewed and of the view
    sizes_…        their sizes elsewhere
    sizes          what is known of axes there, by identity
    """
    there: list[tuple[int, bool]] = []
    for axis, size in zip(before, sizes_before, strict=True):
        there += _sized(_runs(axis), size, sizes)
    if any(size == 0 for size, _ in there):
        return True  # not known
    return _places_here(before, after) != _places(there, sizes_after)


def _places_here(before: Layout, after: Layout) -> list[Place]:
    """Where the free factors of what is viewed lie in the view, at the sizes of the axes."""
    factors = [
        (math.prod(factor.size for factor in run), free)
        for axis in before
        for run, free in _runs(axis)
    ]
    return _places(factors, [axis.size for axis in after])


def _runs(axis: Axis) -> list[Run]:
    """The factors of an axis, frozen neighbours together; whether they are free."""
    return [
        (run, free)
        for free, group in itertools.groupby(factors_of(axis), lambda f: not is_frozen(f))
        for run in ([(factor,) for factor in group] if free else [tuple(group)])
    ]


def _sized(runs: Sequence[Run], size: int, sizes: Mapping[int, int]) -> list[tuple[int, bool]]:
    """The runs' sizes in a dimension of that size: 0 for what is not known.

    The model's own factors have one size everywhere, and that of one run follows from the others'.
    Only of several is looked up what they have elsewhere: an axis need not have that here, where a
    dimension of one position may lie beside it that grows.
    """
    found = [
        math.prod(0 if is_frozen(f) or _may_grow(f) else f.size for f in run) for run, _ in runs
    ]
    if found.count(0) > 1:
        found = [
            number or math.prod(sizes.get(id(f), 0) for f in run)
            for number, (run, _) in zip(found, runs, strict=True)
        ]
    if found.count(0) == 1:
        found[found.index(0)] = size // math.prod(filter(None, found))
    known = math.prod(found) == size
    return [(number * known, free) for number, (_, free) in zip(found, runs, strict=True)]


def _places(factors: Sequence[tuple[int, bool]], shape: Sequence[int]) -> list[Place]:
    """The dimension, from the end, in which each free factor lies, innermost first.

    A factor takes the strides from the product of what is inside it up to its size times that, and
    so does a dimension: the factor lies in the one that begins at a divisor and ends at a multiple.
    Of a factor that is cut, the place is None and the strides.
    """
    strides = [*itertools.accumulate(reversed(shape), operator.mul, initial=1)]
    places: list[Place] = []
    inner = 1
    for size, free in reversed(factors):
        outer = inner * size
        if free:
            around = (
                (dim,)
                for dim, (low, high) in enumerate(itertools.pairwise(strides))
                if inner % low == 0 and high % outer == 0
            )
            places.append(next(around, (None, inner, outer)))
        inner = outer
    return places
