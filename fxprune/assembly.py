"""Graph modules from a graph and the modules that it calls."""

from __future__ import annotations

from torch import fx, nn

_BLANK = frozenset(vars(nn.Module())) - {
    "training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set",
}  # fmt: skip


def assemble(root: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """A GraphModule of the class name `name` that takes over all that `root` holds.

    The constructor of fx copies what the graph refers to, path by path: that takes longer, and
    loses which buffers are saved.
    """
    module = fx.GraphModule(nn.Module(), fx.Graph(), name)
    vars(module).update({key: value for key, value in vars(root).items() if key not in _BLANK})
    module.graph = graph
    return module
