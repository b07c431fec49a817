"""One rule per ATen op, in families. A missing rule is a barrier, never a guess."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fxprune.rules.base import Call, Effect, Kind, Rule, table
from fxprune.rules.contract import CONTRACTIONS
from fxprune.rules.elementwise import ELEMENTWISE
from fxprune.rules.indexing import INDEXING
from fxprune.rules.norm import NORMS
from fxprune.rules.recurrent import MODULE_RULES
from fxprune.rules.reduce import REDUCTIONS
from fxprune.rules.view import VIEWS
from fxprune.rules.vision import VISION

_TABLE: dict[str, Rule] = dict(
    table(ELEMENTWISE, VIEWS, INDEXING, CONTRACTIONS, REDUCTIONS, NORMS, VISION)
)

RULES: Mapping[str, Rule] = MappingProxyType(_TABLE)
"""ATen op name, without namespace, overload and the underscore of in-place variants → rule.

Ops of other libraries stand by their full names.
"""


def register(name: str) -> Callable[[Rule], Rule]:
    """Decorator for the rule of an operator of yours, by its full name such as "mylib::gate".

    The rule holds for all graphs that are analysed from then on. It is trusted: `fxprune.verify`
    says if it is wrong. Raises ValueError if the operator has a rule, or is one of torch's own.
    """
    if "::" not in name or name.startswith(("aten::", "prims::")):
        raise ValueError(
            f"{name!r} is no operator of another library: its name is such as 'mylib::gate'."
        )

    def add(rule: Rule) -> Rule:
        if name in _TABLE:
            raise ValueError(f"two rules for {name}")
        _TABLE[name] = rule
        return rule

    return add


__all__ = ["MODULE_RULES", "RULES", "Call", "Effect", "Kind", "register"]
