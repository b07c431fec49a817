"""Every row of the rewriter: the graph hits it with sizes that change, and the result is right."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune import PruningPlan, RewriteError, rewrite, rewriter, verify
from fxprune.capture import recorder
from fxprune.rewriter.rows import ROWS, find_row
from tests.masking import TOLERANCE, alive, as_written, masked_error, random_plan, traced
from tests.rewriter.row_cases import CASES, Case, Function, Middle

EACH = [(name, case) for name, cases in CASES.items() for case in cases]
IDS = [f"{name}-{i}" for name, cases in CASES.items() for i in range(len(cases))]


def test_every_row_has_a_case() -> None:
    assert set(CASES) == set(ROWS)


def row_name(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    return getattr(node.target, "__name__", "").strip("_")


def nodes_of(graph: fx.GraphModule, name: str) -> list[fx.Node]:
    return [n for n in graph.graph.nodes if find_row(n) is not None and row_name(n) == name]


REPLACED_BY_TRACE = {"channel_shuffle"}
"""`trace` names these permutations; graphs that come from elsewhere may contain the op."""


def check(model: nn.Module, graph: fx.GraphModule, plan: PruningPlan) -> fx.GraphModule:
    """The rewritten graph, after comparing it at another batch size than the traced one."""
    pruned, inputs = rewrite(graph, plan), torch.randn(3, 4, 5).double()
    if all(plan.group(name).maskable for name in plan.kept_units):
        assert masked_error(model, plan, pruned, inputs) <= TOLERANCE
    report = verify(graph, plan, pruned, inputs)
    assert report.ok, report
    assert report.max_error <= TOLERANCE
    return pruned


@pytest.mark.parametrize(("name", "case"), EACH, ids=IDS)
def test_row(name: str, case: Case) -> None:
    model = alive(Middle(case))
    capture = as_written if name in REPLACED_BY_TRACE else traced
    graph, analysis = capture(model, torch.randn(2, 4, 5).double())
    assert nodes_of(graph, name), graph.code
    for seed, keep in ((0, 0.5), (1, 0.5), (2, 0.25), (3, 0.8)):
        pruned = check(model, graph, random_plan(analysis, seed, keep=keep))
        assert pruned.first.out_features < model.first.out_features


def test_all_units_but_one_go() -> None:
    """Widths of 1 are still dimensions."""
    for name, cases in CASES.items():
        model = alive(Middle(cases[0]))
        graph, analysis = traced(model, torch.randn(2, 4, 5).double())
        plan = random_plan(analysis, keep=0.0)
        try:
            check(model, graph, plan)
        except Exception as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: x.flatten().view(x.shape) * 2,
        lambda m, x: x.flatten().reshape(x.size()) * 2,
        lambda m, x: x + x.new_zeros(x.shape),
        lambda m, x: x + m.p.expand(x.shape),
    ],
    ids=["view", "reshape", "zeros", "expand"],
)
def test_sizes_may_be_the_shape_of_a_tensor(run: Function) -> None:
    # `rewrite` failed: graphs that `trace` did not make have such a shape as one node.
    model = alive(Middle(Case(run)))
    graph, analysis = as_written(model, torch.randn(2, 4, 5).double())
    pruned = check(model, graph, random_plan(analysis))
    assert pruned.first.out_features < 12


def test_an_unequal_chunk_becomes_a_split() -> None:
    model = alive(Middle(Case(lambda m, x: torch.cat(x.chunk(2, -1)[::-1], -1))))
    graph, analysis = traced(model, torch.randn(2, 4, 5).double())
    left, right = [g for g in analysis.groups if g.size == 6]
    plan = PruningPlan.build(analysis, {left.name: [0, 5], right.name: [1, 2, 3, 4]})
    pruned = check(model, graph, plan)
    (node,) = nodes_of(pruned, "split")
    assert node.args[1:] == ([2, 4], -1) or node.args[1:] == ([2, 4], 2)
    assert not nodes_of(pruned, "chunk")


def literals(graph: fx.GraphModule, target: object) -> list[object]:
    return [
        a for n in graph.graph.nodes if n.target is target for a in n.args if isinstance(a, float)
    ]


def test_a_scale_computed_from_a_width_keeps_its_value() -> None:
    """``head_dim ** -0.5`` and ``sum / C`` belong to the original sizes."""

    def run(m: Middle, x: Tensor) -> Tensor:
        q, k = x.view(x.shape[0], 4, 3, 4).transpose(1, 2), m.w.view(4, 3, 4).transpose(0, 1)
        mean = x.sum(-1, keepdim=True) / x.shape[-1]
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return torch.cat([scores.transpose(1, 2).flatten(2), mean], -1)

    model = alive(Middle(Case(run, 13, (4, 12))))
    graph, analysis = traced(model, torch.randn(2, 4, 5).double())
    pruned = check(model, graph, random_plan(analysis))
    for module in (graph, pruned):
        assert literals(module, operator.mul) == [0.5]
        divisors = [n.args[1] for n in module.graph.nodes if n.target is operator.truediv]
        assert divisors == [12]


def test_the_default_scale_of_attention_is_written_out() -> None:
    (plain, *_), given = CASES["scaled_dot_product_attention"], 0.3
    graph, analysis = traced(alive(Middle(plain)), torch.randn(2, 4, 5).double())
    (node,) = nodes_of(graph, "scaled_dot_product_attention")
    assert node.kwargs.get("scale") is None
    (node,) = nodes_of(rewrite(graph, random_plan(analysis)), "scaled_dot_product_attention")
    assert node.kwargs["scale"] == 0.5  # of the original 4 head dimensions
    graph, analysis = traced(
        alive(Middle(CASES["scaled_dot_product_attention"][2])), torch.randn(2, 4, 5).double()
    )
    (node,) = nodes_of(rewrite(graph, random_plan(analysis)), "scaled_dot_product_attention")
    assert node.kwargs["scale"] == given


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (lambda m, x: x.view(x.shape[0], 4, 3, 4).sum(2), "does not run at its new sizes"),
        (lambda m, x: x[..., 2:8], r"node 'getitem\w*' .* picks positions .* by aten::slice"),
        (lambda m, x: x.roll(1, -1)[..., :6].contiguous(), "picks positions .* by aten::roll"),
    ],
)
def test_a_missing_row_is_an_error(
    monkeypatch: pytest.MonkeyPatch, run: Function, text: str
) -> None:
    """Sizes that nothing renews never pass silently."""
    width = 4 if "new sizes" in text else 6
    graph, analysis = traced(alive(Middle(Case(run, width))), torch.randn(2, 4, 5).double())
    plan = random_plan(analysis)
    before = copy.deepcopy(graph.state_dict())
    rewrite(graph, plan)
    monkeypatch.setattr(rewriter, "find_row", lambda node: None)
    with pytest.raises(RewriteError, match=text) as caught:
        rewrite(graph, plan)
    assert "report the op" in str(caught.value)
    assert all(torch.equal(before[name], t) for name, t in graph.state_dict().items())


def second(x: Tensor) -> Tensor:
    return torch.ops.aten.select.int(x, -1, 2)[..., None]


def some(x: Tensor) -> Tensor:
    return torch.ops.aten.index_select.default(x, -1, torch.tensor([2, 5, 7]))


def indexed(x: Tensor) -> Tensor:
    return torch.ops.aten.index.Tensor(x, [None, None, torch.tensor([2, 5, 7])])


def part(x: Tensor) -> Tensor:
    return torch.ops.aten.slice.Tensor(x, -1, 2, 8)


@pytest.mark.parametrize(("pick", "width"), [(part, 6), (second, 1), (some, 3), (indexed, 3)])
def test_positions_that_operators_pick_are_renumbered(
    pick: Callable[[Tensor], Tensor], width: int
) -> None:
    model, x = alive(Middle(Case(lambda m, x: pick(x), width))), torch.randn(2, 4, 5).double()
    graph, analysis = traced(model, x)
    plan = random_plan(analysis)
    assert not plan.is_empty
    assert verify(graph, plan, rewrite(graph, plan), x).ok


@pytest.mark.parametrize(("pick", "width"), [(part, 6), (indexed, 3)])
def test_positions_that_no_row_renumbers_are_an_error(
    monkeypatch: pytest.MonkeyPatch, pick: Callable[[Tensor], Tensor], width: int
) -> None:
    # The network that came out read other channels, and only `verify` said so.
    monkeypatch.setattr(
        recorder, "lowered", lambda function, args: None
    )  # as in graphs of other tracers
    model = alive(Middle(Case(lambda m, x: pick(x), width)))
    graph, analysis = traced(model, torch.randn(2, 4, 5).double())
    with pytest.raises(RewriteError, match="picks positions of a dimension that loses some"):
        rewrite(graph, random_plan(analysis))
