"""A criterion of your own is a function from a group and the parameters to a score per unit.

python -m examples.custom_criterion
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import fxprune


def distinct(group: fxprune.Group, parameters: Mapping[str, Tensor]) -> Tensor:
    """How far the weights that make a unit are from those of the most similar unit before it.

    Of two units that do the same, the first is enough. Higher scores stay.
    """
    rows = [
        entries  # [units, entries of each], or [contexts, units, entries]
        for member, entries in group.slices(parameters)
        if member.role == "producer"
    ]
    if not rows:
        raise fxprune.NotApplicableError("no weights make its units")  # the group is left whole
    weights = nn.functional.normalize(torch.cat(rows, -1), dim=-1)
    alike = (weights @ weights.mT).abs().tril(-1)  # each unit with those before it
    return 1 - alike.amax(-1)


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():  # the last four units do what the first four do
        for parameter in (model[0].weight, model[0].bias):
            parameter[4:] = 2 * parameter[:4]
    x = torch.randn(32, 16)

    for criterion in ("magnitude", distinct):
        result = fxprune.prune(model, x, sparsity=0.5, criterion=criterion)
        (group,) = result.analysis.groups
        print(f"{result.plan.criterion} keeps units {result.plan.kept(group).tolist()}")


if __name__ == "__main__":
    main()
