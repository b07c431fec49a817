"""`verify`: both laws hold where they should, and a single wrong index is found and named."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune import (
    Analysis,
    EquivalenceReport,
    PlanError,
    PruningPlan,
    VerifyError,
    rewrite,
    verify,
)
from tests.masking import alive, random_plan, traced


class Net(nn.Module):
    """A norm with buffers, a constant gather, attention with a computed scale, a residual."""

    def __init__(self, normalize: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 12)
        self.norm = nn.BatchNorm1d(12)
        self.layer_norm = nn.LayerNorm(12) if normalize else nn.Identity()
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
        self.out = nn.Linear(12, 12)
        self.register_buffer("order", torch.tensor([2, 0, 1, 5, 4, 3, 8, 7, 6, 11, 10, 9]))
        self.last = nn.Linear(12, 3)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], 3, 4).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).transpose(1, 2)).transpose(1, 2)
        y = self.layer_norm(x)
        q, k, v = self.heads(self.q(y)), self.heads(self.k(y)), self.heads(self.v(y))
        y = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return self.last(torch.tanh(x.index_select(2, self.order)))


Made = tuple[fx.GraphModule, Analysis, PruningPlan, fx.GraphModule]
LAWS = {False: "masked equivalence", True: "masked interpretation"}


def data(batch: int) -> Tensor:
    return torch.randn(batch, 6, 5).double()


def make(normalize: bool, seed: int = 0) -> Made:
    graph, analysis = traced(alive(Net(normalize)), data(2))
    plan = random_plan(analysis, seed)
    return graph, analysis, plan, rewrite(graph, plan)


@pytest.fixture(params=[False, True], ids=LAWS.values())
def made(request: pytest.FixtureRequest) -> Made:
    return make(request.param)


# -- the laws hold ---------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_strongest_law_that_applies_is_checked(normalize: bool, batch: int) -> None:
    for seed in range(3):
        graph, _, plan, pruned = make(normalize, seed)
        report = verify(graph, plan, pruned, data(batch))
        assert report.ok
        assert report.law == LAWS[normalize]
        assert report.max_error < 1e-12
        assert report.first_mismatch is None
        assert report.tolerance == 1e-9


def test_an_empty_plan_holds_exactly(made: Made) -> None:
    graph, analysis, _, _ = made
    plan = PruningPlan.build(analysis, {})
    report = verify(graph, plan, rewrite(graph, plan), data(3))
    assert report.ok
    assert report.max_error == 0.0


def test_the_report_reads(made: Made) -> None:
    graph, _, plan, pruned = made
    text = str(verify(graph, plan, pruned, data(3)))
    assert text.startswith(("masked equivalence holds: ", "masked interpretation holds: "))
    assert "(tolerance 1e-09)" in text


def test_inputs_by_name_and_by_position(made: Made) -> None:
    graph, _, plan, pruned = made
    for inputs in (data(2), (data(2),), [data(2)], {"x": data(2)}):
        assert verify(graph, plan, pruned, inputs).ok


def test_float64_on_request_leaves_the_modules_alone() -> None:
    """In float32 errors are near 1e-7, in float64 near 1e-16; both modules stay as they were."""
    graph, analysis = traced(alive(Net()).float(), data(2).float())
    plan = random_plan(analysis)
    pruned = rewrite(graph, plan)
    graph.train()
    pruned.train()
    before = [copy.deepcopy(m.state_dict()) for m in (graph, pruned)]
    single = verify(graph, plan, pruned, data(3).float())
    double = verify(graph, plan, pruned, data(3).float(), dtype=torch.float64)
    assert single.ok
    assert double.ok
    assert double.max_error < 1e-12
    assert (single.tolerance, double.tolerance) == (1e-4, 1e-9)
    for module, state in zip((graph, pruned), before, strict=True):
        assert all(torch.equal(state[name], t) for name, t in module.state_dict().items())
        assert all(p.dtype == torch.float32 for p in module.parameters())
        assert all(m.training for m in module.modules())


def test_a_tolerance_of_ones_own(made: Made) -> None:
    graph, _, plan, pruned = made
    with torch.no_grad():
        pruned.last.bias += 1e-6
    assert not verify(graph, plan, pruned, data(2)).ok
    report = verify(graph, plan, pruned, data(2), tolerance=1e-2)
    assert report.ok
    assert report.tolerance == 1e-2


# -- negative controls -----------------------------------------------------------------------------


def removed_row(graph: fx.GraphModule, plan: PruningPlan, name: str, dim: int) -> Tensor:
    """An entry of the original along `dim` that the plan removes, in what stays of the others."""
    mask, tensor = plan.masks()[name], graph.state_dict()[name]
    others = [d for d in range(tensor.dim()) if d != dim]
    gone = (~(mask.any(dim=others) if others else mask)).nonzero()[0, 0]
    row = tensor.select(dim, int(gone))
    kept = mask.any(dim=dim)
    return row[kept] if others else row


def swap_row(name: str, dim: int) -> Callable[[Made], None]:
    """Index 1 of a pruned tensor is taken from a unit that should be gone."""

    def fault(made: Made) -> None:
        graph, _, plan, pruned = made
        tensor = dict([*pruned.named_parameters(), *pruned.named_buffers()])[name]
        with torch.no_grad():
            tensor.select(dim, 1).copy_(removed_row(graph, plan, name, dim))

    return fault


def wrong_gather(made: Made) -> None:
    """Two entries of the renumbered index change places."""
    pruned = made[3]
    (node,) = [n for n in pruned.graph.nodes if n.target is torch.index_select]
    index = pruned.get_buffer(str(node.args[2].target))
    index[[0, 1]] = index[[1, 0]]


def forgotten_scale(made: Made) -> None:
    """The scale is computed from the pruned width instead of the original one."""
    pruned = made[3]
    for node in pruned.graph.nodes:
        if node.target is operator.mul and node.args[1] == 0.5:
            node.args = (node.args[0], 2**-0.5)
    pruned.recompile()


FAULTS: dict[str, tuple[Callable[[Made], None], str]] = {
    "producer": (swap_row("stem.weight", 0), "stem"),
    "bias": (swap_row("stem.bias", 0), "stem"),
    "consumer": (swap_row("last.weight", 1), "last"),
    "norm": (swap_row("norm.weight", 0), "norm"),
    "buffer": (swap_row("norm.running_mean", 0), "norm"),
    "query": (swap_row("q.bias", 0), "q"),
    "gather": (wrong_gather, "index_select"),
    "scale": (forgotten_scale, "mul"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_wrong_index_is_found_and_named(made: Made, fault: str) -> None:
    graph, _, plan, pruned = made
    spoil, node = FAULTS[fault]
    spoil(made)
    report = verify(graph, plan, pruned, data(4))
    assert not report.ok
    assert report.max_error > 1e-6
    assert str(report.first_mismatch).startswith(f"node {node!r}: relative error ")
    assert f"FAILS, first at node {node!r}" in str(report)


def test_a_wrong_shape_is_named(made: Made) -> None:
    graph, _, plan, pruned = made
    pruned.last = nn.Linear(pruned.last.in_features, 4).double()
    report = verify(graph, plan, pruned, data(4))
    assert not report.ok
    assert report.max_error == float("inf")
    assert report.first_mismatch == "node 'last': shapes [(4, 6, 4)], expected [(4, 6, 3)]"


@pytest.mark.parametrize("both", [False, True])
def test_nan_fails(both: bool) -> None:
    """NaN never equals NaN: what cannot be compared is not shown to be equal."""
    graph, _, plan, pruned = make(False)
    for module in (pruned, graph) if both else (pruned,):
        with torch.no_grad():
            module.last.bias[0] = float("nan")
    report = verify(graph, plan, pruned, data(4))
    assert not report.ok
    assert report.max_error == float("inf")
    assert "node 'last'" in str(report.first_mismatch)


class Verdicts(nn.Module):
    """Integers and booleans come out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.b(F.relu(self.a(x)))
        return y.argmax(-1), y > 0


