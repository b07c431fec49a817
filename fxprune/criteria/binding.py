"""What a criterion may be, and how each kind becomes a callable on the groups of one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from fxprune.errors import PlanError
from fxprune.groups import Group
from fxprune.statistics import Labels, Loss, Statistics

Scorer = Callable[[Group, Mapping[str, Tensor]], Tensor]
"""A criterion that reads a group's parameters: `(group, parameters) -> Tensor`."""


@runtime_checkable
class GraphCriterion(Protocol):
    """A criterion that looks at the analysed graph before it scores its groups."""

    def bind(self, analysis: Any) -> Scorer:
        """The criterion for the groups of this analysis."""


@runtime_checkable
class DataCriterion(Protocol):
    """A criterion that reads statistics of the model on data: a pure function of them."""

    @property
    def requires(self) -> Set[str]:
        """The names of the statistics that it reads, such as "mask_grads"."""

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores of the group's shape; NotApplicableError where the criterion does not apply."""


def bound(
    criterion: Scorer | GraphCriterion | DataCriterion,
    analysis: Any,
    data: Iterable[Any] | Statistics | None = None,
    loss: Loss | None = None,
    labels: Labels | None = None,
) -> Scorer:
    """A callable `(group, parameters) -> Tensor` for the groups of an analysis.

    data, loss, labels  as for `Statistics`, which `data` may be itself. Criteria that need no data
                        ignore them. `labels` None is the criterion's `labels` attribute, or
                        "empirical".

    Raises PlanError if the criterion needs data and there are none, or for statistics of another
    analysis.
    """
    if isinstance(criterion, GraphCriterion):
        return criterion.bind(analysis)
    if not isinstance(criterion, DataCriterion):
        return criterion
    statistics = _statistics(criterion, analysis, data, loss, labels)
    return lambda group, _: criterion.score(group, statistics)


def _statistics(
    criterion: DataCriterion,
    analysis: Any,
    data: Iterable[Any] | Statistics | None,
    loss: Loss | None,
    labels: Labels | None,
) -> Statistics:
    if data is None:
        raise PlanError(
            f"{type(criterion).__name__} needs data ({', '.join(sorted(criterion.requires))}): "
            "pass data=, an iterable of batches such as a DataLoader, and loss= unless the batches "
            "are (inputs, class indices)."
        )
    if not isinstance(data, Statistics):
        own: Labels = getattr(criterion, "labels", "empirical")
        return Statistics(analysis, data, loss, own if labels is None else labels)
    if loss is not None or labels is not None:
        raise PlanError("data= is a Statistics, which has a loss and labels: do not pass others.")
    if data.analysis is not analysis:
        raise PlanError("data= is a Statistics of another analysis; make one for this analysis.")
    return data
