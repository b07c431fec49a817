"""Fused projections, as of queries, keys and values in one layer.

A view that splits one axis into (K, ...) whose K indices are then taken apart becomes a split of
that axis, so that each part has an axis of its own. Parts are single indices (``qkv[0]``,
``unbind``) or runs of them (``qkv[..., :-2, :]``: all queries, then one key and one value).
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxprune.capture.chains import UNFLATTEN, Chain, Shape, argument, calls
from fxprune.capture.growth import origin

_SELECT = {"select", torch.select}
_UNBIND = {"unbind", torch.unbind}


@dataclass(frozen=True)
class _Run:
    """Neighbouring indices of a dimension; `dropped` if one of them was selected."""

    start: int
    stop: int
    dropped: bool = False


def _taken(node: fx.Node, rank: int, size: Mapping[int, int]) -> tuple[int, Any] | None:
    """(dimension, user -> run) if all users of `node` each take one run of one dimension.

    `size` maps the dimensions that count to their sizes.
    """
    users = list(node.users)
    if len(users) == 1 and calls(users[0], _UNBIND):
        dim = argument(users[0], 1, "dim", 0)
        taken = {u: u.args[1] for u in users[0].users if u.target is operator.getitem}
        if len(taken) != len(users[0].users) or not isinstance(dim, int):
            return None
        if not all(isinstance(i, int) for i in taken.values()):
            return None
        return _runs(dim % rank, taken, size)
    found: dict[fx.Node, Any] = {}
    dims: set[int] = set()
    for user in users:
        place = _index(user, node, rank)
        if place is None:
            return None
        dims.add(place[0])
        found[user] = place[1]
    return _runs(dims.pop(), found, size) if len(dims) == 1 else None


def _index(user: fx.Node, node: fx.Node, rank: int) -> tuple[int, Any] | None:
    """The one dimension that a user of `node` indexes, and the index."""
    if user.args[:1] != (node,):
        return None
    if calls(user, _SELECT):
        dim, index = argument(user, 1, "dim"), argument(user, 2, "index")
        return (dim % rank, index) if isinstance(dim, int) else None
    if user.op != "call_function" or user.target is not operator.getitem:
        return None
    items = user.args[1] if isinstance(user.args[1], tuple) else (user.args[1],)
    if any(item is Ellipsis for item in items):
        at = next(i for i, item in enumerate(items) if item is Ellipsis)
        missing = rank - (len(items) - 1)
        items = (*items[:at], *(slice(None),) * missing, *items[at + 1 :])
    chosen = [(d, i) for d, i in enumerate(items) if i != slice(None)]
    return chosen[0] if len(chosen) == 1 else None


def _runs(
    dim: int, taken: Mapping[fx.Node, Any], size: Mapping[int, int]
) -> tuple[int, dict[fx.Node, _Run]] | None:
    """The indices as runs; None if one of them is none, or if two runs overlap in part."""
    if dim not in size:
        return None
    found = {user: _run(index, size[dim]) for user, index in taken.items()}
    runs = {user: run for user, run in found.items() if run is not None}
    ordered = sorted({(run.start, run.stop) for run in runs.values()})
    apart = all(a[1] <= b[0] for a, b in itertools.pairwise(ordered))
    return (dim, runs) if len(runs) == len(found) and apart else None


def _run(index: Any, size: int) -> _Run | None:
    if type(index) is int:
        return _Run(index % size, index % size + 1, True)
    if isinstance(index, list) and len(index) == 1 and type(index[0]) is int:
        return _Run(index[0] % size, index[0] % size + 1)
    if not isinstance(index, slice):
        return None
    bounds = (index.start, index.stop, index.step)
    if not all(bound is None or type(bound) is int for bound in bounds):
        return None
    picked = range(size)[index]
    return _Run(picked.start, picked.stop) if picked.step == 1 and len(picked) else None


def fused(graph: fx.Graph, chain: Chain, shapes: dict[fx.Node, Shape]) -> bool:
    """Rewrite a view whose users take it apart along one of its factors; True if they do."""
    rank = len(chain.order)
    # Runs of the last factor are slices of the axis itself: nothing is gained.
    factors = {chain.order.index(chain.first + f): n for f, n in enumerate(chain.factors[:-1])}
    taken = _taken(chain.last, rank, factors)
    if taken is None:
        return False
    dim, takers = taken
    label = chain.order[dim]
    place = label - chain.first
    if chain.factors[place] == 1:
        return False
    parts = _parts(graph, chain, place, set(takers.values()))
    for taker, run in takers.items():
        kept = [d for d in chain.order if d != label or not run.dropped]
        order = tuple(d - (run.dropped and d > label) for d in kept)
        with graph.inserting_before(taker):
            part = parts[run]
            if order != tuple(range(len(order))):
                part = graph.call_method("permute", (part, *order))
                part.meta.update(origin(chain.last))
        taker.replace_all_uses_with(part)
        if taker in shapes:
            shapes[part] = shapes[taker]
    return True


def _parts(graph: fx.Graph, chain: Chain, place: int, runs: set[_Run]) -> dict[_Run, fx.Node]:
    """The runs of one factor of the split axis, in the shape of the view."""
    factors, view = chain.factors, chain.view
    before, count, behind = factors[:place], factors[place], factors[place + 1 :]
    width = math.prod(behind)
    bounds = sorted({0, count, *(r.start for r in runs), *(r.stop for r in runs)})
    lengths = [stop - start for start, stop in itertools.pairwise(bounds)]
    even = len(set(lengths)) == 1
    sizes = width * lengths[0] if even else [n * width for n in lengths]
    parts: dict[_Run, fx.Node] = {}
    with graph.inserting_before(view):
        source, axis = chain.source, chain.axis
        if before:
            source = graph.call_method("unflatten", (source, axis, (*before, count * width)))
            source.meta.update(origin(view))
            axis += len(before)
        whole = graph.call_method("split", (source, sizes), {"dim": axis})
        for run in sorted(runs, key=lambda run: (run.start, run.dropped)):
            part = graph.call_function(operator.getitem, (whole, bounds.index(run.start)))
            own = () if run.dropped else (run.stop - run.start,)
            parts[run] = _shaped(graph, chain, part, axis, place, (*own, *behind))
    return parts


def _shaped(
    graph: fx.Graph, chain: Chain, part: fx.Node, axis: int, place: int, sizes: tuple[int, ...]
) -> fx.Node:
    """A part, with `sizes` in the place of the factor that was taken apart and those behind it."""
    given = _sizes(chain.view)
    if given is not None:
        start = chain.first + place
        stop = chain.first + len(chain.factors)
        behind = given[start + 1 : stop]
        own = sizes[: len(sizes) - len(behind)]
        part = graph.call_method("reshape", (part, *given[:start], *own, *behind, *given[stop:]))
    elif len(sizes) > 1:
        part = graph.call_method("unflatten", (part, axis, sizes))
    part.meta.update(origin(chain.view))
    return part


def _sizes(view: fx.Node) -> tuple[Any, ...] | None:
    """The size arguments of a view; None for an unflatten, which names one axis only."""
    if calls(view, UNFLATTEN):
        return None
    given = view.args[1:] or (view.kwargs.get("shape", view.kwargs.get("size")),)
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = tuple(given[0])
    return tuple(given)
