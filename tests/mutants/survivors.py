"""Mutants that no test can kill, each with the reason why it is the same program."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_FROZEN = (
    "The axes that it no longer mixes over are frozen, so that no fill is asked for, and they are "
    "not in the result, which takes them out of every context."
)

EQUIVALENT: Mapping[str, str] = MappingProxyType(
    {
        "contexts.py:_atoms:compare:1": (
            "Atoms of one unit are taken off the contexts, too; they are in none, since "
            "`_companions` leaves them out."
        ),
        "contexts.py:_free:wrong-connective:1": (
            "It only decides whether a layout is skipped because its atoms have no context left to "
            "lose; going through it then changes nothing."
        ),
        "contexts.py:contexts:undo-call:1": (
            "Contexts are intersected, in whatever order; the sorted one is only quicker."
        ),
        "propagate.py:_RuleMode.__torch_dispatch__:drop-condition:2": (
            "torch passes a dictionary, also where there are no keyword arguments."
        ),
        "rules/norm.py:pooling:drop-argument:1": _FROZEN,
        "rules/recurrent.py:_result:swap-arguments:1": (
            "Nobody asks the call of a recurrent layer for its algebra or for layouts: it has its "
            "effect already."
        ),
        "rules/reduce.py:solve_triangular:drop-argument:1": _FROZEN,
        "slicing.py:_select:drop-argument:2": (
            "`Slicer` makes every result contiguous in the memory format of the original; without "
            "the hint it is copied once more."
        ),
    }
)
