"""Formulas op by op, against what is counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import PlanError, PruningPlan
from tests.costs import measure


class Function(nn.Module):
    """A function with one weight."""

    def __init__(self, weight: Tensor, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.weight)


def analysed(model: nn.Module, *inputs: Tensor) -> fxprune.Analysis:
    return fxprune.analyze(fxprune.trace(model.eval(), inputs))


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nn.Conv1d(6, 8, 3, padding=1), (2, 6, 5), 2 * 5 * 8 * 6 * 3),
        (nn.Conv2d(6, 8, 3, stride=2, groups=2), (2, 6, 9, 7), 2 * 4 * 3 * 8 * 3 * 9),
        (nn.Conv3d(2, 4, 2), (1, 2, 3, 3, 3), 8 * 4 * 2 * 8),
        (nn.ConvTranspose2d(6, 8, 3, stride=2), (2, 6, 5, 4), 2 * 5 * 4 * 6 * 8 * 9),
        (nn.ConvTranspose1d(6, 8, 3, groups=2), (2, 6, 5), 2 * 5 * 6 * 4 * 3),
        (nn.Linear(6, 8), (2, 5, 6), 2 * 5 * 6 * 8),
        (Function(torch.randn(6, 8), torch.matmul), (2, 5, 6), 2 * 5 * 6 * 8),
        (Function(torch.randn(5, 6, 8), torch.matmul), (2, 5, 3, 6), 2 * 5 * 3 * 6 * 8),
        (
            Function(torch.randn(4, 6), lambda x, w: torch.einsum("bnd,hd->bhn", x, w)),
            (2, 5, 6),
            2 * 5 * 6 * 4,
        ),
        (
            Function(torch.randn(2, 5, 5), lambda x, w: torch.baddbmm(w, x, x.transpose(1, 2))),
            (2, 5, 6),
            2 * 5 * 5 * 6,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_products_and_convolutions(model: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    x = torch.randn(shape)
    traced = fxprune.trace(model.eval(), (x,))
    total = fxprune.cost(fxprune.analyze(traced)).total
    assert total.macs == expected
    name = traced.graph.find_nodes(op="placeholder")[0].target
    assert total.macs == measure.macs(traced, {str(name): x})


@pytest.mark.parametrize(
    ("function", "weight", "shape", "expected"),
    [
        (torch.matmul, (6,), (2, 5, 6), 2 * 5 * 6),
        (lambda x, w: torch.addmv(w[:2], x, w), (6,), (2, 6), 2 * 6),
        (lambda x, w: nn.functional.bilinear(x, x, w), (4, 6, 6), (2, 6), 2 * 4 * 6 * 6),
    ],
)
def test_products_that_flop_counter_mode_leaves_out(
    function: Callable[[Tensor, Tensor], Any],
    weight: tuple[int, ...],
    shape: tuple[int, ...],
    expected: int,
) -> None:
    model = Function(torch.randn(weight), function)
    assert fxprune.cost(analysed(model, torch.randn(shape))).total.macs == expected


def by_hand(module: nn.RNNBase, steps: int) -> int:
    """Multiply-accumulates of a recurrent module, gate by gate."""
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[type(module)]
    directions = 2 if module.bidirectional else 1
    output = module.proj_size or module.hidden_size
    total = 0
    for layer in range(module.num_layers):
        features = module.input_size if layer == 0 else directions * output
        step = gates * module.hidden_size * (features + output)
        step += module.proj_size * module.hidden_size
        total += directions * steps * step
    return total


class Wrapped(nn.Module):
    """A recurrent module inside another one."""

    def __init__(self, inner: nn.RNNBase) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(6, 8),
        nn.LSTM(6, 8, num_layers=2, bidirectional=True, batch_first=True),
        nn.LSTM(6, 8, num_layers=2, proj_size=3, bias=False),
        nn.GRU(6, 8, bidirectional=True),
        nn.RNN(6, 8, num_layers=3),
    ],
    ids=str,
)
def test_recurrent_modules(module: nn.RNNBase) -> None:
    cost = fxprune.cost(analysed(Wrapped(module), torch.randn(5, 4, 6)))
    assert cost.total.macs == by_hand(module, 5 * 4)
    assert cost.parameters == measure.parameters(module)


class Tagger(nn.Module):
    """An LSTM whose hidden units nothing freezes."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


