"""Each expert may choose its own hidden units, wherever data says which expert a row has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.zoo import checks

EXPERTS, HIDDEN = 3, 6


class Experts(nn.Module):
    """One expert per token: its two matrices are looked up, as in a mixture of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, 2 * HIDDEN, 4))
        self.down = nn.Parameter(torch.randn(EXPERTS, 5, HIDDEN))

    def chosen(self, x: Tensor) -> Tensor:
        return self.gate(x).argmax(-1)

    def hidden(self, x: Tensor, expert: Tensor) -> Tensor:
        gate, value = torch.bmm(self.up[expert], x[..., None]).squeeze(-1).chunk(2, dim=-1)
        return torch.sigmoid(gate) * value

    def forward(self, x: Tensor) -> Tensor:
        expert = self.chosen(x)
        return torch.bmm(self.down[expert], self.hidden(x, expert)[..., None]).squeeze(-1)


class Misled(Experts):
    """The second matrix is another expert's."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x, self.chosen(x))
        return torch.bmm(self.down[self.chosen(x.flip(-1))], hidden[..., None]).squeeze(-1)


class Mixed(Experts):
    """Hidden units of different experts are added up."""

    def forward(self, x: Tensor) -> Tensor:
        expert = self.chosen(x)
        hidden = self.hidden(x, expert)
        hidden = hidden + hidden.sum(0)
        return torch.bmm(self.down[expert], hidden[..., None]).squeeze(-1)


class Shuffled(Experts):
    """Rows change their places between the two matrices."""

    def forward(self, x: Tensor) -> Tensor:
        expert = self.chosen(x)
        hidden = self.hidden(x, expert)[torch.argsort(x[:, 0])]
        return torch.bmm(self.down[expert], hidden[..., None]).squeeze(-1)


class Overwritten(Experts):
    """The index is changed between the two lookups."""

    def forward(self, x: Tensor) -> Tensor:
        expert = self.chosen(x)
        hidden = self.hidden(x, expert)
        expert.clamp_(max=EXPERTS - 2)
        return torch.bmm(self.down[expert], hidden[..., None]).squeeze(-1)


class Normalised(Experts):
    """A statistic over hidden units, which no data-dependent mask could take out."""

    def forward(self, x: Tensor) -> Tensor:
        expert = self.chosen(x)
        hidden = self.hidden(x, expert).softmax(-1)
        return torch.bmm(self.down[expert], hidden[..., None]).squeeze(-1)


@pytest.mark.parametrize(
    ("kind", "contexts"),
    [(Experts, EXPERTS), (Misled, 1), (Mixed, 1), (Shuffled, 1), (Overwritten, 1), (Normalised, 1)],
)
def test_experts_choose_where_nothing_relates_their_units(kind: type, contexts: int) -> None:
    torch.manual_seed(0)
    model = kind().double()
    traced = fxprune.trace(model, torch.randn(7, 4, dtype=torch.float64))
    analysis = fxprune.analyze(traced, strict=True)
    (group,) = (g for g in analysis.groups if g.size == HIDDEN)
    assert group.contexts == contexts
    plan = checks.random_plan(analysis, lambda group: True)
    pruned = fxprune.rewrite(traced, plan)
    inputs = {"x": torch.randn(50, 4, dtype=torch.float64)}
    assert checks.verify_all(traced, plan, pruned, inputs).ok
    if group.maskable:
        checks.apply_masks(model, plan)
        error = checks.relative_error(checks.run(pruned, inputs), checks.run(model, inputs))
        assert error <= checks.TOLERANCE
    checks.spoil(pruned, group, inputs)
    assert not checks.verify_all(traced, plan, pruned, inputs).ok


class InTwoDimensions(Experts):
    """The experts stand in rows and columns of a grid: no one atom says which of them a row has."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)
        self.both = nn.Parameter(torch.randn(2, 2, HIDDEN, 4))

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.both.flatten(0, 1)[self.chosen(x)]
        hidden = torch.bmm(matrix, x[..., None]).softmax(1)
        return torch.bmm(matrix.mT, hidden).squeeze(-1)


