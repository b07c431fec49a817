"""Building graphs and graph modules, faster than fx does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from fxprune.walks import module_at

_HELD = ("_parameters", "_buffers", "_modules")
_BLANK = frozenset(vars(nn.Module())) - {"training", "_non_persistent_buffers_set", *_HELD}


def add_node(
    graph: fx.Graph, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> fx.Node:
    """`graph.create_node`, without its search of all arguments for torch's symbolic sizes."""
    node = graph.create_node(op, target)
    return _with_arguments(node, args, kwargs)


def copy_node(graph: fx.Graph, node: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """`graph.node_copy`, without that search. copies: the nodes that `node` reads -> theirs."""
    args, kwargs = (fx.node.map_arg(a, copies.__getitem__) for a in (node.args, node.kwargs))
    new = graph.create_node(node.op, node.target, name=node.name, type_expr=node.type)
    new.meta.update(node.meta)
    return _with_arguments(new, args, kwargs)


def _with_arguments(node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
    node.args = args
    if kwargs:
        node.kwargs = kwargs
    return node


def assemble(root: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """A GraphModule of the class name `name` that takes over all that `root` holds.

    The constructor of fx copies what the graph refers to, path by path: that takes longer, and
    loses which buffers are saved. As there, modules and tensors stand in the order in which the
    graph uses them, so that the same graph gives tied parameters the same first name.
    """
    _sort_by_use(root, graph)
    module = fx.GraphModule(nn.Module(), fx.Graph(), name)
    vars(module).update({key: value for key, value in vars(root).items() if key not in _BLANK})
    module.graph = graph
    return module


def _sort_by_use(root: nn.Module, graph: fx.Graph) -> None:
    used: dict[str, dict[str, int]] = {}  # path -> names in it -> place
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            path = str(node.target)
            while path:
                path, _, name = path.rpartition(".")
                names = used.setdefault(path, {})
                if name in names:
                    break  # and so are the paths that lead here
                names[name] = len(names)
    for path, names in used.items():
        state = vars(module_at(root, path))
        for held in _HELD:
            if len(state[held]) > 1:
                order = sorted(state[held], key=lambda name: names.get(name, len(names)))
                state[held] = {name: state[held][name] for name in order}