def test_a_pruned_recurrent_module() -> None:
    analysis = analysed(Tagger(), torch.randn(2, 7, 6))
    (group,) = analysis.groups
    plan = PruningPlan.build(analysis, {group.name: [0, 2, 3]})
    pruned = fxprune.rewrite(analysis.traced, plan)
    assert pruned.lstm.hidden_size == 3
    expected = by_hand(pruned.lstm, 2 * 7) + 2 * 7 * 6 * 3
    assert fxprune.cost(analysis, plan).total.macs == expected
    assert fxprune.cost(analysis, plan).parameters == measure.parameters(pruned)


class Halved(nn.Module):
    """Mirrored sums couple channel i to channel 7 - i; the product reads channels 0 to 2 alone, of
    which one stays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        first = (y + y.flip(1))[:, :3]
        return first.transpose(1, 2) @ first


@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 2], [1, 2], [2]])
def test_units_of_a_group_may_differ_in_cost(kept: list[int]) -> None:
    x = torch.randn(2, 3, 5)
    analysis = analysed(Halved(), x)
    (group,) = analysis.groups
    assert group.size == 3
    plan = PruningPlan.build(analysis, {group.name: kept})
    pruned = fxprune.rewrite(analysis.traced, plan)
    cost = fxprune.cost(analysis, plan)
    assert cost.total.macs == measure.macs(pruned, {"x": x})
    if len(kept) > 1:
        less = PruningPlan.build(analysis, {group.name: kept[:-1]})
        saved = fxprune.savings(analysis, plan)[group.name].macs
        assert saved == cost.macs - fxprune.cost(analysis, less).macs


def test_a_cost_is_per_sample() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    costs = [fxprune.cost(analysed(model, torch.randn(batch, 6))) for batch in (2, 5)]
    assert [cost.batch for cost in costs] == [2, 5]
    for cost in costs:
        assert (cost.macs, cost.parameters) == (6 * 8 + 8 * 3, 6 * 8 + 8 + 8 * 3 + 3)
        assert cost.activation_memory == (8 + 8 + 3) * 4
        assert cost.total.macs == cost.macs * cost.batch
        assert [(n.node, n.macs) for n in cost.nodes] == [("_0", 48), ("_1", 0), ("_2", 24)]


def test_shared_work_is_rounded_up() -> None:
    """A product of parameters is made once for all five samples."""
    weight = torch.randn(3, 3)
    model = Function(weight, lambda x, w: x + (w @ w)[0])
    cost = fxprune.cost(analysed(model, torch.randn(5, 3)))
    assert (cost.total.macs, cost.macs) == (27, 6)


def test_tied_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    cost = fxprune.cost(analysed(model, torch.randn(2, 4)))
    assert cost.parameters == 16 + 4 + 4
    assert cost.macs == 32


def test_views_and_writes_in_place_take_no_memory() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Unflatten(1, (2, 3)))
    cost = fxprune.cost(analysed(model, torch.randn(2, 4)))
    assert cost.activation_memory == 6 * 4


def test_a_cost_prints_as_a_table() -> None:
    model = nn.Sequential(nn.Linear(60, 80), nn.ReLU(), nn.Linear(80, 3))
    cost = fxprune.cost(analysed(model, torch.randn(2, 60)))
    assert str(cost) == (
        "node    target      MACs    parameters    activation bytes\n"
        "------  --------  ------  ------------  ------------------\n"
        "_0      0          4,800         4,880                 320\n"
        "_1      1              0             0                 320\n"
        "_2      2            240           243                  12\n"
        "total              5,040         5,123                 652"
    )
    assert repr(cost) == "Cost(macs=5040, parameters=5123, activation_memory=652)"


def test_a_plan_for_another_graph_is_refused() -> None:
    first = analysed(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), torch.randn(2, 4))
    other = analysed(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)), torch.randn(2, 4))
    plan = PruningPlan.build(other, {})
    for function in (fxprune.cost, fxprune.savings):
        with pytest.raises(PlanError, match="This plan was made for another graph"):
            function(first, plan)
