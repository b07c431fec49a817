"""The text of a stored plan: bounded, checked field by field, nothing in it is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias

from fxprune.errors import PlanError
from fxprune.plans.base import AnalysisLike, short

FORMAT = "fxprune-plan"
VERSION = 1

Fields: TypeAlias = Mapping[str, tuple[type, ...]]

# The fields of a stored plan and the types that they may have.
_FIELDS: Fields = {
    "format": (str,),
    "version": (int,),
    "fingerprint": (str,),
    "criterion": (str,),
    "sparsity": (int, float, type(None)),
    "scope": (str,),
    "budget": (str, type(None)),
    "notes": (list,),
    "kept": (dict,),
}

_OPTIONAL: Fields = {"values": (dict,)}
_NONE: Fields = MappingProxyType({})


def longest(analysis: AnalysisLike) -> int:
    """A length that no plan for this graph exceeds, indented or not: reading a file is bounded."""
    sizes = (64 * group.slots + 32 * len(group.name) + 256 for group in analysis.groups)
    named = (2 * len(name) + 256 for name in analysis.parameters)
    return 1_000_000 + sum(sizes) + sum(named)


def parsed(text: str, longest: int) -> dict[str, Any]:
    """The fields of a stored plan, each of a type that `_FIELDS` allows."""
    return parsed_as(text, longest, FORMAT, VERSION, _FIELDS, _OPTIONAL)


def parsed_as(
    text: str, longest: int, form: str, version: int, fields: Fields, optional: Fields = _NONE
) -> dict[str, Any]:
    """The fields of a stored plan of one format, each of a type that `fields` allows; it may have
    those of `optional`.
    """
    if len(text) > longest:
        raise PlanError(
            f"The plan's text has {len(text)} characters; a plan for this graph has at most "
            f"{longest}. It was made for another graph or is no plan."
        )
    try:
        data = strict_json(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"The plan's text is not valid JSON: {error}.") from error
    if not isinstance(data, dict) or data.get("format") != form:
        raise PlanError(f'The text is no plan: it lacks "format": "{form}".')
    if data.get("version") != version:
        raise PlanError(
            f"The plan has version {short(data.get('version'))}, and this fxprune reads version "
            f"{version}: make the plan again, or use the fxprune that wrote it."
        )
    needed = data.keys() - optional.keys()
    if needed != fields.keys():
        odd = sorted(needed ^ fields.keys())
        raise PlanError(f"The plan's fields do not fit its version: {short(odd)}.")
    for name, types in {**fields, **optional}.items():
        if name in data and type(data[name]) not in types:
            raise PlanError(f"The plan's {name!r} may not be {short(data[name])}.")
    odd = [note for note in data["notes"] if not isinstance(note, str)]
    if odd:
        raise PlanError(f"The plan's 'notes' are texts, not {short(odd[0])}.")
    return data


def strict_json(text: str) -> Any:
    """What JSON text says. Raises ValueError also for names that occur twice and for NaN."""
    return json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
