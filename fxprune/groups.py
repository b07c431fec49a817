"""Dependency groups: which entries of which parameters belong to which unit.

A group is a class of coupled parameter dimensions. It is plain data: the criteria read it, the
plan refers to it and the rewriter slices by it, and none of them needs to know a module type.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fxprune.errors import AnalysisError

Role = Literal["producer", "bias", "norm", "consumer"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, eq=False, repr=False)
class Member:
    """One dimension of one parameter (or buffer) that shrinks with its group.

    parameter    qualified name of the parameter or buffer
    dim          the dimension that shrinks
    role         "producer" (makes the units), "bias", "norm" or "consumer" (reads them)
    unit         int64 [n]: the unit that each index along `dim` belongs to, -1 where it belongs
                 to none of this group's. Many-to-one: several indices may make up one unit.
    context      int64 [m] or None: the context of each index along `context_dim`, -1 for none.
                 Groups with several contexts have it on every member.
    context_dim  the dimension that `context` runs along: `dim` itself (heads side by side in one
                 dimension) or another one (a grouped convolution's weight). Ignored without
                 `context`.
    """

    parameter: str
    dim: int
    role: Role
    unit: Tensor
    context: Tensor | None = None
    context_dim: int = 0

    def __post_init__(self) -> None:
        where = f"member {self.parameter!r}, dimension {self.dim}"
        if self.role not in ROLES:
            raise AnalysisError(f"{where}: unknown role {self.role!r}; use one of {list(ROLES)}.")
        if self.dim < 0 or self.context_dim < 0:
            raise AnalysisError(f"{where}: dimensions are counted from 0, never from the end.")
        for what, index in (("unit", self.unit), ("context", self.context)):
            if index is not None and (index.dim() != 1 or index.dtype != torch.int64):
                raise AnalysisError(
                    f"{where}: the {what} map must be a 1-d int64 tensor, "
                    f"not {index.dtype} of shape {tuple(index.shape)}."
                )
        context = self.unit if self.context is None else self.context
        if self.context_dim == self.dim and len(context) != len(self.unit):
            raise AnalysisError(
                f"{where}: the unit map has {len(self.unit)} indices and the context map along "
                f"the same dimension has {len(context)}."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Member):
            return NotImplemented
        return (
            (self.parameter, self.dim, self.role) == (other.parameter, other.dim, other.role)
            and torch.equal(self.unit, other.unit)
            and _same(self.context, other.context)
            and (self.context is None or self.context_dim == other.context_dim)
        )

    def __hash__(self) -> int:
        return hash((self.parameter, self.dim, self.role, len(self.unit)))

    def __repr__(self) -> str:
        covered = int((self.unit >= 0).sum())
        where = "" if self.context is None else f", contexts along {self.context_dim}"
        return (
            f"Member({self.parameter!r}, dim={self.dim}, {self.role}, "
            f"{covered} of {len(self.unit)} indices{where})"
        )

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions that decide where an entry belongs: `dim`, then another `context_dim`."""
        if self.context is None or self.context_dim == self.dim:
            return (self.dim,)
        return (self.dim, self.context_dim)

    def slots(self, group: Group) -> Tensor:
        """The slot `context * size + unit` of each index along `.dims`, -1 where it has none.

        int64 of shape [n], or [n, m] when the contexts run along another dimension.
        """
        if self.context is None:
            return self.unit
        unit, context = self.unit, self.context
        if self.context_dim != self.dim:
            unit, context = unit[:, None], context[None, :]
        return torch.where((unit >= 0) & (context >= 0), context * group.size + unit, -1)

    def spread(self, values: Tensor, group: Group, fill: float | bool, rank: int) -> Tensor:
        """`values` (of `group.shape`) laid along this member's parameter of `rank` dimensions.

        Entries that belong to no unit get `fill`. The result has size 1 in every dimension that
        does not matter, so that it broadcasts against the parameter.
        """
        slots = self.slots(group).to(values.device)
        flat = torch.cat([values.reshape(-1), values.new_full((1,), fill)])
        laid = flat[slots]  # slot -1 is the last element: the fill
        if self.dims != tuple(sorted(self.dims)):
            laid = laid.t()
        shape = [1] * rank
        for dim, size in zip(sorted(self.dims), laid.shape, strict=True):
            shape[dim] = size
        return laid.reshape(shape)

    def reduce(self, entries: Tensor, group: Group) -> Tensor:
        """Sum of `entries` (of the parameter's shape) over what each unit owns: `group.shape`.

        A unit that owns no entry gets 0. Raises AnalysisError if the entries do not fit the map.
        """
        self.check_shape(tuple(entries.shape), group)
        others = [dim for dim in range(entries.dim()) if dim not in self.dims]
        return self.collect(entries.sum(dim=others) if others else entries, group)

    def collect(self, sums: Tensor, group: Group) -> Tensor:
        """What `reduce` makes of sums over all dimensions but `.dims`, which stand in order."""
        if self.dims != tuple(sorted(self.dims)):
            sums = sums.t()
        slots = self.slots(group).to(sums.device).reshape(-1)
        total = torch.zeros(group.slots + 1, dtype=sums.dtype, device=sums.device)
        total.index_add_(0, slots % len(total), sums.reshape(-1))  # -1 becomes the last, for none
        return total[:-1].reshape(group.shape)

    def entries(self, parameter: Tensor, group: Group) -> Tensor:
        """The entries of each unit, in the order of the parameter's indices.

        Returns [size, k], or [contexts, size, k] when the group has several contexts. Raises
        AnalysisError if the parameter does not fit the index map, or if units differ in k.
        """
        self.check_shape(tuple(parameter.shape), group)
        slots = self.slots(group).reshape(-1)
        counts = torch.bincount(slots[slots >= 0], minlength=group.slots)
        if int(counts.min()) != int(counts.max()):
            raise AnalysisError(
                f"group {group.name!r}, {self!r}: the units own between {int(counts.min())} and "
                f"{int(counts.max())} indices; every unit must own equally many."
            )
        order = torch.argsort(slots, stable=True)[int((slots < 0).sum()) :].to(parameter.device)
        rows = parameter.movedim(self.dims, tuple(range(len(self.dims))))
        rows = rows.reshape(len(slots), -1).index_select(0, order)
        return rows.reshape(*group.shape, -1)

    def check_shape(self, shape: tuple[int, ...], group: Group) -> None:
        """Raise AnalysisError unless a parameter of this shape fits the member's index maps."""
        expected = {self.dim: len(self.unit)}
        if self.context is not None:
            expected[self.context_dim] = len(self.context)
        for dim, size in expected.items():
            if dim >= len(shape) or shape[dim] != size:
                raise AnalysisError(
                    f"group {group.name!r}: parameter {self.parameter!r} has shape {shape}, but "
                    f"the group expects {size} indices along dimension {dim}. These are not the "
                    f"parameters of the graph that was analysed."
                )


@dataclass(frozen=True, repr=False)
class Group:
    """A class of coupled parameter dimensions that lose the same units.

    name      stable between runs, such as "layer1.0.conv1.weight:0"
    size      number of units (in each context)
    contexts  1, or the number of contexts (heads, convolution groups) that may each choose which
              units they lose, all of them equally many
    members   the parameter dimensions, see `Member`
    maskable  zeroing the removed entries in the original gives exactly the pruned result
    reason    why the group may not be pruned; None for a prunable one
    outer     name of the group that this one is nested in, or None
    """

    name: str
    size: int
    contexts: int = 1
    members: tuple[Member, ...] = ()
    maskable: bool = True
    reason: str | None = None
    outer: str | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or self.contexts < 1:
            raise AnalysisError(
                f"group {self.name!r}: size {self.size} and contexts {self.contexts} must be at "
                f"least 1."
            )
        checked: set[tuple[int, int]] = set()  # members share maps
        for member in self.members:
            maps = id(member.unit), id(member.context)
            if maps not in checked:
                checked.add(maps)
                self._check_member(member)

    def __repr__(self) -> str:
        shape = f"{self.contexts} x {self.size}" if self.contexts > 1 else f"{self.size}"
        state = "frozen" if self.frozen else "maskable" if self.maskable else "not maskable"
        nested = f", inside {self.outer!r}" if self.outer is not None else ""
        return f"Group({self.name!r}, {shape} units, {len(self.members)} members, {state}{nested})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the group's scores: (size,), or (contexts, size) with several contexts."""
        return (self.size,) if self.contexts == 1 else (self.contexts, self.size)

    @property
    def slots(self) -> int:
        """Number of (context, unit) pairs."""
        return self.contexts * self.size

    @property
    def frozen(self) -> bool:
        """True if the group may not be pruned; `.reason` says why."""
        return self.reason is not None

    def slices(self, parameters: Mapping[str, Tensor]) -> Iterator[tuple[Member, Tensor]]:
        """Per member, the entries that belong to each unit: what a criterion reads.

        Yields tensors of shape [size, k], or [contexts, size, k] with several contexts, where k is
        the number of entries that one unit owns in that member's parameter. Raises AnalysisError
        if a parameter is missing or has another shape than the analysed one.
        """
        for member in self.members:
            if member.parameter not in parameters:
                raise AnalysisError(
                    f"group {self.name!r} reads parameter {member.parameter!r}, which the given "
                    f"parameters ({len(parameters)} of them) do not contain."
                )
            yield member, member.entries(parameters[member.parameter], self)

    def _check_member(self, member: Member) -> None:
        if self.contexts > 1 and member.context is None:
            raise AnalysisError(
                f"group {self.name!r}, {member!r}: a group with {self.contexts} contexts needs "
                "a context map."
            )
        bounds = ((member.unit, self.size, "unit"), (member.context, self.contexts, "context"))
        for index, size, what in bounds:
            if index is None or index.numel() == 0:
                continue
            low, high = (int(bound) for bound in index.aminmax())
            if low < -1 or high >= size:
                raise AnalysisError(
                    f"group {self.name!r}, {member!r}: the {what} map runs from {low} to {high}, "
                    f"outside [-1, {size})."
                )


def innermost(groups: Iterable[Group]) -> tuple[Group, ...]:
    """The groups that no other one is nested in, in their order.

    Pruned together with those around them, they would lose the same share twice.
    """
    given = tuple(groups)
    outer = {group.outer for group in given}
    return tuple(group for group in given if group.name not in outer)


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return torch.equal(left, right)
