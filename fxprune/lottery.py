"""Lottery tickets: train, prune, go back to an earlier state of the weights, and again.

A plan is a choice of units and says nothing about values, so the plan that was found after training
applies to the weights as they were before: pruning and rewinding commute.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxprune.allocation import plan, score
from fxprune.analysis import Analysis, analyze
from fxprune.criteria import Criterion, criterion_name
from fxprune.errors import PlanError
from fxprune.groups import Group, innermost
from fxprune.migration import apply, restore
from fxprune.plans import PruningPlan
from fxprune.rewriter import rewrite
from fxprune.schedules import Schedule, find_schedule

Train = Callable[[GraphModule], object]
State = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Ticket:
    """What `find_ticket` returns.

    module  the pruned graph with the weights of the snapshot, not trained
    plan    what it keeps of the original
    rounds  the plan after each round; each removes what the one before does, and more
    """

    module: GraphModule
    plan: PruningPlan
    rounds: tuple[PruningPlan, ...]


def rewind(pruned: GraphModule, plan: PruningPlan, snapshot: State) -> None:
    """Give a pruned graph the values that its entries have in a state of the original, in place.

    The same as pruning the original with that state. Raises PlanError if the snapshot lacks a
    tensor or has one of another shape.
    """
    values: dict[str, Tensor] = {}
    for name in pruned.state_dict():
        if name in plan.shapes:  # what the rewrite added belongs to no snapshot
            if name not in snapshot:
                raise PlanError(
                    f"The snapshot has nothing for {name!r}, and the plan's graph has shape "
                    f"{plan.shapes[name]}. Take it from the graph that the plan was made for."
                )
            values[name] = snapshot[name]
    pruned.load_state_dict(apply(plan, values), strict=False)


def restored(plan: PruningPlan, pruned: State, original: State) -> dict[str, Tensor]:
    """A state of the original's shapes: what a pruned graph holds, and zeros where it has nothing.

    Tensors that the pruned graph does not have keep the original's value.
    """
    gone = {n: torch.zeros_like(v) if n in pruned else v for n, v in original.items()}
    return restore(plan, pruned, gone)


def find_ticket(
    traced: GraphModule,
    train: Train,
    keep: float,
    rounds: int = 5,
    snapshot: State | None = None,
    criterion: str | Criterion = "magnitude",
    scope: str = "global",
    schedule: str | Schedule = "exponential",
    **scoring: Any,
) -> Ticket:
    """In each round: rewind to the snapshot, train, and remove the units of the lowest score.

    traced     what `trace` returned; it is not modified
    train      trains the graph module that it is given, in place
    keep       the share of the units that outlasts the last round, in (0, 1]
    snapshot   a state of `traced` to rewind to, such as that after a few epochs; None for its
               present one
    schedule   the shares in between, see `fxprune.schedules`
    criterion, scope, scoring   as for `plan`: scoring are data, loss, and the like

    Training happens on the pruned graph. A trained graph is scored with its weights put back into
    the original's shapes, with zeros where units are gone.
    """
    base = copy.deepcopy(traced)
    if snapshot is not None:
        base.load_state_dict(dict(snapshot))
    start = {name: value.detach().clone() for name, value in base.state_dict().items()}
    analysis = analyze(base)
    scored = analyze(copy.deepcopy(base))
    chosen = PruningPlan.build(analysis, {})
    plans: list[PruningPlan] = []
    for ratio in find_schedule(schedule)(keep, rounds):
        module = rewrite(base, chosen)
        train(module)
        scored.traced.load_state_dict(restored(chosen, module.state_dict(), start))
        chosen = _further(scored, chosen, ratio, criterion, scope, scoring)
        plans.append(chosen)
    return Ticket(rewrite(base, chosen), chosen, tuple(plans))


def _further(
    analysis: Analysis,
    before: PruningPlan,
    keep: float,
    criterion: str | Criterion,
    scope: str,
    scoring: Mapping[str, Any],
) -> PruningPlan:
    """A plan that keeps less: all that the one before removes goes first."""
    scores = score(analysis, criterion, **scoring)
    below = min(float(values.min()) for values in scores.values()) - 1

    def look_up(group: Group, parameters: State) -> Tensor:
        values = scores[group.name]
        return torch.where(before.kept_mask(group).to(values.device), values, below)

    inner = {group.name for group in innermost(analysis.groups)}
    found = plan(
        analysis,
        look_up,
        sparsity=1 - keep,
        scope=scope,
        groups=lambda group: group.name in scores and group.name in inner,
    )
    kept = found.kept_units
    return PruningPlan.build(analysis, kept, criterion_name(criterion), found.sparsity, scope)
