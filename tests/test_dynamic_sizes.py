"""The literals that divide a size whatever the inputs."""

from __future__ import annotations

import operator

from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from fxprune.algebra import Algebra
from fxprune.dynamic_sizes import _literal

steps = st.lists(
    st.tuples(st.sampled_from([operator.mul, operator.floordiv]), st.integers(1, 6)), max_size=3
)


@given(st.integers(1, 12), steps)
def test_a_literal_divides_the_size_of_folded_channels_at_any_length(
    channels: int, steps: list[tuple[object, int]]
) -> None:
    """Sizes like ``x.size(1) // 4 * 2``, where dimension 1 is channels at each of some steps."""
    graph, algebra = fx.Graph(), Algebra()
    x = graph.placeholder("x")
    folded = algebra.product([algebra.atom(channels), algebra.constant(5, "length")])
    size = graph.call_method("size", (x, 1))
    for operation, number in steps:
        size = graph.call_function(operation, (size, number))
    literal = _literal(size, lambda node: (algebra.one, folded))
    for length in range(1, 13):
        expected = channels * length
        for operation, number in steps:
            expected = operation(expected, number)
        assert expected % literal == 0


def test_the_literal_is_as_large_as_is_sure() -> None:
    graph, algebra = fx.Graph(), Algebra()
    x = graph.placeholder("x")
    folded = algebra.product([algebra.constant(5, "length"), algebra.atom(8)])
    size = graph.call_method("size", (x, 0))
    for operation, number, literal in (
        (operator.floordiv, 4, 2),
        (operator.mul, 3, 6),
        (operator.floordiv, 4, 1),
    ):
        size = graph.call_function(operation, (size, number))
        assert _literal(size, lambda node: (folded,)) == literal
