"""The plan of a factorisation is data: checked, stored, and applied to a fresh instance."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

import fxprune
from fxprune import checkpoint
from fxprune.discrepancy import max_error
from fxprune.factorization import factored
from fxprune.plans import Bases, FactorizationPlan
from fxprune.plans.factorization import digest_of


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    ).eval()


def example() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def result() -> fxprune.FactorizeResult:
    return fxprune.factorize(build(), example(), "tucker", budget=fxprune.Budget(macs=0.5))


def test_a_stored_plan_and_a_fresh_instance_give_the_same_network() -> None:
    made = result()
    text, data = made.plan.to_json(), save(made.plan.tensors())
    fresh = fxprune.trace(build(), example())
    plan = FactorizationPlan.from_json(text, load(data), fxprune.analyze(fresh))
    assert plan.to_json() == text
    module = factored(fresh, plan)
    state = made.module.state_dict()
    assert module.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_other_texts_and_tensors_are_refused() -> None:
    made = result()
    text, tensors = made.plan.to_json(), made.plan.tensors()
    other = fxprune.analyze(fxprune.trace(build()[:3], example()))
    changed = {name: -basis for name, basis in tensors.items()}
    content = json.loads(text)
    for analysis, broken, given, message in (
        (other, text, tensors, "made for another graph"),
        (made.analysis, text, changed, "not those of this plan"),
        (made.analysis, text, {}, "not those of this plan"),
        (made.analysis, text[:-1], tensors, "not valid JSON"),
        (made.analysis, json.dumps({**content, "version": 9}), tensors, "has version 9"),
        (made.analysis, json.dumps({**content, "format": "fxprune-plan"}), tensors, "is no plan"),
        (made.analysis, json.dumps({**content, "ranks": []}), tensors, "'ranks' may not be"),
        (made.analysis, json.dumps({**content, "ranks": {}}), tensors, "ranks are not those"),
        (made.analysis, json.dumps({**content, "more": 1}), tensors, "do not fit its version"),
    ):
        with pytest.raises(fxprune.PlanError, match=message):
            FactorizationPlan.from_json(broken, given, analysis)


def test_bases_that_are_none_are_refused() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    for inputs, outputs, message in (
        (None, None, "change nothing"),
        (2 * eye, None, "must be orthonormal"),
        (eye * float("nan"), None, "must be orthonormal"),
        (None, eye.float(), r"got torch.float32 \[4, 4\]"),
        (None, eye[:2], "rank from 1 to the size"),
        (eye[:, :0], None, "rank from 1 to the size"),
    ):
        with pytest.raises(fxprune.PlanError, match=message):
            Bases(inputs, outputs)
    analysis = fxprune.analyze(fxprune.trace(build(), example()))
    for name, message in (("3", "has 4 rows, and the layer has 12"), ("7", "no layer '7'")):
        with pytest.raises(fxprune.PlanError, match=message):
            FactorizationPlan.build(analysis, {name: Bases(eye, None)})


def test_long_notes_are_read_back() -> None:
    """A text may have a million characters, and 256 more for each of a parameter's name."""
    made = result()
    names = sum(len(name) for name in made.analysis.parameters)
    for length, fits in ((1_000_000, True), (1_000_000 + 256 * names, False)):
        plan = dataclasses.replace(made.plan, notes=("x" * length,))
        if fits:
            back = FactorizationPlan.from_json(plan.to_json(), plan.tensors(), made.analysis)
            assert back.notes == plan.notes
        else:
            with pytest.raises(fxprune.PlanError, match="a plan for this graph has at most"):
                FactorizationPlan.from_json(plan.to_json(), plan.tensors(), made.analysis)


@pytest.mark.parametrize("wrong", [None, 7, ""])
def test_a_plan_needs_a_fingerprint(wrong: object) -> None:
    plan = FactorizationPlan({}, {}, "fingerprint of this graph")
    with pytest.raises(fxprune.PlanError, match=f"fingerprint of its graph, a text; got {wrong!r}"):
        dataclasses.replace(plan, fingerprint=wrong)


