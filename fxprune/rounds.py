"""`iterate`: prune a little, train, and again, until a sparsity or a budget is reached.

All plans are against the original: each keeps a part of what the one before keeps. The state that
goes from round to round has the original's shapes, with the trained values where units are left, so
that every round is the same rewrite of the same graph.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.fx import GraphModule

from fxprune.allocation import Budget, Limits, NothingPrunedWarning, plan
from fxprune.allocation.budgets import spread
from fxprune.allocation.cut import Goal
from fxprune.allocation.normalise import find_normaliser
from fxprune.analysis import Analysis, analyze
from fxprune.capture import trace
from fxprune.checkpoint import PLAN, load, save
from fxprune.criteria import Criterion, criterion_name, find_criterion
from fxprune.errors import CheckpointError, PlanError
from fxprune.groups import Group
from fxprune.migration import restore
from fxprune.plans import PruningPlan
from fxprune.reports import PruneReport, build_report
from fxprune.rescoring import Scoring, rescored
from fxprune.rewriter import rewrite
from fxprune.schedules import Schedule, find_schedule
from fxprune.statistics import Labels, Loss, Statistics
from fxprune.timing import measure_latencies

SETTINGS = "iterate.json"
_FORMAT = "fxprune-iterate-1"


@dataclass(frozen=True, eq=False, repr=False)
class Step:
    """One round of `iterate`: train `module` in place.

    number, steps  this is round `number` of `steps`, from 1
    module         the pruned graph module
    plan           what it keeps of the original
    analysis       of the original
    """

    number: int
    steps: int
    module: GraphModule
    plan: PruningPlan
    analysis: Analysis

    @property
    def report(self) -> PruneReport:
        """What is left of the original, as a table."""
        return build_report(self.analysis, self.plan, self.module)

    def __repr__(self) -> str:
        return f"Step({self.number} of {self.steps}, {self.plan!r})"


class Rounds:
    """What `iterate` returns: iterate over it to prune and train.

    last  the last round that is done, with its trained module; None before the first one. After
          a loop it is the result, and `save` takes it.
    """

    def __init__(
        self,
        analysis: Analysis,
        goals: list[Goal],
        scoring: Scoring,
        options: Mapping[str, Any],
        directory: Path | None,
        reload: Callable[[Path], GraphModule],
    ) -> None:
        self.analysis, self.steps = analysis, len(goals)
        self.last: Step | None = None
        self._goals, self._scoring, self._options = goals, scoring, options
        self._directory = directory
        self._base = copy.deepcopy(analysis.traced)
        if directory is not None:
            self._check_settings(directory)
            self._resume(directory, reload)

    def __iter__(self) -> Iterator[Step]:
        """The rounds that are not done. One is done when the loop asks for the next."""
        for number in range(1 if self.last is None else self.last.number + 1, self.steps + 1):
            chosen = self._plan(number)
            step = Step(number, self.steps, rewrite(self._base, chosen), chosen, self.analysis)
            yield step
            self._keep(step)
            if self._directory is not None:
                partial = self._directory / f"step-{number}.partial"
                save((step.module, step.plan), partial)
                os.replace(partial, self._directory / f"step-{number}")

    def _keep(self, step: Step) -> None:
        """Take over what a round has trained."""
        state = restore(step.plan, step.module.state_dict(), self._base.state_dict())
        self._base.load_state_dict(state)
        self.last = step

    def _plan(self, number: int) -> PruningPlan:
        """What round `number` keeps: units that are gone go first, then those of low scores."""
        goal, last = self._goals[number - 1], number == self.steps
        before = PruningPlan.build(self.analysis, {}) if self.last is None else self.last.plan
        scores, choice = rescored(self._base, self.analysis, before, self._scoring)
        with warnings.catch_warnings():
            if not last:  # first rounds may be too small to remove anything
                warnings.simplefilter("ignore", NothingPrunedWarning)
            chosen = plan(
                self.analysis,
                lambda group, _: scores[group.name],
                goal.sparsity,
                groups=lambda group: group.name in scores,
                budget=goal.budget,
                latencies=goal.latencies,
                **self._options,
            )
        return replace(choice.of(chosen), criterion=criterion_name(self._scoring.criterion))

    def _check_settings(self, directory: Path) -> None:
        """Refuse to go on with what was begun in another way; note how it is begun."""
        settings = {
            "format": _FORMAT,
            "fingerprint": self.analysis.fingerprint,
            "criterion": criterion_name(self._scoring.criterion),
            "normalise": self._scoring.normalise,
            "ignore": repr(self._scoring.ignore),
            **{name: repr(value) for name, value in self._options.items()},
            "goals": [str(goal) for goal in self._goals],
        }
        file = directory / SETTINGS
        if not file.exists():
            directory.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(settings, indent=1), encoding="utf-8")
            return
        try:
            found = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"Cannot read {file}: {error}.") from error
        if found != settings:
            keys = [key for key, value in settings.items() if found.get(key) != value]
            raise CheckpointError(
                f"{directory} holds rounds that were begun with another {', '.join(keys)}. Go on "
                "with the same model and arguments, or name another directory."
            )

    def _resume(self, directory: Path, reload: Callable[[Path], GraphModule]) -> None:
        """Take over the last round that was saved."""
        for number in range(self.steps, 0, -1):
            folder = directory / f"step-{number}"
            if folder.exists():
                module = reload(folder)
                text = (folder / PLAN).read_text(encoding="utf-8")
                chosen = PruningPlan.from_json(text, self.analysis)
                self._keep(Step(number, self.steps, module, chosen, self.analysis))
                return


def iterate(
    model: nn.Module,
    example_inputs: Any,
    sparsity: float | None = None,
    *,
    steps: int,
    schedule: str | Schedule = "cubic",
    directory: str | os.PathLike[str] | None = None,
    budget: Budget | None = None,
    criterion: str | Criterion = "magnitude",
    groups: Callable[[Group], bool] | None = None,
    ignore: str | Iterable[str] = (),
    normalise: str = "none",
    dynamic: Any = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    labels: Labels | None = None,
    latency_file: str | os.PathLike[str] | None = None,
    scope: str = "local",
    round_to: int | None = None,
    limits: Limits | Mapping[str, Limits] | None = None,
) -> Rounds:
    """Prune in rounds, with training in between: loop over the result and train `step.module`.

    sparsity, budget   what the last round leaves
    steps, schedule    how many rounds, and how the cut spreads over them: "linear", "exponential",
                       "cubic" or a function, see `fxprune.schedules`
    directory          where each round that is done is saved, as `save` does. With the same
                       arguments a later call goes on after the last one; the result is the same
                       to the bit if the loop's body depends on nothing but the step.
    dynamic            as for `trace`
    latency_file       as for `prune`
    all others         as for `plan`

    Units are scored in each round on the pruned network as it was trained; each plan removes what
    the one before did, and more. Optimizers are the body's: make one for each step, or move it with
    `migrate_optimizer`. The model is not modified.

    Raises what `prune` raises, and CheckpointError if the directory holds other rounds.
    """
    if isinstance(data, Statistics):
        raise PlanError("iterate scores another network in each round: pass data, no Statistics.")
    find_criterion(criterion)
    find_normaliser(normalise)
    analysis = analyze(trace(model, example_inputs, dynamic))
    latencies = None
    if budget is not None and budget.needs_latencies:
        latencies = measure_latencies(analysis, example_inputs, latency_file, round_to or 1)
    goals = _goals(Goal(sparsity, budget, latencies), analysis, steps, find_schedule(schedule))
    own = tuple(data) if isinstance(data, Iterator) else data  # it is read in every round
    scoring = Scoring(criterion, own, loss, labels, groups, ignore, normalise)

    def reload(folder: Path) -> GraphModule:
        return load(folder, lambda: copy.deepcopy(model), example_inputs, dynamic)

    place = None if directory is None else Path(directory)
    options = {"scope": scope, "round_to": round_to, "limits": limits}
    return Rounds(analysis, goals, scoring, options, place, reload)


def _goals(end: Goal, analysis: Analysis, steps: int, schedule: Schedule) -> list[Goal]:
    """What each round must reach."""
    if end.budget is None:
        keeps = schedule(1 - (end.sparsity or 0.0), steps)
        return [Goal(round(1 - keep, 12), None) for keep in keeps]
    budgets = spread(end.budget, analysis, lambda keep: schedule(keep, steps), end.latencies)
    return [Goal(None, budget, end.latencies) for budget in budgets]
