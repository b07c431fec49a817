"""Notes on a graph's nodes: what the sizes of its captures tell of dimensions that may grow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx

from fxprune.capture.chains import UNFLATTEN, VIEWS, Shape, calls, groups, is_static

VARIES = "varies"
"""The key in a node's metadata of the dimensions that were seen to vary."""

REGROUPS = "regroups"
"""The key in a view's metadata of whether it was seen to regroup axes."""

_LIKE = {"view_as", "reshape_as"}


def are_far(inputs: Iterable[Shape]) -> bool:
    """Whether all sizes of inputs that vary were captured at twice the example's, or more."""
    return all(
        max(size) >= 2 * size[0] for shape in inputs for size in shape if not is_static(size)
    )


def note_dimensions(shapes: Mapping[fx.Node, Shape]) -> None:
    """Note on each node which dimensions of its result vary."""
    for node, shape in shapes.items():
        node.meta[VARIES] = tuple(dim for dim, size in enumerate(shape) if not is_static(size))


def note_views(graph: fx.Graph, shapes: Mapping[fx.Node, Shape]) -> None:
    """Note on each view whether it regroups axes."""
    for node in graph.nodes:
        if node in shapes and calls(node, VIEWS | UNFLATTEN | _LIKE):
            source = node.all_input_nodes[0]
            node.meta[REGROUPS] = source.op != "get_attr" and (
                source not in shapes or regroups(shapes[source], shapes[node])
            )


def regroups(before: Shape, after: Shape) -> bool:
    """Whether a view puts other axes together at other sizes than at the example's.

    Channels times twelve pixels, viewed as rows of twelve, stay channels of twelve pixels only.
    """
    if all(map(is_static, before)) and all(map(is_static, after)):
        return False
    return groups(before, after) != groups(_in_first(before), _in_first(after))


def _in_first(shape: Shape) -> Shape:
    """The sizes in the first capture."""
    return tuple(size[:1] for size in shape)


def origin(node: fx.Node) -> dict[str, Any]:
    """The metadata of a node that say where in the model it comes from, and how it views that."""
    return {key: node.meta[key] for key in ("source", "line", REGROUPS) if key in node.meta}
