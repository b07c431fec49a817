"""What the schemas of operators say, kept: to ask torch takes longer than most rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch


@dataclass(frozen=True)
class Schema:
    """The schema of one overload.

    name          with the namespace: "aten::add"
    parameters    (name, default) in order
    keyword_only  the names of those that are not given by position
    mutates       whether it writes to an argument
    random        whether its result depends on torch's generator
    """

    name: str
    parameters: tuple[tuple[str, Any], ...]
    keyword_only: frozenset[str]
    mutates: bool
    random: bool

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, in the order of the parameters, defaults filled in."""
        return {
            name: args[place] if place < len(args) else kwargs.get(name, default)
            for place, (name, default) in enumerate(self.parameters)
        }

    def unbind(self, arguments: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """What to call the operator with, by position and by keyword."""
        args = [value for name, value in arguments.items() if name not in self.keyword_only]
        return args, {n: value for n, value in arguments.items() if n in self.keyword_only}


@cache
def schema_of(func: Any) -> Schema:
    """The schema of an operator's overload, such as `torch.ops.aten.add.Tensor`."""
    schema = func._schema
    return Schema(
        schema.name,
        tuple((argument.name, argument.default_value) for argument in schema.arguments),
        frozenset(argument.name for argument in schema.arguments if argument.kwarg_only),
        schema.is_mutable,
        torch.Tag.nondeterministic_seeded in func.tags,
    )
