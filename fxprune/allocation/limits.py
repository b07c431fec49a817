"""How far groups may be cut, by name pattern."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from numbers import Real
from typing import Any

from fxprune.errors import PlanError
from fxprune.groups import Group
from fxprune.plans.base import AnalysisLike, short


@dataclass(frozen=True)
class Limits:
    """How far a group may be cut; None leaves a limit to more general patterns.

    Units count within each context: per head, per convolution group.

    min_keep      at least so many units stay (1 without it)
    max_sparsity  at most this fraction of the units goes, in [0, 1)
    round_to      the number of units that stay is a multiple of this, unless all stay
    sparsity      this fraction of the units goes, in [0, 1), whatever other groups lose; rounded
                  down as for `plan`, and subject to the other limits

    Raises PlanError for values that make no sense.
    """

    min_keep: int | None = None
    max_sparsity: float | None = None
    round_to: int | None = None
    sparsity: float | None = None

    def __post_init__(self) -> None:
        for name in ("min_keep", "round_to"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise PlanError(f"{name} must be an integer of at least 1; got {short(value)}.")
        for name in ("max_sparsity", "sparsity"):
            value = getattr(self, name)
            if value is not None:
                checked_sparsity(value, name)

    def over(self, general: Limits) -> Limits:
        """These limits, with those of `general` where there are none."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(general, **{name: v for name, v in given.items() if v is not None})

    def widths(self, size: int) -> range:
        """The numbers of units that may stay of `size`, from the largest below it down."""
        least = max(self.min_keep or 1, size - share(self.most, size))
        multiple = self.round_to or 1
        lowest = -(-least // multiple) * multiple
        highest = (size - 1) // multiple * multiple
        return range(highest, lowest - 1, -multiple)

    @property
    def most(self) -> float:
        """The largest sparsity."""
        return _BELOW_ONE if self.max_sparsity is None else self.max_sparsity


_BELOW_ONE = math.nextafter(1, 0)


def share(sparsity: float, size: int) -> int:
    """floor(sparsity * size) for the number that the float stands for: 0.29 of 100 is 29, not 28.

    A float stands for every number that rounds to it; the largest of them counts. Below 1 they all
    are less than 1, so at least one of `size` always stays.
    """
    return math.floor((Fraction(sparsity) + Fraction(math.ulp(sparsity)) / 2) * size)


def checked_sparsity(sparsity: Any, name: str = "sparsity") -> float:
    """A fraction of units to remove; raises PlanError unless it is a number in [0, 1)."""
    is_number = isinstance(sparsity, Real) and not isinstance(sparsity, bool)
    if not is_number:
        raise PlanError(
            f"{name} must be a number in [0, 1), the fraction of units to remove; got "
            f"{sparsity!r}, a {type(sparsity).__name__}."
        )
    if not 0 <= sparsity < 1:  # NaN compares false
        raise PlanError(
            f"{name} is the fraction of units to remove and must lie in [0, 1); got "
            f"{short(sparsity)}."
        )
    return float(sparsity)


def limits_of(
    groups: Sequence[Group],
    analysis: AnalysisLike,
    given: Limits | Mapping[str, Limits] | None,
    round_to: int | None,
) -> list[Limits]:
    """The limits of each group: later patterns count more, `round_to` least."""
    patterns: Mapping[str, Any] = {}
    if given is not None:
        patterns = given if isinstance(given, Mapping) else {"*": given}
    general = Limits(round_to=round_to)
    wrong = next((v for v in patterns.values() if not isinstance(v, Limits)), None)
    if wrong is not None:
        raise PlanError(
            "limits= takes fxprune.Limits, or a mapping from name patterns to them, such as "
            f'{{"layer4.*": fxprune.Limits(round_to=8)}}; got {short(wrong)}.'
        )
    result = [general] * len(groups)
    for pattern, limits in patterns.items():
        chosen = matching(pattern, analysis)
        result = [
            limits.over(known) if group.name in chosen else known
            for group, known in zip(groups, result, strict=True)
        ]
    return result


def matching(pattern: object, analysis: AnalysisLike) -> frozenset[str]:
    """The prunable groups that a pattern names: the group itself, or a parameter or module that
    makes its units.

    Patterns are those of the shell: "layer4.*", "*.qkv", "blocks.[0-3].mlp". A module stands for
    all modules inside it. Raises PlanError if the graph has no such parameter, module or group.
    """
    if not isinstance(pattern, str):
        raise PlanError(f"A name pattern is a text such as 'layer4.*'; got {short(pattern)}.")
    found = frozenset(g.name for g in analysis.groups if _matches(pattern, _names_of(g)))
    if not found and not any(_matches(pattern, _names_of(g)) for g in analysis.frozen):
        known = {n for parameter in analysis.parameters for n in _paths(parameter)}
        if not _matches(pattern, known):
            names = ", ".join(repr(group.name) for group in analysis.groups[:3])
            raise PlanError(
                f"The pattern {short(pattern)} names no group, parameter or module of the graph; "
                f"the groups are called {names or 'nothing: there are none'} and so on."
            )
    return found


def ignored(patterns: Iterable[str] | str, analysis: AnalysisLike) -> frozenset[str]:
    """The prunable groups that any of the patterns names."""
    listed = [patterns] if isinstance(patterns, str) else list(patterns)
    return frozenset().union(*(matching(pattern, analysis) for pattern in listed))


def _names_of(group: Group) -> set[str]:
    """The group's name, and the parameters and modules that make its units."""
    makers = [m.parameter for m in group.members if m.role == "producer"]
    paths = makers or [m.parameter for m in group.members]
    return {group.name, *(name for path in paths for name in _paths(path))}


def _paths(parameter: str) -> Iterable[str]:
    while parameter:
        yield parameter
        parameter = parameter.rpartition(".")[0]


def _matches(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)
