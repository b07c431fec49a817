"""FPGM: units that the others can stand in for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.errors import AnalysisError, NotApplicableError
from fxprune.groups import Group, Role


@dataclass(frozen=True)
class Fpgm:
    """Filter pruning via the geometric median: sum over j of |w_k - w_j|, w the producer rows.

    The unit nearest to the geometric median of its group goes first, however large it is. A unit's
    row is all that produces it, side by side; units of other contexts do not count. Adding the same
    row to all units changes nothing.

    roles  the members that a unit's row is made of: producers, as in the paper; with "consumer" the
           columns of what reads the unit stand beside them
    """

    roles: tuple[Role, ...] = ("producer",)

    def __call__(self, group: Group, parameters: Mapping[str, Tensor]) -> Tensor:
        """Scores of the group's shape, float64. Raises NotApplicableError without such members."""
        squares: Tensor | None = None
        for member in group.members:
            if member.role not in self.roles:
                continue
            if member.parameter not in parameters:
                raise AnalysisError(
                    f"group {group.name!r} reads parameter {member.parameter!r}, which the given "
                    f"parameters ({len(parameters)} of them) do not contain."
                )
            rows = member.entries(parameters[member.parameter].detach(), group)
            part = _square_distances(rows)
            squares = part if squares is None else squares + part.to(squares.device)
        if squares is None:
            raise NotApplicableError(f"it has no {' or '.join(self.roles)}")
        return squares.sqrt().sum(-1)


def _square_distances(rows: Tensor) -> Tensor:
    """Squared distances [..., n, n] between rows [..., n, k], in float64."""
    if rows.is_complex():
        rows = torch.view_as_real(rows).flatten(-2)
    rows = rows.double()
    rows = rows - rows.mean(-2, keepdim=True)  # small numbers: less is lost when squares cancel
    products = rows @ rows.mT
    squares = products.diagonal(dim1=-2, dim2=-1)
    found = squares.unsqueeze(-1) + squares.unsqueeze(-2) - 2 * products
    # What is no larger than rounding is zero: the square root would make it large.
    noise = 8 * torch.finfo(torch.float64).eps * (squares.unsqueeze(-1) + squares.unsqueeze(-2))
    return torch.where(found > noise, found, 0)
