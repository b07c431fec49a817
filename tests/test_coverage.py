"""`Analysis.coverage`: what the groups reach, and why not the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune


class Net(nn.Module):
    """A classifier with a table that is looked up by position, and a matrix behind an argmax."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 10)
        self.offset = nn.Parameter(torch.randn(10))
        self.table = nn.Parameter(torch.randn(5, 3))
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(F.relu(self.hidden(x) + self.offset))
        return y + self.table[y.argmax(1)]


def coverage() -> fxprune.Coverage:
    return fxprune.analyze(fxprune.trace(Net(), torch.randn(2, 6))).coverage()


def test_the_shares_count_entries() -> None:
    found = coverage()
    # The hidden units are all that may go: entries outside their rows and columns stay.
    assert {name: found.total[name] - found.reached[name] for name in found.total} == {
        "offset": 0,
        "table": 15,
        "hidden.weight": 0,
        "hidden.bias": 0,
        "head.weight": 0,
        "head.bias": 3,
    }
    assert sum(found.total.values()) == 10 + 15 + 60 + 10 + 30 + 3
    assert found.share == 110 / 128
    assert found.weight_share == 90 / 105
    assert found.unreached == ("table",)


def test_the_reasons_name_the_operator_and_the_dimensions() -> None:
    found = coverage()
    reasons = {row.reason: row for row in found.frozen}
    table = next(row for reason, row in reasons.items() if "aten::index" in reason)
    assert table.dimensions == ("table:0",)
    assert table.lost == 15
    compared = next(row for reason, row in reasons.items() if "aten::argmax" in reason)
    assert set(compared.dimensions) == {"table:1", "head.weight:0", "head.bias:0"}
    assert compared.lost == 18
    assert reasons["model input"].dimensions == ("hidden.weight:1",)
    assert reasons["model input"].lost == 0


def test_it_prints_as_a_table() -> None:
    lines = str(coverage()).splitlines()
    assert lines[0] == "85.9% of 128 parameters are in a prunable group, 85.7% of the weights."
    assert lines[1].split() == "frozen because dimensions out of reach such as".split()
    assert any(line.startswith("model input") and "hidden.weight:1" in line for line in lines)


def test_an_index_that_some_unit_owns_is_reached() -> None:
    class Halves(nn.Module):
        """The first half of the hidden units leaves the model as it is."""

        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(4, 8)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first, second = self.hidden(x).chunk(2, 1)
            return first, self.head(second)

    found = fxprune.analyze(fxprune.trace(Halves(), torch.randn(2, 4))).coverage()
    assert found.reached == {
        "hidden.weight": 16,
        "hidden.bias": 4,
        "head.weight": 8,
        "head.bias": 0,
    }


def test_a_network_without_parameters_is_covered() -> None:
    found = fxprune.analyze(fxprune.trace(nn.Sequential(nn.ReLU()), torch.randn(2, 4))).coverage()
    assert (found.share, found.weight_share, found.frozen) == (1.0, 1.0, ())


class TwoWays(nn.Module):
    """Features that are divided in two ways, which no common division of them explains."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 128), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        halves = hidden.unflatten(-1, (4, 32))[..., :16].sum(1)
        result: Tensor = self.last(halves + hidden.unflatten(-1, (8, 16)).sum(1))
        return result


def test_dimensions_of_single_units_have_a_reason_too() -> None:
    analysis = fxprune.analyze(fxprune.trace(TwoWays(), torch.randn(2, 8)))
    reasons = {group.name: group.reason for group in analysis.frozen}
    assert reasons["last.weight:1"] == (
        "every unit is a group by itself, and a group keeps at least one unit"
    )
    grouped = {
        (m.parameter, m.dim) for g in (*analysis.groups, *analysis.frozen) for m in g.members
    }
    for name, tensor in analysis.parameters.items():
        assert {dim for dim, size in enumerate(tensor.shape) if size > 1} == {
            dim for parameter, dim in grouped if parameter == name
        }
