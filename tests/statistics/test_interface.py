"""Every criterion by name, as an object and as a user's own; losses, labels, batches, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import AnalysisError, Group, LeftWholeWarning, PlanError, Statistics
from fxprune.criteria import CRITERIA
from tests.criteria.networks import Residual, randomized

NAMES = """random l1 l2 linf magnitude lamp bn_scale fpgm synflow skeletonization taylor snip
snip_weight molchanov2017 molchanov2019 mutual_information fisher mask_fisher grasp apoz
mean_activation hrank wanda_sp flap thinet""".split()

IMAGES, CLASSES = torch.randn(9, 2, 4, 4), torch.randint(3, (9,))
BATCHES = [(IMAGES[:5], CLASSES[:5]), (IMAGES[5:], CLASSES[5:])]


def model() -> nn.Module:
    network = randomized(Residual(6, 5, nn.ReLU), 0)
    with torch.no_grad():
        network.get_parameter("head.weight").div_(network(IMAGES).std())  # no class is certain
    return network


def analysis_of(network: nn.Module) -> fxprune.Analysis:
    return fxprune.analyze(fxprune.trace(network, IMAGES[:2]))


@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_prunes_by_name(name: str) -> None:
    network = model().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    loss = nn.functional.cross_entropy
    result = fxprune.prune(network, IMAGES[:2], 0.5, name, data=BATCHES, loss=loss)
    assert len(result.plan.kept_units) == 3
    assert result.plan.criterion == name
    assert fxprune.verify(result.analysis.traced, result.plan, result.module, IMAGES).ok
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())


def test_these_are_all_names() -> None:
    assert set(NAMES) <= set(CRITERIA)


class Share:
    """A user's own: how much of its group's mean activation a unit has."""

    requires = frozenset({"activations"})

    def score(self, group: Group, statistics: Statistics) -> Tensor:
        reads = statistics.activations(group)
        total = torch.stack([read.per_unit(read.absolute) for read in reads]).mean(0)
        return total / total.sum()


def test_a_users_own_class_is_a_criterion() -> None:
    analysis = analysis_of(model())
    own = fxprune.score(analysis, Share(), BATCHES)
    named = fxprune.score(analysis, "mean_activation", BATCHES)
    for name, scores in own.items():
        torch.testing.assert_close(scores, named[name] / named[name].sum())
    plan = fxprune.plan(analysis, Share(), 0.5, data=BATCHES)
    assert plan.criterion == "Share"


def by_batch(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(output, batch["labels"])


def by_target(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


@pytest.mark.parametrize("name", ["fisher", "snip_weight", "grasp"])
def test_losses_take_a_target_or_a_batch(name: str) -> None:
    analysis = analysis_of(model())
    expected = fxprune.score(analysis, name, BATCHES)
    mappings = [{"x": images, "labels": classes} for images, classes in BATCHES]
    for data, loss in ((BATCHES, by_target), (mappings, by_batch), (iter(BATCHES), None)):
        found = fxprune.score(analysis, name, data, loss)
        for group, scores in expected.items():
            torch.testing.assert_close(found[group], scores, rtol=1e-5, atol=1e-7)


class WithFixedBranch(nn.Module):
    """Hidden units that a layer reads, and a fixed table, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("table", torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.last(hidden) + nn.functional.linear(hidden, self.get_buffer("table"))


@pytest.mark.parametrize("name", ["snip_weight", "grasp"])
def test_buffers_that_read_a_unit_have_no_gradient_to_count(name: str) -> None:
    batches = [(torch.randn(9, 4), torch.randint(3, (9,)))]
    analysis = fxprune.analyze(fxprune.trace(WithFixedBranch(), batches[0][0]))
    (group,) = analysis.groups
    assert "table" in {member.parameter for member in group.members}
    assert fxprune.score(analysis, name, batches)[group.name].isfinite().all()


def test_a_loss_of_tensors_alone_sees_the_batch() -> None:
    seen: list[tuple[int, ...]] = []

    def loss(output: Tensor, batch: Tensor) -> Tensor:
        seen.append(tuple(batch.shape))
        return output.square().mean()

    fxprune.score(analysis_of(model()), "taylor", [IMAGES], loss)
    assert seen == [tuple(IMAGES.shape)]


def test_labels_can_be_drawn_from_the_model() -> None:
    analysis = analysis_of(model())
    drawn = fxprune.score(analysis, "fisher", BATCHES, labels="model")
    again = fxprune.score(analysis, "fisher", [(IMAGES, CLASSES)], labels="model")
    own = fxprune.score(analysis, "fisher", BATCHES, by_target, labels="model")
    given = fxprune.score(analysis, "fisher", BATCHES, labels="empirical")
    unset = fxprune.score(analysis, "fisher", BATCHES)
    other = fxprune.score(analysis, "fisher", Statistics(analysis, BATCHES, labels="model", seed=1))
    for name, scores in drawn.items():
        torch.testing.assert_close(again[name], scores, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(own[name], scores, rtol=1e-5, atol=1e-8)
        assert given[name].equal(unset[name])
    for different in (given, other):
        assert any(not different[name].allclose(scores) for name, scores in drawn.items())
    with pytest.raises(AnalysisError, match="'empirical' or 'model'"):
        fxprune.score(analysis, "fisher", BATCHES, labels="true")


def test_drawn_labels_follow_the_models_output() -> None:
    """The mean gradient of the loss by the logits vanishes, and its square is the variance."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 3)).double()
    analysis = fxprune.analyze(fxprune.trace(model, torch.ones(2, 1, dtype=torch.float64)))
    x, probability = torch.ones(4000, 1, dtype=torch.float64), model(torch.ones(1).double())
    p = probability.softmax(-1)
    bias = Statistics(analysis, [x], labels="model").param_grads()["2.bias"]
    assert float(bias.abs().max()) < 0.03
    normal = Statistics(analysis, [(x, torch.zeros(4000, 3))], labels="model")
    assert float(normal.param_grads()["2.bias"].abs().max()) < 0.06
    few = Statistics(analysis, [x[:400]], labels="model").fisher_diag()["2.bias"]
    torch.testing.assert_close(few, (p * (1 - p)).detach(), rtol=0.2, atol=0.02)


def saved_bytes(run: Callable[[], object]) -> int:
    """The most bytes that autograd keeps for a backward pass at one time."""
    kept: dict[int, int] = {}
    most = [0]

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            kept[id(self)] = tensor.untyped_storage().nbytes()
            most[0] = max(most[0], sum(kept.values()))

        def __del__(self) -> None:
            kept.pop(id(self), None)

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        run()
    return most[0]


@pytest.mark.parametrize("what", ["mask_grads", "magnitudes"])
def test_micro_batches_bound_the_memory(what: str) -> None:
    images, classes = torch.randn(32, 2, 4, 4), torch.randint(3, (32,))
    analysis = analysis_of(model())
    seen: list[int] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen.append(len(output))
        return nn.functional.cross_entropy(output, target)

    def run(limit: int | None) -> int:
        statistics = Statistics(analysis, [(images, classes)], loss, micro_batch=limit)
        return saved_bytes(lambda: getattr(statistics, what)(analysis.groups[0]))

    whole, parts = run(None), run(4)
    assert seen == [32] + [4] * 8
    parameters = sum(4 * p.numel() for p in analysis.parameters.values())
    assert parts - parameters <= (whole - parameters) / 8 * 1.1


def test_a_progress_bar_is_shown_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    analysis = analysis_of(model())
    Statistics(analysis, BATCHES).mask_grads(analysis.groups[0])
    assert capsys.readouterr().err == ""
    Statistics(analysis, BATCHES, progress=True).mask_grads(analysis.groups[0])
    assert "mask gradients: 100%" in capsys.readouterr().err


def test_statistics_are_computed_once() -> None:
    reads: list[int] = []

    def batches() -> Iterator[Any]:
        reads.append(1)
        yield from BATCHES

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            return batches()

    analysis = analysis_of(model())
    statistics = Statistics(analysis, Loader())
    assert not reads
    for name in ("taylor", "fisher", "molchanov2017", "skeletonization", "molchanov2019"):
        fxprune.score(analysis, name, statistics)
    assert len(reads) == 1
    with torch.no_grad():
        analysis.parameters["head.weight"].mul_(2)
    fxprune.score(analysis, "fisher", statistics)
    with pytest.raises(AnalysisError, match="parameters changed since"):
        fxprune.score(analysis, "apoz", statistics)


def test_what_applies_nowhere_is_an_error_and_what_does_not_apply_is_named() -> None:
    plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    data = [(torch.randn(5, 4), torch.randint(3, (5,)))]
    for name in ("bn_scale", "hrank"):
        with pytest.raises(PlanError, match=f"{name!r} applies to none of the 1 groups"):
            fxprune.prune(plain, torch.randn(2, 4), 0.5, name, data=data)
    mixed = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 3)
    )
    with pytest.warns(LeftWholeWarning, match=r"1 of 2 groups are left whole.*'hrank'"):
        result = fxprune.prune(mixed, IMAGES[:2], 0.5, "hrank", data=BATCHES)
    assert [row.units_after for row in result.report.groups] == [2, 6]


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        ([], None, "the data hold no batch"),
        ([(IMAGES, CLASSES)], lambda o, t: o, "must be a tensor with one element"),
        ([IMAGES], None, "without loss=, batches are"),
        ([(IMAGES, CLASSES.float())], None, "without loss=, batches are"),
        ([(IMAGES, CLASSES)], lambda o, t: torch.tensor(1.0), "does not depend on the model"),
    ],
    ids=["no batch", "no mean", "no target", "no classes", "no gradient"],
)
def test_data_that_make_no_sense_are_refused(data: Any, loss: Any, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        fxprune.score(analysis_of(model()), "fisher", data, loss)
