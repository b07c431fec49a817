"""Wrong input is refused with a message that says what, where, the sizes, and what to do next."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import (
    AnalysisError,
    CheckpointError,
    FxpruneError,
    Group,
    NothingPrunedWarning,
    PlanError,
    TraceError,
)
from fxprune.rules.base import Call, Effect, Kind, Lookup
from fxprune.rules.elementwise import pointwise


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.stem(x))).mean((2, 3)))


IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5


@torch.library.custom_op("fxprune_tests::halved", mutates_args=())
def halved(x: Tensor) -> Tensor:
    """An op that no rule knows."""
    return x / 2


@halved.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(halved(self.first(x)))))


@pytest.fixture
def model() -> Iterator[nn.Module]:
    """A model that must be the same, to the bit, after whatever the test does to it."""
    net = Net().eval()
    before = copy.deepcopy(net.state_dict())
    names = {name: set(vars(module)) for name, module in net.named_modules()}
    yield net
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert {name: set(vars(module)) for name, module in net.named_modules()} == names
    assert all(parameter.grad is None for parameter in net.parameters())


Entry = Callable[[nn.Module, dict[str, Any]], object]
ENTRIES: dict[str, Entry] = {
    "prune": lambda model, options: fxprune.prune(model, IMAGES, **options),
    "plan": lambda model, options: fxprune.plan(
        fxprune.analyze(fxprune.trace(model, IMAGES)), **options
    ),
}
entries = pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))


# -- sparsity --------------------------------------------------------------------------------------


@entries
@pytest.mark.parametrize("sparsity", [1, 1.0, 1.5, -0.1, math.nan, math.inf])
def test_sparsity_outside_its_range(model: nn.Module, entry: Entry, sparsity: float) -> None:
    text = r"sparsity is the fraction of units to remove and must lie in \[0, 1\); got "
    with pytest.raises(PlanError, match=text) as caught:
        entry(model, {"sparsity": sparsity})
    assert str(caught.value).endswith(f"got {sparsity!r}.")


@entries
@pytest.mark.parametrize("sparsity", ["0.5", [0.5], True, {"stem": 0.5}])
def test_sparsity_that_is_no_number(model: nn.Module, entry: Entry, sparsity: object) -> None:
    with pytest.raises(PlanError, match=r"sparsity must be a number in \[0, 1\)"):
        entry(model, {"sparsity": sparsity})


@entries
def test_sparsity_not_given(model: nn.Module, entry: Entry) -> None:
    with pytest.raises(PlanError, match=r"How much should go\? Pass sparsity="):
        entry(model, {})


@entries
def test_unknown_scope(model: nn.Module, entry: Entry) -> None:
    with pytest.raises(PlanError, match=r"no scope 'layer'; use one of global, isomorphic, local"):
        entry(model, {"sparsity": 0.5, "scope": "layer"})


# -- criteria and scores ---------------------------------------------------------------------------


@entries
def test_unknown_criterion(model: nn.Module, entry: Entry) -> None:
    with pytest.raises(PlanError, match=r"no criterion 'magnitud'.*'?magnitude"):
        entry(model, {"sparsity": 0.5, "criterion": "magnitud"})


def scores_of(make: Callable[[Group], object]) -> dict[str, Any]:
    return {"sparsity": 0.5, "criterion": lambda group, parameters: make(group)}


@entries
def test_wrong_score_shape(model: nn.Module, entry: Entry) -> None:
    text = r"group 'stem.weight:0': the scores have shape \(9,\), expected \(8,\): one per unit"
    with pytest.raises(PlanError, match=text):
        entry(model, scores_of(lambda group: torch.zeros(group.size + 1)))
    with pytest.raises(PlanError, match=r"have shape \(1, 8\), expected \(8,\)"):
        entry(model, scores_of(lambda group: torch.zeros(1, group.size)))


@entries
def test_scores_that_are_no_tensor(model: nn.Module, entry: Entry) -> None:
    with pytest.raises(PlanError, match=r"must be a tensor of shape \(8,\), not a list"):
        entry(model, scores_of(lambda group: [0.0] * group.size))


@entries
def test_nan_scores(model: nn.Module, entry: Entry) -> None:
    text = r"group 'stem.weight:0': 8 of 8 scores are not finite \(8 NaN, 0 infinite\)\. Look for"
    with pytest.raises(PlanError, match=text):
        entry(model, scores_of(lambda group: torch.full((group.size,), math.nan)))


def test_nan_weights_show_in_the_scores() -> None:
    net = Net().eval()
    with torch.no_grad():
        net.stem.weight[3] = math.nan
    with pytest.raises(PlanError, match=r"1 of 8 scores are not finite \(1 NaN, 0 infinite\)"):
        fxprune.prune(net, IMAGES, sparsity=0.5)


# -- groups ----------------------------------------------------------------------------------------


def test_nothing_prunable() -> None:
    with pytest.raises(PlanError, match="Nothing in this graph may be pruned") as caught:
        fxprune.prune(nn.Linear(3, 4), torch.randn(2, 3), sparsity=0.5)
    text = str(caught.value)
    assert "1 x model output" in text
    assert "1 x model input" in text


def test_a_model_without_parameters() -> None:
    with pytest.raises(PlanError, match="Nothing in this graph may be pruned"):
        fxprune.prune(nn.ReLU(), torch.randn(2, 3), sparsity=0.5)


@entries
def test_groups_that_select_none(model: nn.Module, entry: Entry) -> None:
    with pytest.raises(PlanError, match=r"groups= selects none of the 1 prunable groups"):
        entry(model, {"sparsity": 0.5, "groups": lambda group: False})
    with pytest.raises(PlanError, match=r"groups= is a function that takes a group"):
        entry(model, {"sparsity": 0.5, "groups": ["stem"]})


@entries
def test_pruning_nothing_warns_loudly(model: nn.Module, entry: Entry) -> None:
    text = r"NOTHING IS PRUNED: sparsity 0.1 with scope 'local' removes no unit from 1 groups of 8"
    with pytest.warns(NothingPrunedWarning, match=text):
        entry(model, {"sparsity": 0.1})


def test_a_report_of_nothing_says_so(model: nn.Module) -> None:
    with pytest.warns(NothingPrunedWarning):
        result = fxprune.prune(model, IMAGES, sparsity=0.0)
    assert str(result.report).startswith("NOTHING WAS PRUNED.")
    assert torch.equal(result.module(IMAGES), model(IMAGES))


# -- inputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (torch.randn(2, 4, 8, 8), "Invalid channel dimensions"),
        (torch.randn(2, 3), "."),
        ((IMAGES, IMAGES), "."),
        ({"y": IMAGES}, "."),
        ((), "."),
        (None, "."),
        ("images", "."),
    ],
)
def test_inputs_that_do_not_fit(model: nn.Module, inputs: object, text: str) -> None:
    """The model's own complaint and the inputs' shapes are in the message."""
    with pytest.raises(TraceError, match=text) as caught:
        fxprune.prune(model, inputs, sparsity=0.5)
    assert len(str(caught.value)) > 40
    if isinstance(inputs, Tensor):
        assert str(tuple(inputs.shape)) in str(caught.value)


def test_a_model_that_is_none() -> None:
    with pytest.raises(TraceError, match=r"[Mm]odule"):
        fxprune.trace("resnet", IMAGES)


def branching_line() -> int:
    lines = Path(__file__).read_text().splitlines()
    return 1 + next(i for i, text in enumerate(lines) if text.endswith("# decided by data"))


def test_data_dependent_branches_name_their_line() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:  # decided by data
                return self.a(x)
            return self.a(-x)

    with pytest.raises(TraceError, match=r"test_errors\.py") as caught:
        fxprune.trace(Branching(), torch.randn(2, 3))
    line = branching_line()
    assert str(caught.value).startswith(f"{__file__}:{line}: the model reads values of a tensor")
    assert "torch.where" in str(caught.value)


# -- graphs ----------------------------------------------------------------------------------------


def test_a_plan_for_another_graph(model: nn.Module) -> None:
    result = fxprune.prune(model, IMAGES, sparsity=0.5)
    other = fxprune.trace(Net(12).eval(), IMAGES)
    before = copy.deepcopy(other.state_dict())
    text = r"This plan was made for another graph: its fingerprint is '\w{32}' and this graph's is"
    with pytest.raises(PlanError, match=text):
        fxprune.rewrite(other, result.plan)
    with pytest.raises(PlanError, match=text):
        fxprune.verify(other, result.plan, result.module, IMAGES)
    assert all(torch.equal(before[name], t) for name, t in other.state_dict().items())


def test_a_graph_that_was_changed(model: nn.Module) -> None:
    """A plan does not fit a graph that was edited after its analysis."""
    graph = fxprune.trace(model, IMAGES)
    plan = fxprune.plan(fxprune.analyze(graph), sparsity=0.5)
    (node,) = [n for n in graph.graph.nodes if n.name == "mean"]
    with graph.graph.inserting_after(node):
        extra = graph.graph.call_function(torch.exp, (node,))
    node.replace_all_uses_with(extra, lambda user: user is not extra)
    graph.recompile()
    with pytest.raises(PlanError, match="another graph"):
        fxprune.rewrite(graph, plan)


def test_a_graph_that_was_not_traced_here(model: nn.Module) -> None:
    graph = torch.fx.symbolic_trace(model)
    with pytest.raises(AnalysisError, match=r"no example for its inputs \['x'\].*fxprune\.trace"):
        fxprune.analyze(graph)


def test_an_op_without_a_rule() -> None:
    """Strict refuses it by name; otherwise it freezes what it touches, and says so."""
    model, inputs = Custom().eval(), torch.randn(2, 5)
    before = copy.deepcopy(model.state_dict())
    text = r"no rule for op fxprune_tests::halved at node 'halved[\w]*'.*strict=True"
    with pytest.raises(AnalysisError, match=text):
        fxprune.prune(model, inputs, sparsity=0.5, strict=True)
    with pytest.raises(AnalysisError, match=text):
        fxprune.analyze(fxprune.trace(model, inputs), strict=True)
    result = fxprune.prune(model, inputs, sparsity=0.5)
    assert [group.name for group in result.analysis.groups] == ["second.weight:0"]
    assert "no rule for fxprune_tests::halved" in result.analysis.explain("first")
    assert result.module.first.out_features == 8
    assert result.module.second.out_features == 3
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize("name", ["halved", "aten::relu", "aten::no_such", "prims::no_such"])
def test_a_rule_of_ones_own_for_an_operator_that_is_not(model: nn.Module, name: str) -> None:
    traced = fxprune.trace(model, IMAGES)
    with pytest.raises(AnalysisError, match=f"rules= names '{name}'; it takes operators that"):
        fxprune.analyze(traced, rules={name: pointwise})


def test_a_rule_of_ones_own() -> None:
    traced = fxprune.trace(Custom().eval(), torch.randn(2, 5))
    analysis = fxprune.analyze(traced, strict=True, rules={"fxprune_tests::halved": pointwise})
    assert [group.size for group in analysis.groups] == [8, 6]
    with pytest.raises(AnalysisError, match="names 'torchvision::roi_align'"):  # it has a rule
        fxprune.analyze(traced, rules={"torchvision::roi_align": pointwise})


@pytest.mark.parametrize(("rows", "table"), [(0, 1), (1, 0)])
def test_a_rule_with_a_lookup_of_what_may_be_pruned(rows: int, table: int) -> None:
    def rule(call: Call) -> Effect:
        axes = call.axes("x")  # the batch, and free units
        return Effect((axes,), Kind.MOVE, (), Lookup(axes[rows], axes[table], call["x"]))

    traced = fxprune.trace(Custom().eval(), torch.randn(2, 5))
    text = "the rule for fxprune_tests::halved failed .* needs frozen rows and a frozen table"
    with pytest.raises(AnalysisError, match=text):
        fxprune.analyze(traced, rules={"fxprune_tests::halved": rule})


def test_every_error_is_one_family() -> None:
    names = [name for name in fxprune.__all__ if name.endswith("Error")]
    assert len(names) == 9
    assert all(issubclass(getattr(fxprune, name), FxpruneError) for name in names)


def test_analyze_takes_traced_graphs_only() -> None:
    with pytest.raises(AnalysisError, match=r"not a Linear\. Call fxprune\.trace\(model"):
        fxprune.analyze(torch.nn.Linear(3, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("use", "error", "text"),
    [
        (lambda model, result, path: fxprune.rewrite(model, result.plan), AnalysisError, "a Net"),
        (
            lambda model, result, path: fxprune.verify(model, result.plan, result.module, IMAGES),
            AnalysisError,
            r"Call fxprune.trace\(model, example_inputs\) first",
        ),
        (lambda model, result, path: fxprune.cost(model), PlanError, "not from a Net"),
        (lambda model, result, path: fxprune.savings(model), PlanError, "not from a Net"),
        (
            lambda model, result, path: fxprune.save(result.module, path / "new"),
            CheckpointError,
            r"as \(result.module, result.plan\)",
        ),
        (
            lambda model, result, path: fxprune.save((result.module, None), path / "new"),
            CheckpointError,
            "a pair of the module and its plan",
        ),
        (
            lambda model, result, path: fxprune.save(result, path / "file"),
            CheckpointError,
            "Cannot make the directory",
        ),
        (
            lambda model, result, path: list(fxprune.iterate(model, IMAGES, 0.5, steps=2.5)),
            PlanError,
            "as an integer; got 2.5",
        ),
    ],
    ids=["rewrite", "verify", "cost", "savings", "save", "save pair", "save file", "iterate"],
)
def test_one_thing_for_another(
    model: nn.Module,
    tmp_path: Path,
    use: Callable[[nn.Module, Any, Path], object],
    error: type[FxpruneError],
    text: str,
) -> None:
    (tmp_path / "file").touch()
    result = fxprune.prune(model, IMAGES, sparsity=0.5)
    with pytest.raises(error, match=text):
        use(model, result, tmp_path)
    assert not (tmp_path / "new").exists()
