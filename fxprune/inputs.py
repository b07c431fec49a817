"""A graph's inputs: what its placeholders take, by position or by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from fxprune.errors import FxpruneError


def bind_inputs(traced: fx.GraphModule, inputs: Any, error: type[FxpruneError]) -> tuple[Any, ...]:
    """The placeholders' values, given by position or by name; defaults fill the rest.

    Raises `error` for unknown and missing inputs.
    """
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    names = [str(node.target) for node in placeholders]
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    else:
        sequence = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        if len(sequence) > len(names):
            raise error(f"{len(sequence)} inputs were given, but the graph takes {names}.")
        given = dict(zip(names, sequence, strict=False))
    unknown = sorted(set(given) - set(names))
    defaults = {str(n.target): n.args[0] for n in placeholders if n.args}
    missing = [name for name in names if name not in given and name not in defaults]
    if unknown or missing:
        raise error(
            f"the graph takes inputs {names}; missing are {missing}, unknown are "
            f"{unknown}. Pass a tensor, a tuple in this order, or a dict by name."
        )
    return tuple(given.get(name, defaults.get(name)) for name in names)
