"""Scores of an original's units, by what pruning and training have left of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxprune.allocation.choice import choose_groups
from fxprune.allocation.normalise import Normaliser, find_normaliser
from fxprune.allocation.scores import score_groups
from fxprune.analysis import Analysis, analyze
from fxprune.criteria import Criterion, Joint, Scorer, bound, criterion_name, find_criterion
from fxprune.errors import PlanError
from fxprune.groups import Group
from fxprune.matching import Match, Matching
from fxprune.plans import PruningPlan
from fxprune.rewriter import rewrite
from fxprune.statistics import Labels, Loss

_LONE, _WITHOUT = torch.nan, torch.inf  # no score: in no group of what is left; not applicable


@dataclass(frozen=True)
class Scoring:
    """How units are scored, and which may go."""

    criterion: str | Criterion
    data: Iterable[Any] | None
    loss: Loss | None
    labels: Labels | None
    groups: Callable[[Group], bool] | None
    ignore: str | Iterable[str]
    normalise: str


def rescored(
    base: GraphModule, analysis: Analysis, before: PruningPlan, scoring: Scoring
) -> tuple[dict[str, Tensor], Choice]:
    """Scores of the original's groups, and the criterion's choice of sets.

    base    the original's graph, with the trained values where `before` keeps units

    Units are scored in the graph that `before` leaves. Those that are gone score lowest, and those
    that it has no group for, since nothing else is coupled as they are, highest.

    Raises PlanError if the criterion no longer applies to a group that lost units.
    """
    chosen = choose_groups(analysis, scoring.groups, scoring.ignore)
    names = {group.name for group in chosen}
    now = analyze(rewrite(base, before))
    matching = Matching(before, {name: tuple(p.shape) for name, p in now.parameters.items()})
    matches = {g.name: [m for m in matching.of(g) if m.group.name in names] for g in now.groups}
    rule = bound(find_criterion(scoring.criterion), now, scoring.data, scoring.loss, scoring.labels)
    left = tuple(group for group in now.groups if matches[group.name])
    found = score_groups(left, now, rule, criterion_name(scoring.criterion)) if left else {}
    full = {g.name: torch.full(g.shape, _LONE, dtype=torch.float64) for g in chosen}
    for group in left:
        values = found.get(group.name, torch.full(group.shape, _WITHOUT)).reshape(-1)
        for match in matches[group.name]:
            laid = full[match.group.name].view(-1)
            laid[match.before] = values[match.after].to("cpu", torch.float64)
    masks = {group.name: _left(group, before) for group in chosen}
    own = {g.name: full[g.name][masks[g.name]] for g in chosen}
    scored = {g.name: own[g.name] for g in chosen if _applies(g, own[g.name], before)}
    return _ranked(scored, masks, find_normaliser(scoring.normalise)), Choice(rule, left, matches)


def _applies(group: Group, scores: Tensor, before: PruningPlan) -> bool:
    """False if the criterion does not apply to the group, which is left whole then."""
    if not bool((scores == _WITHOUT).any()):
        return True
    if group.name in before.kept_units:
        raise PlanError(
            f"Group {group.name!r} was cut in an earlier round, and the criterion no longer "
            "applies to it: use another criterion, or ignore= it."
        )
    return False


def _ranked(
    scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], normaliser: Normaliser
) -> dict[str, Tensor]:
    """The scores of all units, made comparable, from those of the units that are left."""
    known = {name: own[~own.isnan()] for name, own in scores.items()}
    known = {name: normaliser(own) if len(own) else own for name, own in known.items()}
    every = torch.cat([torch.zeros(1, dtype=torch.float64), *known.values()])
    gone, lone = 2 * float(every.min()) - 1, 2 * float(every.max()) + 1  # there is a 0 among them
    result = {}
    for name, own in scores.items():
        filled = torch.full_like(own, lone).masked_scatter(~own.isnan(), known[name])
        whole = torch.full(masks[name].shape, gone, dtype=torch.float64)
        result[name] = whole.masked_scatter(masks[name], filled)
    return result


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


@dataclass(frozen=True)
class Choice:
    """What scored the units of a pruned graph, and which ones of the original they are."""

    rule: Scorer
    groups: tuple[Group, ...]
    matches: Mapping[str, list[Match]]

    def of(self, chosen: PruningPlan) -> PruningPlan:
        """The criterion's own choice of as many units, where it chooses sets."""
        if not isinstance(self.rule, Joint):
            return chosen
        kept = {group.name: chosen.kept_mask(group) for group in chosen.groups}
        removed = {}
        for group in self.groups:
            gone = torch.zeros(group.slots, dtype=torch.bool)
            for match in self.matches[group.name]:
                gone[match.after] = ~kept[match.group.name].reshape(-1)[match.before]
            if gone.any():
                removed[group.name] = gone.reshape(group.shape)
        for name, gone in self.rule.select(removed).items():
            for match in self.matches[name]:
                kept[match.group.name].view(-1)[match.before] = ~gone.reshape(-1)[match.after]
        rows = {name: _rows(kept[name]) for name in chosen.kept_units}
        return replace(chosen, kept_units=rows)


def _rows(mask: Tensor) -> Any:
    """The kept indices, a row for each context."""
    rows = [row.nonzero()[:, 0].tolist() for row in mask.reshape(-1, mask.shape[-1])]
    return rows if mask.dim() > 1 else rows[0]
