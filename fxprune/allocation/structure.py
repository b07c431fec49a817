"""Which groups have the same structure."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fxprune.groups import Group


def kind_of(group: Group, analysis: Any) -> object:
    """What groups have in common that are isomorphic: how many layers of which type make, scale and
    read their units, and through which dimensions. Widths and kernel sizes do not matter.
    """
    members = Counter(
        (type(analysis.traced.get_submodule(path)).__qualname__, leaf, member.dim, member.role)
        for member in group.members
        for path, _, leaf in [member.parameter.rpartition(".")]
    )
    return frozenset(members.items()), group.contexts > 1
