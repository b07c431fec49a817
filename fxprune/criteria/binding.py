"""What a criterion may be, and how each kind becomes a callable on the groups of one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from fxprune.errors import NotApplicableError, PlanError
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


@runtime_checkable
class SetCriterion(Protocol):
    """A criterion for which the worth of a unit depends on what else goes."""

    @property
    def requires(self) -> Set[str]:
        """The names of the statistics that it reads."""

    def score_all(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """By group name, scores that put the units of all groups into an order of removal.

        Groups that the criterion does not apply to are left out.
        """

    def select(self, removed: Mapping[str, Tensor], statistics: Statistics) -> Mapping[str, Tensor]:
        """A better choice of as many units: {group name: units that go, bool of its shape}."""


class Joint:
    """A set criterion with its statistics, as a scorer."""

    def __init__(self, criterion: SetCriterion, statistics: Statistics) -> None:
        self.criterion, self.statistics = criterion, statistics

    @cached_property
    def scores(self) -> Mapping[str, Tensor]:
        """Of all groups, in one go."""
        return self.criterion.score_all(self.statistics)

    def __call__(self, group: Group, parameters: Mapping[str, Tensor]) -> Tensor:
        """Scores of the group's shape; NotApplicableError where there are none."""
        if group.name not in self.scores:
            raise NotApplicableError("no contraction and no sum reads its units")
        return self.scores[group.name]

    def select(self, removed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The criterion's own choice, once it is known how many units each group loses."""
        return self.criterion.select(removed, self.statistics)


def bound(
    criterion: Scorer | GraphCriterion | DataCriterion | SetCriterion,
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
    if not isinstance(criterion, DataCriterion | SetCriterion):
        return criterion
    statistics = _statistics(criterion, analysis, data, loss, labels)
    if isinstance(criterion, SetCriterion):
        return Joint(criterion, statistics)
    return lambda group, _: criterion.score(group, statistics)


def _statistics(
    criterion: DataCriterion | SetCriterion,
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
