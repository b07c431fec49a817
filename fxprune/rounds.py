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

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxprune.allocation import Budget, Limits, NothingPrunedWarning, plan
from fxprune.allocation.budgets import spread
from fxprune.allocation.choice import choose_groups
from fxprune.allocation.cut import Goal
from fxprune.allocation.normalise import find_normaliser
from fxprune.allocation.scores import score_groups
from fxprune.analysis import Analysis, analyze
from fxprune.capture import trace
from fxprune.checkpoint import PLAN, load, save
from fxprune.criteria import Criterion, Joint, bound, criterion_name, find_criterion
from fxprune.errors import CheckpointError, PlanError
from fxprune.groups import Group
from fxprune.migration import restore
from fxprune.plans import PruningPlan
from fxprune.reports import PruneReport, build_report
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


@dataclass(frozen=True)
class _Scoring:
    """How units are scored, and which may go."""

    criterion: str | Criterion
    data: Iterable[Any] | None
    loss: Loss | None
    labels: Labels | None
    groups: Callable[[Group], bool] | None
    ignore: str | Iterable[str]
    normalise: str


class Rounds:
    """What `iterate` returns: iterate over it to prune and train.

    last  the last round that is done, with its trained module; None before the first one. After
          a loop it is the result, and `save` takes it.
    """

    def __init__(
        self,
        analysis: Analysis,
        goals: list[Goal],
        scoring: _Scoring,
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
        scores, rule = _scores(self._base, self.analysis, before, self._scoring)
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
        if isinstance(rule, Joint):
            chosen = _selected(rule, before, chosen)
        return replace(chosen, criterion=criterion_name(self._scoring.criterion))

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
    scoring = _Scoring(criterion, own, loss, labels, groups, ignore, normalise)

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


def _scores(
    base: GraphModule, analysis: Analysis, before: PruningPlan, scoring: _Scoring
) -> tuple[dict[str, Tensor], Any]:
    """Of the original's units, by what is left of the network; units that are gone score lowest.

    Also returns what scored them.
    """
    chosen = choose_groups(analysis, scoring.groups, scoring.ignore)
    now = analyze(rewrite(base, before))
    names = {group.name for group in chosen}
    rule = bound(find_criterion(scoring.criterion), now, scoring.data, scoring.loss, scoring.labels)
    left = tuple(group for group in now.groups if group.name in names)
    found = score_groups(left, now, rule, criterion_name(scoring.criterion)) if left else {}
    normaliser = find_normaliser(scoring.normalise)
    values = {n: normaliser(score.to("cpu", torch.float64)) for n, score in found.items()}
    least = min((float(value.min()) for value in values.values()), default=0.0)
    below = least - abs(least) - 1
    places = {group.name: _places(group) for group in left}
    scores: dict[str, Tensor] = {}
    for group in chosen:
        mask = _left(group, before)
        units, value = int(mask.sum()), values.get(group.name)
        if value is None and group.name in before.kept_units and units == group.contexts:
            value = torch.zeros(units, dtype=torch.float64)  # one in each context, which stays
        if value is None:
            _refuse_lost(group, before)  # what the criterion does not apply to is left whole
            continue
        if value.numel() != units or places.get(group.name, _places(group)) != _places(group):
            raise PlanError(
                f"Group {group.name!r} is another one in the pruned graph, as may happen between "
                "shuffles of channels: prune it in a single round, or ignore= it."
            )
        full = torch.full(group.shape, below, dtype=torch.float64)
        scores[group.name] = full.masked_scatter(mask, value)
    return scores, rule


def _places(group: Group) -> set[tuple[str, int]]:
    """The parameter dimensions that a group's units lie in."""
    return {(member.parameter, member.dim) for member in group.members}


def _left(group: Group, before: PruningPlan) -> Tensor:
    """Which units of a group the pruned graph has: bool of its shape.

    Units in contexts that went with units of an outer group are gone, whatever their rows say.
    """
    mask = before.kept_mask(group)
    if group.outer is not None:
        outer = before.kept_mask(group.outer).reshape(-1)
        if len(outer) == group.contexts and not bool(outer.all()):
            mask = mask & outer[:, None]
    return mask


def _refuse_lost(group: Group, before: PruningPlan) -> None:
    if group.name in before.kept_units:
        raise PlanError(
            f"Group {group.name!r} was cut in an earlier round, and the criterion no longer "
            "applies to it: use another criterion, or ignore= it."
        )


def _selected(rule: Joint, before: PruningPlan, chosen: PruningPlan) -> PruningPlan:
    """The criterion's own choice of as many units, where it chooses sets."""
    removed: dict[str, Tensor] = {}
    for name in chosen.kept_units:
        was = _left(chosen.group(name), before)
        gone = ~chosen.kept_mask(name)[was]
        if gone.any():
            removed[name] = gone.reshape(before.kept(name).shape)
    kept: dict[str, Any] = dict(chosen.kept_units)
    for name, gone in rule.select(removed).items():
        was = before.kept_mask(name)
        mask = was.masked_scatter(was, ~gone)
        rows = [row.nonzero()[:, 0].tolist() for row in mask.reshape(-1, mask.shape[-1])]
        kept[name] = rows if mask.dim() > 1 else rows[0]
    return replace(chosen, kept_units=kept)
