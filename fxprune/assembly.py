"""Graph modules from a graph and the modules that it calls."""

from __future__ import annotations

from torch import fx, nn

from fxprune.walks import module_at

_HELD = ("_parameters", "_buffers", "_modules")
_BLANK = frozenset(vars(nn.Module())) - {"training", "_non_persistent_buffers_set", *_HELD}


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
