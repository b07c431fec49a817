"""What plans are made of: kept indices in canonical form, and what they need of an analysis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

from torch import Tensor

from fxprune.errors import PlanError
from fxprune.groups import Group

Indices = tuple[int, ...]
Kept = Indices | tuple[Indices, ...]

_V = TypeVar("_V", covariant=True)


class AnalysisLike(Protocol):
    """What a plan needs to know of an analysed graph."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that may be pruned."""

    @property
    def frozen(self) -> tuple[Group, ...]:
        """The groups that may not, each with its reason."""

    @property
    def fingerprint(self) -> str:
        """Identifies the graph and its groups."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The graph's parameters and buffers by qualified name, detached; tied ones once."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """The further names of tied parameters and buffers, each with the one in `parameters`."""


class FrozenMap(Mapping[str, _V]):
    """A mapping that cannot be changed; unlike a mapping proxy it can be copied and pickled."""

    def __init__(self, items: Mapping[str, _V]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: str) -> _V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def width(row: Kept) -> int:
    """How many units a row keeps, in each context."""
    first = row[0]
    return len(first) if isinstance(first, tuple) else len(row)


def check_kept(group: Group, row: object) -> Kept:
    """One group's kept indices in canonical form: tuples of int."""
    if group.frozen:
        raise PlanError(f"Group {group.name!r} is frozen and may not be pruned: {group.reason}.")
    if group.contexts == 1:
        return _indices(group, row, "")
    rows = _sequence(group, row, "")
    if len(rows) != group.contexts:
        raise PlanError(
            f"Group {group.name!r} has {group.contexts} contexts and needs a row of kept indices "
            f"for each; got {len(rows)}."
        )
    kept = tuple(_indices(group, one, f" of context {i}") for i, one in enumerate(rows))
    widths = sorted({len(one) for one in kept})
    if len(widths) > 1:
        raise PlanError(
            f"Group {group.name!r} must keep equally many units in each of its {group.contexts} "
            f"contexts; got between {widths[0]} and {widths[-1]}."
        )
    return kept


def _sequence(group: Group, row: object, where: str) -> Sequence[object]:
    if isinstance(row, Tensor):
        row = row.tolist()
    if isinstance(row, str | bytes) or not isinstance(row, Sequence):
        raise PlanError(
            f"Group {group.name!r}: the kept indices{where} must be a sequence, not {short(row)}."
        )
    return row


def _indices(group: Group, row: object, where: str) -> Indices:
    indices = _sequence(group, row, where)
    if not indices:
        raise PlanError(f"Group {group.name!r}: no units{where} are kept; at least one must stay.")
    kept = [index for index in indices if type(index) is int]
    if len(kept) < len(indices):
        wrong = next(index for index in indices if type(index) is not int)
        raise PlanError(
            f"Group {group.name!r}: kept indices{where} must be integers, not {short(wrong)}."
        )
    if min(kept) < 0 or max(kept) >= group.size:
        raise PlanError(
            f"Group {group.name!r}: kept indices{where} run from {short(min(kept))} to "
            f"{short(max(kept))}, outside [0, {group.size})."
        )
    if any(left >= right for left, right in pairwise(kept)):
        raise PlanError(f"Group {group.name!r}: kept indices{where} must ascend without repeats.")
    return tuple(kept)


def refuse_other_graph(theirs: str, ours: str) -> None:
    """Raise PlanError unless the fingerprint that a plan carries is that of the graph at hand."""
    if theirs != ours:
        raise PlanError(
            f"This plan was made for another graph: its fingerprint is {short(theirs)} and this "
            f"graph's is {short(ours)}. Trace and analyse the model that the plan was made for, "
            "with the same example sizes, or make a new plan."
        )


def short(value: object) -> str:
    """The value as code, cut to a length that fits into a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