def test_outputs_that_are_no_floats() -> None:
    graph, analysis = traced(alive(Verdicts()), torch.randn(2, 5).double())
    plan = random_plan(analysis)
    pruned, inputs = rewrite(graph, plan), torch.randn(64, 5).double()
    assert verify(graph, plan, pruned, inputs).ok
    with torch.no_grad():
        pruned.b.weight.neg_()
    report = verify(graph, plan, pruned, inputs)
    assert not report.ok
    assert "node 'b'" in str(report.first_mismatch)


# -- wrong arguments -------------------------------------------------------------------------------


def test_wrong_inputs_are_refused(made: Made) -> None:
    graph, _, plan, pruned = made
    with pytest.raises(VerifyError, match=r"2 inputs were given, but the graph takes \['x'\]"):
        verify(graph, plan, pruned, (data(2), data(2)))
    with pytest.raises(VerifyError, match=r"missing are \['x'\], unknown are \['y'\]"):
        verify(graph, plan, pruned, {"y": data(2)})
    with pytest.raises(VerifyError, match=r"missing are \['x'\]"):
        verify(graph, plan, pruned, ())


@pytest.mark.parametrize(
    "inputs", [torch.randn(2, 6, 4).double(), torch.randn(2, 6, 5), torch.randn(5).double(), "text"]
)
def test_inputs_that_the_graph_cannot_take_are_refused(made: Made, inputs: object) -> None:
    graph, _, plan, pruned = made
    with pytest.raises(fxprune.FxpruneError, match=r"'x'|inputs"):
        verify(graph, plan, pruned, inputs)