def test_a_digest_tells_names_types_and_shapes_apart() -> None:
    value = torch.zeros(4, dtype=torch.float64)
    others = {"b": value}, {"a": value.view(2, 2)}, {"a": value.view(torch.int64)}
    assert len({digest_of(tensors) for tensors in ({"a": value}, *others)}) == 4


def test_bases_are_checked_where_they_are() -> None:
    """Whatever device torch makes new tensors on."""
    basis = torch.eye(4, dtype=torch.float64)[:, :3]
    with torch.device("meta"):
        assert Bases(basis, None).ranks == (3, None)
        with pytest.raises(fxprune.PlanError, match="must be orthonormal"):
            Bases(None, 2 * basis)


def test_the_plan_and_the_report_are_readable() -> None:
    made = result()
    assert "layers become factors" in str(made.plan)
    assert "budget macs=0.5" in str(made.plan)
    report = made.report
    assert f"MACs: {report.macs_before:,} -> {report.macs_after:,}" in str(report)
    with pytest.raises(TypeError):
        made.plan.layers["3"] = Bases(torch.eye(12).double(), None)


def test_the_plan_lists_what_is_kept_of_inputs_and_of_outputs() -> None:
    analysis = fxprune.analyze(fxprune.trace(build(), example()))
    bases = Bases(torch.eye(12, dtype=torch.float64)[:, :5], None)
    rows = str(FactorizationPlan.build(analysis, {"3": bases})).splitlines()
    columns = ["3", "16x12x3x3", "5 of 12", "16"]
    assert [word for word in rows[-1].split("  ") if word.strip()] == columns, rows


def test_the_plan_says_what_decided_it() -> None:
    plan = FactorizationPlan({}, {}, "fingerprint of this graph", "svd", energy=0.9)
    assert str(plan).splitlines()[0] == "Plan by svd, energy 0.9: 0 layers become factors."


def test_pruning_composes_before_and_after() -> None:
    x = example().double()
    half = fxprune.Budget(macs=0.5)
    pruned = fxprune.prune(build().double(), x, sparsity=0.25)
    made = fxprune.factorize(pruned.module, x, "svd", budget=half)
    assert fxprune.verify(made.analysis.traced, made.plan, made.module, x).ok
    after = fxprune.prune(made.module, x, sparsity=0.25)
    assert fxprune.verify(after.analysis.traced, after.plan, after.module, x).ok
    twice = fxprune.factorize(made.module, x, "svd", budget=half)
    assert fxprune.verify(twice.analysis.traced, twice.plan, twice.module, x).ok
    assert twice.report.macs_after <= 0.5 * twice.report.macs_before
    named = {m.parameter for group in after.analysis.groups for m in group.members}
    assert any(".reduce." in name or ".core." in name for name in named)  # ranks are units, too


def test_a_factorised_network_is_saved_and_loaded(tmp_path) -> None:
    made = result()
    x = example()
    checkpoint.save(made, tmp_path)
    for module in (checkpoint.load(tmp_path), checkpoint.load(tmp_path, build)):
        assert max_error(module(x).detach(), made.module(x).detach()) == 0
    plan = checkpoint.load_plan(tmp_path, made.analysis)
    assert isinstance(plan, FactorizationPlan)
    assert plan.to_json() == made.plan.to_json()
    assert plan.tensors().keys() == made.plan.tensors().keys()
    assert fxprune.verify(made.analysis.traced, plan, checkpoint.load(tmp_path), x).ok


def test_a_later_save_leaves_no_factors_of_an_earlier_one(tmp_path) -> None:
    checkpoint.save(result(), tmp_path)
    checkpoint.save(fxprune.prune(build(), example(), sparsity=0.25), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [checkpoint.TENSORS, checkpoint.PLAN, checkpoint.GRAPH]
    )
