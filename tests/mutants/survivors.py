"""Mutants that no test can kill, each with the reason why it is the same program."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

EQUIVALENT: Mapping[str, str] = MappingProxyType(
    {
        "algebra.py:Algebra._match_factors:compare:2": "Where both are of one size, they were "
        "paired a few lines before, and the loop went on.",
        "axes.py:find:drop-condition:2": "One more round, which binds to the root what is bound "
        "to it already.",
        "contexts.py:_companions:compare:7": "A companion of size 1 makes one context: everywhere "
        "the same choice, which is what an atom without companions has.",
        "maskable.py:_FillPass.statistic:drop-condition:10": "The other statistics call their "
        "tensor `self`, and none of them has a weight: nothing follows for them.",
        "rewriter/rows.py:split_along.row:arithmetic:1": "The dimension is taken modulo the rank.",
        "rules/view.py:_taken_over:compare:3": "Where a dimension of size n and stride s is kept, "
        "the one of least stride, all else is steps of multiples of s * n, and steps that sum up "
        "to less than s: the sum of all steps is no multiple of s * n, and x.numel() is one. Where "
        "none is kept, the answer is the same.",
    }
)
