"""Indices that depend on frozen single units only, as rows of a relative position table."""

from __future__ import annotations

from fxprune.algebra import Algebra
from fxprune.axes import Product
from fxprune.unit_maps import UnitMaps


def test_a_product_of_frozen_units_has_unit_maps() -> None:
    # Frozen units of size 1 are no factors: the product was left without any, and the map failed.
    algebra = Algebra()
    units, rest = [algebra.atom(1), algebra.atom(1)], algebra.atom(3)
    axis = algebra.concat([Product(units), rest])
    for unit in units:
        algebra.freeze(unit, "indexed by data")
    (units_of_rest,) = UnitMaps().of(axis, {rest.key: 5})
    assert units_of_rest.tolist() == [-1, 5, 6, 7]
