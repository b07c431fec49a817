"""What a rule sees and what it says.

A rule is a function ``(Call) -> Effect``: it unifies the axes that the op couples and states the
axes of its outputs. `Effect.kind` says how the op treats removed positions (see
`fxprune.maskable`), `Effect.over` which axes it sums, normalises or otherwise mixes over.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxprune.algebra import Algebra
from fxprune.axes import Axis, find, is_frozen

Layout: TypeAlias = tuple[Axis, ...]


class Kind(enum.Enum):
    """How an op treats positions that were removed."""

    POINTWISE = "each output element depends on the input elements at its position"
    MOVE = "elements are copied to new positions"
    WINDOW = "zero stays zero; nothing is mixed over prunable axes"
    CONTRACT = "sums products over `over`"
    SUM = "sums, or sums powers, over `over`: zeros do not count"
    STATISTIC = "the result over `over` depends on how many elements there are"
    BATCH_NORM = "an affine map per channel"
    RECURRENT = "contracts `over`; a unit without weights stays at its initial state"
    FRESH = "the result does not depend on any tensor"


@dataclass(frozen=True)
class Lookup:
    """Each index of `rows` stands for an index of `table`, by the data in `index`.

    Raises ValueError unless both are frozen.
    """

    rows: Axis
    table: Axis
    index: Tensor

    def __post_init__(self) -> None:
        if not (is_frozen(self.rows) and is_frozen(self.table)):
            raise ValueError("a lookup by data needs frozen rows and a frozen table")


@dataclass(frozen=True)
class Effect:
    """The axes of each output tensor, and how the op treats removed positions."""

    outputs: tuple[Layout, ...]
    kind: Kind
    over: Layout = ()
    lookup: Lookup | None = None


@dataclass(frozen=True)
class Call:
    """One executed op: its schema-named arguments, the axes of its tensors, its results."""

    name: str
    arguments: Mapping[str, Any]
    outputs: tuple[Tensor, ...]
    algebra: Algebra
    layout_of: Callable[[Tensor], Layout]
    constant_of: Callable[[Tensor], Tensor | None]
    func: Any  # the ATen overload
    dynamic: bool = False  # a size that follows the model's inputs is among the arguments
    direct: bool = False  # the graph's node calls this very op, so that a rewrite can reach it
    writes: bool = False  # the op writes to its first tensor

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def tensors(self) -> list[Tensor]:
        """All tensor arguments in order, those in lists included."""
        found: list[Tensor] = []
        for value in self.arguments.values():
            if isinstance(value, (Tensor, tuple, list)):
                found.extend(tensors_in(value))
        return found

    def axes(self, argument: str) -> Layout:
        """The axes of a tensor argument; none if it is absent."""
        value = self.arguments.get(argument)
        return () if value is None else self.layout_of(value)

    def constant(self, size: int, reason: str) -> Axis:
        """A fresh frozen axis."""
        return self.algebra.one if size == 1 else self.algebra.constant(size, reason)

    def fresh(self, tensor: Tensor, reason: str) -> Layout:
        """Frozen axes for every dimension of `tensor`."""
        return tuple(self.constant(size, reason) for size in tensor.shape)

    def freeze(self, axes: Sequence[Axis], reason: str) -> None:
        """Freeze `axes`, naming the op."""
        for axis in axes:
            if not is_frozen(axis):
                self.algebra.freeze(axis, f"{reason} ({self.name})")

    def dim(self, argument: str | int, rank: int) -> int:
        """A dimension argument, counted from the front."""
        value = self.arguments[argument] if isinstance(argument, str) else argument
        return int(value) % max(rank, 1)


Rule: TypeAlias = Callable[[Call], Effect]


def tensors_in(value: Any) -> Sequence[Tensor]:
    """The tensors in a nest of tuples and lists."""
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return ()


def broadcast(call: Call, layouts: Sequence[Layout], shape: Sequence[int]) -> Layout:
    """Unify layouts under broadcasting; the axes of a result of the given shape."""
    algebra, result = call.algebra, []
    for position in range(len(shape)):
        axis: Axis | None = None
        for layout in layouts:
            index = len(layout) - len(shape) + position
            if index < 0:
                continue
            if layout[index].size != shape[position]:
                call.freeze((layout[index],), "a dimension of size 1 is broadcast")
            elif axis is None:
                axis = find(layout[index])
            else:
                axis = algebra.unify(axis, layout[index])
        result.append(axis or call.constant(shape[position], "constant"))
    return tuple(result)


def table(*families: Mapping[str, Rule]) -> Mapping[str, Rule]:
    """One read-only table of rule families; an op that is registered twice raises."""
    merged: dict[str, Rule] = {}
    for family in families:
        for name, rule in family.items():
            if name in merged:
                raise ValueError(f"two rules for {name}")
            merged[name] = rule
    return MappingProxyType(merged)


def rows(rule: Rule, names: str) -> dict[str, Rule]:
    """The same rule for several ops, named in one string."""
    return dict.fromkeys(names.split(), rule)


def dims_of(value: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """A `dim` argument that may be absent (all), an int or a list, counted from the front.

    A scalar has no dimension, though torch takes 0 and -1 for one.
    """
    if rank == 0 or value is None or (not isinstance(value, int) and len(value) == 0):
        return tuple(range(rank))
    values = (value,) if isinstance(value, int) else value
    return tuple(v % rank for v in values)


def index_values(tensor: Tensor) -> list[int]:
    """The entries of an integer tensor of any shape."""
    return [int(v) for v in tensor.reshape(-1).tolist()]


__all__ = [
    "Call",
    "Effect",
    "Kind",
    "Layout",
    "Lookup",
    "Rule",
    "broadcast",
    "dims_of",
    "index_values",
    "rows",
    "table",
    "tensors_in",
    "torch",
]