def test_a_plan_for_another_graph_is_refused(made: Made) -> None:
    _, _, plan, pruned = made
    other, _ = traced(nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3)), torch.randn(2, 5))
    with pytest.raises(PlanError, match="This plan was made for another graph"):
        verify(other, plan, pruned, data(2))


def test_outputs_that_are_all_zero_are_said_to_show_nothing() -> None:
    graph, _, plan, pruned = make(False)
    assert not verify(graph, plan, pruned, data(2)).silent
    silent = copy.deepcopy(graph)
    with torch.no_grad():
        for parameter in silent.last.parameters():
            parameter.zero_()
    report = verify(silent, plan, rewrite(silent, plan), data(2))
    assert report.ok
    assert report.silent
    assert "shows nothing" in str(report)


def test_a_report_is_data() -> None:
    report = EquivalenceReport(False, 0.5, "node 'a': relative error 5.0e-01", "law", 1e-9)
    assert str(report) == (
        "law FAILS, first at node 'a': relative error 5.0e-01: max relative error 5.0e-01 "
        "(tolerance 1e-09)"
    )


class Island(nn.Module):
    """A state that is computed in float32, whatever the precision of the model is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 64), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.first(x).float()
        scaled = F.softmax(state, dim=-1, dtype=torch.float32).half()
        products = state @ scaled.to(torch.float32).transpose(1, 2)
        return self.last(products.to(x.dtype))


def test_what_is_cast_to_float32_is_verified_in_the_precision_of_the_model() -> None:
    """Else nothing below 1e-7 could be told apart from a wrong index."""
    graph, analysis = traced(alive(Island()), torch.randn(2, 5, 4).double())
    plan = random_plan(analysis)
    assert not plan.is_empty
    report = verify(graph, plan, rewrite(graph, plan), torch.randn(3, 5, 4).double())
    assert report.law == "masked interpretation"
    assert report.ok, report
    assert report.max_error < 1e-14
    assert "torch.float32" in graph.code


def test_casts_to_wider_types_stay() -> None:
    graph, analysis = traced(alive(Island()), torch.randn(2, 5, 4).double())
    plan = random_plan(analysis)
    half = torch.bfloat16
    report = verify(graph, plan, rewrite(graph, plan), torch.randn(3, 5, 4), dtype=half)
    assert report.ok, report
    assert report.tolerance == 5e-2
