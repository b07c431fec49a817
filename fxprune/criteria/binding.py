"""Criteria that read the graph, not a group's parameters alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from fxprune.groups import Group

Scorer = Callable[[Group, Mapping[str, Tensor]], Tensor]


@runtime_checkable
class GraphCriterion(Protocol):
    """A criterion that looks at the analysed graph before it scores its groups."""

    def bind(self, analysis: Any) -> Scorer:
        """The criterion for the groups of this analysis."""


def bound(criterion: GraphCriterion | Scorer, analysis: Any) -> Scorer:
    """A callable `(group, parameters) -> Tensor` for the groups of an analysis."""
    return criterion.bind(analysis) if isinstance(criterion, GraphCriterion) else criterion
