"""Indices that depend on frozen single units only, as rows of a relative position table."""

from __future__ import annotations

from fxprune.algebra import Algebra
from fxprune.axes import Product
from fxprune.grouping import ColumnTables


def test_a_product_of_frozen_units_has_a_column_table() -> None:
    # Frozen units of size 1 are no factors: the product was left without any, and the table failed.
    algebra = Algebra()
    units, rest = [algebra.atom(1), algebra.atom(1)], algebra.atom(3)
    axis = algebra.concat([Product(units), rest])
    for unit in units:
        algebra.freeze(unit, "indexed by data")
    table = ColumnTables().of(axis)
    assert table.atoms.tolist() == [[-1], [rest.key], [rest.key], [rest.key]]
    assert table.units.tolist() == [[-1], [0], [1], [2]]
