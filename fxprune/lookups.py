"""Rows that data assigns to the indices of a table: each token's expert, in a table of experts.

All that is known of such rows is that equal data assigns them alike. So tables that one index
tensor reads have their indices in common, and the rows stand for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from fxprune.algebra import Algebra
from fxprune.axes import Atom, Axis, find
from fxprune.rules.base import Lookup

if TYPE_CHECKING:
    from fxprune.propagate import Record


def join_tables(records: Sequence[Record], algebra: Algebra) -> None:
    """Unify the tables of one size that one index tensor reads. They are frozen."""
    first: dict[tuple[int, int], Atom] = {}
    for lookup, _, table in _atomic(records):
        key = id(lookup.index), table.size
        algebra.unify(first.setdefault(key, table), table)


def followed(records: Sequence[Record]) -> Mapping[Axis, Atom]:
    """Rows → the table that they stand for; without rows that data assigns in two ways."""
    found: dict[Axis, set[tuple[Atom, int]]] = {}
    for lookup, rows, table in _atomic(records):
        found.setdefault(rows, set()).add((table, id(lookup.index)))
    return {rows: next(iter(ways))[0] for rows, ways in found.items() if len(ways) == 1}


def _atomic(records: Sequence[Record]) -> Iterable[tuple[Lookup, Axis, Atom]]:
    """The lookups in tables of one atom, by indices that nothing changes in place."""
    lookups = [r.effect.lookup for r in records if r.effect.lookup is not None]
    written = {record.mutated for record in records} if lookups else set()
    for lookup in lookups:
        rows, table = find(lookup.rows), find(lookup.table)
        constant = lookup.index.untyped_storage()._cdata not in written
        if constant and isinstance(table, Atom):
            yield lookup, rows, table