def test_experts_of_a_grid_choose_alike() -> None:
    inputs = torch.randn(7, 4, dtype=torch.float64)
    graph = fxprune.trace(InTwoDimensions().double(), inputs)
    analysis = fxprune.analyze(graph, strict=True)
    (group,) = analysis.groups
    assert (group.size, group.contexts) == (HIDDEN, 1)
    plan = checks.random_plan(analysis, lambda group: True)
    assert fxprune.verify(graph, plan, fxprune.rewrite(graph, plan), inputs).ok


class PartOfATable(nn.Module):
    """Of a table's rows, only those are read, by number, that data has been looked up in."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.looked_up = (nn.Parameter(torch.randn(3, 6)) for _ in range(2))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        by_data = self.looked_up[x.argmax(1)]
        both = torch.cat([self.plain, self.looked_up])
        by_number = both[torch.tensor([3, 5])]
        return self.head(by_data + by_number.sum(0)) + self.head(both).sum(0)


def test_of_a_table_that_is_partly_free_a_frozen_part_is_read() -> None:
    inputs = torch.randn(7, 3, dtype=torch.float64)
    graph = fxprune.trace(PartOfATable().double(), inputs)
    analysis = fxprune.analyze(graph, strict=True)
    assert sorted(group.size for group in analysis.groups) == [3, 6]
    plan = checks.random_plan(analysis, lambda group: True)
    assert fxprune.verify(graph, plan, fxprune.rewrite(graph, plan), inputs).ok


class BesideANorm(Experts):
    """What the experts read is normalised, so that zeros do not mask it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(self.embed(x)))


def test_masked_interpretation_where_data_says_which_units_stay() -> None:
    torch.manual_seed(0)
    graph = fxprune.trace(BesideANorm().double(), torch.randn(7, 4, dtype=torch.float64))
    analysis = fxprune.analyze(graph, strict=True)
    assert {g.size: (g.contexts, g.maskable) for g in analysis.groups} == {
        4: (1, False),
        HIDDEN: (EXPERTS, True),
    }
    plan = checks.random_plan(analysis, lambda group: True)
    inputs = torch.randn(50, 4, dtype=torch.float64)
    report = fxprune.verify(graph, plan, fxprune.rewrite(graph, plan), inputs)
    assert report.ok, report
    assert report.law == "masked interpretation"


class Doubled(Experts):
    """The second table is computed."""

    def forward(self, x: Tensor) -> Tensor:
        expert = self.chosen(x)
        hidden = self.hidden(x, expert)[..., None]
        return torch.bmm((2 * self.down)[expert], hidden).squeeze(-1)


@pytest.mark.parametrize(("kind", "node"), [(Experts, "bmm_1"), (Doubled, "mul_1")])
def test_a_fault_is_found_where_one_can_tell_which_units_stay(kind: type, node: str) -> None:
    # Of each token's rows nothing says which have stayed: they were said to be of a wrong shape.
    torch.manual_seed(0)
    inputs = torch.randn(7, 4, dtype=torch.float64)
    graph = fxprune.trace(kind().double(), inputs)
    plan = checks.random_plan(fxprune.analyze(graph, strict=True), lambda group: True)
    pruned = fxprune.rewrite(graph, plan)
    with torch.no_grad():
        pruned.get_parameter("down").mul_(3)
    report = fxprune.verify(graph, plan, pruned, inputs)
    assert f"first at node '{node}': relative error" in str(report)


def test_choices_differ_between_experts() -> None:
    analysis = fxprune.analyze(fxprune.trace(Experts(), torch.randn(7, 4)))
    plan = checks.random_plan(analysis, lambda group: group.size == HIDDEN)
    ((_, kept),) = plan.kept_units.items()
    assert len(set(map(tuple, kept))) > 1
