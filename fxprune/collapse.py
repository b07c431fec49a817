"""Layer collapse: how far a criterion can go before it empties a layer.

The critical compression of a criterion is the largest one that it reaches while every group has a
unit left, with no guard that keeps the last one (a plan has that guard). The best a criterion could
do is the maximal compression: one unit left in every group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate

from fxprune.allocation import score
from fxprune.analysis import Analysis
from fxprune.criteria import Criterion, criterion_name
from fxprune.groups import Group, innermost
from fxprune.masking import MaskedCopy
from fxprune.plans.base import FrozenMap
from fxprune.ranking import first_to_go, lowest


@dataclass(frozen=True)
class Round:
    """What was left after a round.

    compression  parameters of the original divided by those left; inf if none are
    widths       units left per group, in each context
    """

    compression: float
    widths: Mapping[str, int]


@dataclass(frozen=True, repr=False)
class CollapseReport:
    """How a criterion wore a network down; print it to read it.

    criterion  its name
    maximal    the compression at one unit in every group
    rounds     what was left, from the whole network to nothing that the criterion applies to
    """

    criterion: str
    maximal: float
    rounds: tuple[Round, ...]

    @property
    def critical(self) -> float:
        """The largest compression at which no group was empty."""
        return max(r.compression for r in self.rounds if min(r.widths.values()) > 0)

    @property
    def emptied(self) -> tuple[tuple[str, float], ...]:
        """The groups in the order in which they emptied, each with the compression before."""
        found: dict[str, float] = {}
        for before, after in zip(self.rounds, self.rounds[1:], strict=False):
            for name, width in after.widths.items():
                if width == 0 and name not in found:
                    found[name] = before.compression
        return tuple(found.items())

    def __str__(self) -> str:
        head = (
            f"{self.criterion}: critical compression {self.critical:.1f}, "
            f"maximal {self.maximal:.1f} (one unit in every group)."
        )
        rows = [(name, f"{compression:.1f}") for name, compression in self.emptied]
        columns = ("group", "empty after compression")
        return f"{head}\n{tabulate(rows, columns, colalign=('left', 'right'))}" if rows else head

    def __repr__(self) -> str:
        return f"CollapseReport({self.criterion!r}, critical={self.critical:.1f})"


def critical_compression(
    analysis: Analysis,
    criterion: str | Criterion = "magnitude",
    share: float = 0.0,
    **scoring: Any,
) -> CollapseReport:
    """Remove the units of the lowest score of all groups, rescoring after every round, to the end.

    share    of the units left that go in each round; at least one does, and by default just one
    scoring  further arguments of `fxprune.score`, such as data and loss

    No group is guarded: it may lose its last unit while others are whole. Units of nested groups
    are removed from the innermost only. The model is not modified.
    """
    masked = MaskedCopy(analysis)
    groups = innermost(masked.analysis.groups)
    whole = masked.parameters_left
    rounds = [_round(masked, groups, whole)]
    while True:
        scores = score(masked.analysis, criterion, **scoring)
        left = {
            group.name: torch.where(
                masked.alive[group.name], scores[group.name].to("cpu", torch.float64), math.inf
            )
            for group in groups
            if group.name in scores
        }
        scored = [group for group in groups if group.name in left]
        remaining = sum(masked.widths[group.name] for group in scored)
        if not remaining:
            break
        for group, places in lowest(scored, left, max(1, int(share * remaining))):
            masked.remove(group.name, first_to_go(left[group.name], len(places)))
        rounds.append(_round(masked, groups, whole))
    return CollapseReport(criterion_name(criterion), _maximal(analysis, groups), tuple(rounds))


def _round(masked: MaskedCopy, groups: Sequence[Group], whole: int) -> Round:
    left = masked.parameters_left
    widths = {group.name: masked.widths[group.name] for group in groups}
    return Round(whole / left if left else math.inf, FrozenMap(widths))


def _maximal(analysis: Analysis, groups: Sequence[Group]) -> float:
    masked = MaskedCopy(analysis)
    whole = masked.parameters_left
    for group in groups:
        gone = torch.ones(group.shape, dtype=torch.bool)
        gone[..., 0] = False
        masked.remove(group.name, gone)
    return whole / masked.parameters_left
