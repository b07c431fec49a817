"""One rule per ATen op, in families. A missing rule is a barrier, never a guess."""

from __future__ import annotations

from collections.abc import Mapping

from fxprune.rules.base import Call, Effect, Kind, Rule, table
from fxprune.rules.contract import CONTRACTIONS
from fxprune.rules.elementwise import ELEMENTWISE
from fxprune.rules.indexing import INDEXING
from fxprune.rules.norm import NORMS
from fxprune.rules.recurrent import MODULE_RULES
from fxprune.rules.reduce import REDUCTIONS
from fxprune.rules.view import VIEWS
from fxprune.rules.vision import VISION

RULES: Mapping[str, Rule] = table(
    ELEMENTWISE, VIEWS, INDEXING, CONTRACTIONS, REDUCTIONS, NORMS, VISION
)
"""ATen op name, without namespace, overload and the underscore of in-place variants → rule.

Ops of other libraries stand by their full names.
"""

__all__ = ["MODULE_RULES", "RULES", "Call", "Effect", "Kind", "Rule"]
