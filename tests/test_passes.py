"""fxprune's passes in torch.fx's PassManager, among other people's passes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager, this_before_that_pass_constraint

import fxprune
from fxprune.discrepancy import max_error
from fxprune.passes import Apply, Capture, Compensate, Factorize, Prune, Recalibrate, Verify
from tests.interop.models import Residual


class FuseReluIntoFunction(PassBase):
    """Somebody's pass: methods `relu` become functions, in place."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        found = [n for n in graph_module.graph.nodes if (n.op, n.target) == ("call_method", "relu")]
        for node in found:
            node.op, node.target = "call_function", torch.relu
        return PassResult(graph_module, bool(found))


class Spoil(PassBase):
    """Somebody's wrong pass: it scales a weight."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        with torch.no_grad():
            next(graph_module.parameters()).mul_(1.1)
        return PassResult(graph_module, True)


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8)


@pytest.fixture
def graph() -> fx.GraphModule:
    return fx.symbolic_trace(Residual().eval())


@torch.no_grad()
def test_a_pipeline_with_other_peoples_passes(graph: fx.GraphModule) -> None:
    prune = Prune(sparsity=0.5)
    check = Verify(prune, images(5), dtype=torch.float64)
    before = copy.deepcopy(graph.state_dict())
    passes: list[Any] = [Capture(images(2)), FuseReluIntoFunction(), prune, check]
    manager = PassManager(passes, run_checks_after_each_pass=True)
    result = manager(graph)
    assert result.modified
    assert check.report is not None
    assert check.report.ok
    expected = fxprune.prune(graph, images(2), sparsity=0.5)
    x = images(3)
    assert max_error(result.graph_module(x), expected.module(x)) <= 1e-6
    assert str(prune.report) == str(expected.report)
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())
    targets = {node.target for node in result.graph_module.graph.nodes}
    assert torch.relu in targets
    assert "relu" not in targets


def test_passes_run_in_between(graph: fx.GraphModule) -> None:
    prune = Prune(budget=fxprune.Budget(macs=0.6), scope="global")
    passes: list[Any] = [
        Capture(images(2)),
        prune,
        FuseReluIntoFunction(),
        Verify(prune, images(4)),
    ]
    assert PassManager(passes)(graph).modified
    wrong: list[Any] = [Capture(images(2)), prune, Spoil(), Verify(prune, images(4))]
    with pytest.raises(Exception, match="An error occurred when running the 'Verify'") as caught:
        PassManager(wrong)(graph)
    assert isinstance(caught.value.__cause__, fxprune.VerifyError)
    assert "FAILS" in str(caught.value.__cause__)


def test_the_manager_sorts_them(graph: fx.GraphModule) -> None:
    capture, prune = Capture(images(2)), Prune(sparsity=0.5)
    order = this_before_that_pass_constraint(capture, prune)
    manager = PassManager([prune, capture], constraints=[order])
    assert manager(graph).modified
    assert manager.passes == [capture, prune]


def test_what_is_required_is_checked(graph: fx.GraphModule) -> None:
    prune = Prune(sparsity=0.5)
    with pytest.raises(fxprune.AnalysisError, match=r"put fxprune\.passes\.Capture"):
        prune(graph)
    with pytest.raises(fxprune.PlanError, match="Verify comes after Prune, which has not run"):
        Verify(prune, images(2))(graph)
    with pytest.raises(fxprune.PlanError, match="Compensate comes after Prune"):
        Compensate(prune, [images(2)])(fxprune.trace(graph, images(2)))


def test_what_is_ensured_is_checked(graph: fx.GraphModule) -> None:
    prune = Prune(sparsity=0.5)
    captured = fxprune.trace(graph, images(2))
    result = prune(captured)
    prune.ensures(result.graph_module)
    with pytest.raises(fxprune.RewriteError, match=r"stem\.weight has 432 entries, and the plan"):
        prune.ensures(captured)


def test_a_plan_is_applied(graph: fx.GraphModule) -> None:
    captured = fxprune.trace(graph, images(2))
    plan = fxprune.plan(fxprune.analyze(captured), sparsity=0.25)
    x = images(3)
    expected = fxprune.rewrite(captured, plan)(x)
    for given in (plan, plan.to_json()):
        apply = Apply(given)
        result = PassManager([apply, Verify(apply, x)])(captured)
        assert torch.equal(result.graph_module(x), expected)


def test_nothing_pruned_is_not_modified(graph: fx.GraphModule) -> None:
    with pytest.warns(fxprune.NothingPrunedWarning):
        result = Prune(sparsity=0.01)(fxprune.trace(graph, images(2)))
    assert not result.modified


@torch.no_grad()
def test_repairs_and_factors_are_passes_too(graph: fx.GraphModule) -> None:
    data = [images(16) for _ in range(2)]
    prune = Prune(sparsity=0.5)
    captured = fxprune.trace(graph, images(2))
    pruned = prune(captured).graph_module
    before = copy.deepcopy(pruned.state_dict())
    x = images(4)
    compensate = Compensate(prune, data)
    for repair in (compensate, Recalibrate(data)):
        repaired = repair(pruned)
        assert repaired.modified
        assert max_error(repaired.graph_module(x), pruned(x)) > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in pruned.state_dict().items())
    Verify(compensate, x)(compensate(pruned).graph_module)
    with pytest.raises(fxprune.VerifyError):
        Verify(compensate, x)(pruned)
    factorize = Factorize("svd", energy=0.7)
    small = factorize(pruned)
    assert isinstance(small.graph_module, nn.Module)
    count = sum(p.numel() for p in small.graph_module.parameters())
    assert count < sum(p.numel() for p in pruned.parameters())
