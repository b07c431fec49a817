"""A graph as other compilers like it: without checks of its inputs, and with plain outputs."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fxprune.capture import guards
from fxprune.meta import unpacked

_GUARDS = frozenset(
    {
        guards.fixed_sizes,
        guards.fixed_value,
        guards.holds,
        guards.same_size,
        guards.stepped_size,
    }
)


def without_guards(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a captured graph that does not check its inputs; it shares the parameters.

    For torch.jit.script and other compilers that take no Python. Inputs of sizes that the graph was
    not made for may then compute something else, or fail.
    """
    memo = {id(t): t for t in (*module.parameters(), *module.buffers())}
    plain = copy.deepcopy(module, memo)
    for node in reversed(plain.graph.nodes):
        if node.target in _GUARDS:
            if node.users:
                node.replace_all_uses_with(node.args[0])
            plain.graph.erase_node(node)
    plain.graph.eliminate_dead_code()
    plain.recompile()
    return plain


class _Tensors(nn.Module):
    """Returns the tensors of another module's output, as a tuple."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> tuple[Tensor, ...]:
        return tensors_of(self.module(*args))


def tensors_of(output: Any) -> tuple[Tensor, ...]:
    """The tensors of a model's output, those inside objects included, in its order."""
    return tuple(leaf for leaf in tree_leaves(unpacked(output)) if isinstance(leaf, Tensor))


def plain_output(module: nn.Module, output: Any) -> nn.Module:
    """The module itself if `output` is made of tensors, tuples, lists and dicts of texts.

    Otherwise one that returns a tuple of the tensors in it.
    """
    return module if _is_plain(output) else _Tensors(module)


def _is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) is str and _is_plain(part) for key, part in value.items())
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return all(map(_is_plain, value))
    return type(value) is Tensor
