"""Follow a tensor back, inside one node, through ops that only give it another shape."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, fx

from fxprune.propagate import Propagation, Record, TensorAxes
from fxprune.rules.base import Layout, tensors_in

_RESHAPES = frozenset(
    """aten::view aten::_unsafe_view aten::t aten::transpose aten::permute aten::expand
    aten::unsqueeze aten::squeeze aten::clone aten::alias aten::_to_copy aten::detach""".split()
)


class Origins:
    """Where the tensors inside the nodes of a graph come from."""

    def __init__(self, propagation: Propagation) -> None:
        self.propagation = propagation
        self.makers: dict[tuple[fx.Node, int], Record] = {}
        self.users: dict[tuple[fx.Node, int], list[Record]] = {}
        for record in propagation.records:
            for key in record.outputs:
                self.makers.setdefault((record.site, key), record)
            for key, _ in record.inputs:
                self.users.setdefault((record.site, key), []).append(record)

    def root(self, key: int, record: Record, layout: Layout) -> tuple[int, Layout]:
        """The first tensor of a chain of reshapes within the op's node, and its axes."""
        maker = self._reshape(record.site, key)
        while maker is not None:
            ((key, layout),) = maker.inputs
            maker = self._reshape(record.site, key)
        return key, layout

    def source_of(self, key: int, record: Record) -> fx.Node | None:
        """The node whose value an operand is, if the op alone reads it there, and once."""
        root, _ = self.root(key, record, ())
        for node in record.site.all_input_nodes:
            stated = self.propagation.nodes[node]
            if isinstance(stated, TensorAxes) and stated.key == root:
                uses = list(self._uses(record.site, root))
                return node if uses == [(record, key)] else None
        return None

    def _reshape(self, site: fx.Node, key: int) -> Record | None:
        maker = self.makers.get((site, key))
        reshapes = maker is not None and maker.call.name in _RESHAPES and len(maker.inputs) == 1
        return maker if reshapes else None

    def _uses(self, site: fx.Node, key: int) -> Iterator[tuple[Record | None, int]]:
        """The uses of a tensor in a node, through reshapes; the node's own result counts as one."""
        stated = self.propagation.nodes[site]
        if isinstance(stated, TensorAxes) and stated.key == key:
            yield None, key
        for record in self.users.get((site, key), ()):
            if record.call.name in _RESHAPES and len(record.inputs) == 1:
                yield from self._uses(site, record.outputs[0])
            else:
                times = sum(id(t) == key for t in _operands(record))
                yield from [(record, key)] * times


def _operands(record: Record) -> list[Tensor]:
    return list(tensors_in(tuple(record.call.arguments.values())))
