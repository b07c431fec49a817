"""Checkpoints and optimizers follow a plan: training goes on as that of the masked original."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.optim import SGD, Adafactor, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

import fxprune
from fxprune import PlanError, PruningPlan


class Convolutions(nn.Module):
    """Grouped convolutions, which choose channels per group, batch norms and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        # A bias before a norm has no gradient but rounding, which some optimizers normalise.
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.second = nn.Conv2d(12, 8, 1)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x + self.second(torch.tanh(self.grouped(x)))
        return self.classifier(x.mean((2, 3)))


class Tied(nn.Module):
    """An embedding that is also the output layer, and whose dimensions may go."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(11, 8), nn.Linear(8, 6)
        self.back, self.head = nn.Linear(6, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(x + self.back(torch.tanh(self.hidden(x)))).transpose(1, -1)


NETWORKS: dict[str, tuple[type[nn.Module], Callable[[], Tensor], tuple[int, ...]]] = {
    "convolutions": (
        Convolutions,
        lambda: torch.randn(5, 3, 6, 6, dtype=torch.float64),
        (5,),
    ),
    "tied": (Tied, lambda: torch.randint(11, (5, 7)), (5, 7)),
}
by_network = pytest.mark.parametrize("name", NETWORKS)


def graph(name: str) -> fx.GraphModule:
    kind, make, _ = NETWORKS[name]
    return fxprune.trace(kind().double().train(), make())


def random_plan(traced: fx.GraphModule) -> PruningPlan:
    plan = fxprune.plan(fxprune.analyze(traced), "random", sparsity=0.5)
    assert all(plan.group(group).maskable for group in plan.kept_units)
    return plan


def batches(name: str, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    _, make, shape = NETWORKS[name]
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield make(), torch.randint(3, shape, generator=generator)


def train(
    model: nn.Module, optimizer: Optimizer, data: list[tuple[Tensor, Tensor]], plan: Any = None
) -> None:
    """Some steps; with a plan, what it removes has no gradient."""
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        for name, mask in plan.masks().items() if plan else ():
            gradient = dict(model.named_parameters()).get(name)
            if gradient is not None and gradient.grad is not None:
                gradient.grad *= mask
        optimizer.step()


def mask(model: nn.Module, optimizer: Optimizer, plan: PruningPlan) -> None:
    """Set what a plan removes to zero, in the weights and in the optimizer's state."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, kept in plan.masks().items():
            if name in parameters:
                parameters[name] *= kept
                for value in optimizer.state[parameters[name]].values():
                    if isinstance(value, Tensor) and value.shape == kept.shape:
                        value *= kept


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda p: Adam(p, lr=0.01, amsgrad=True, foreach=True),
    "nadam": lambda p: NAdam(p, lr=0.01),
    "rmsprop": lambda p: RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: Adagrad(p, lr=0.05),
}


@by_network
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_as_that_of_the_masked_original(name: str, kind: str) -> None:
    traced = graph(name)
    optimizer = OPTIMIZERS[kind](traced.parameters())
    data = list(batches(name, 9))
    train(traced, optimizer, data[:4])
    plan = random_plan(traced)
    pruned = fxprune.rewrite(traced, plan)
    migrated = fxprune.migrate_optimizer(optimizer, traced, plan, pruned)
    assert type(migrated) is type(optimizer)
    fresh = copy.deepcopy(pruned)

    mask(traced, optimizer, plan)
    train(traced, optimizer, data[4:], plan)
    train(pruned, migrated, data[4:])
    expected = fxprune.apply(plan, traced.state_dict())
    actual = pruned.state_dict()
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-9, atol=1e-10)
    for key, parameter in traced.named_parameters():
        moved = migrated.state[pruned.get_parameter(key)]
        for entry, value in optimizer.state[parameter].items():
            kept = fxprune.apply(plan, {key: value})[key] if value.dim() else value
            torch.testing.assert_close(moved[entry], kept, rtol=1e-9, atol=1e-10)

    train(fresh, OPTIMIZERS[kind](fresh.parameters()), data[4:])  # the control: no state
    last = list(expected)[-1]
    assert not torch.allclose(fresh.state_dict()[last], expected[last], rtol=1e-4)


def test_groups_options_and_names_come_along() -> None:
    traced = graph("tied")
    hidden = [("hidden.weight", traced.get_parameter("hidden.weight"))]
    others = [(n, p) for n, p in traced.named_parameters() if n != "hidden.weight"]
    optimizer = SGD([{"params": hidden, "lr": 0.5}, {"params": others}], lr=0.1, momentum=0.9)
    stray = nn.Parameter(torch.zeros(3))  # as of a head that the graph does not reach
    optimizer.param_groups[1]["params"].append(stray)
    before = copy.deepcopy(optimizer.state_dict())
    plan = random_plan(traced)
    pruned = fxprune.rewrite(traced, plan)
    migrated = fxprune.migrate_optimizer(optimizer, traced, plan, pruned)
    first, second = migrated.param_groups
    assert (first["lr"], second["lr"], second["momentum"]) == (0.5, 0.1, 0.9)
    assert first["params"] == [pruned.get_parameter("hidden.weight")]
    assert {id(p) for p in second["params"]} | {id(first["params"][0])} == {
        id(p) for p in pruned.parameters()
    }
    assert (first["param_names"], second["param_names"]) == (
        ["hidden.weight"],
        [name for name, _ in others],
    )
    assert optimizer.state_dict() == before
    first["lr"] = 7.0
    assert optimizer.param_groups[0]["lr"] == 0.5


def stepped(kind: Callable[[Any], Optimizer]) -> tuple[fx.GraphModule, Optimizer]:
    traced = graph("tied")
    optimizer = kind(traced.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = traced(torch.arange(8).reshape(2, 4)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return traced, optimizer


@pytest.mark.parametrize(
    "kind", [Adafactor, lambda p: torch.optim.LBFGS(p, max_iter=3)], ids=["adafactor", "lbfgs"]
)
def test_state_that_is_not_of_single_entries_is_refused(kind: Any) -> None:
    traced, optimizer = stepped(kind)
    plan = random_plan(traced)
    with pytest.raises(PlanError, match="cannot be sliced: make a new optimizer"):
        fxprune.migrate_optimizer(optimizer, traced, plan, fxprune.rewrite(traced, plan))


def test_an_optimizer_of_another_model_is_refused() -> None:
    traced, optimizer = stepped(AdamW)
    plan = random_plan(traced)
    pruned = fxprune.rewrite(traced, plan)
    with pytest.raises(PlanError, match="no parameter of the original"):
        fxprune.migrate_optimizer(optimizer, copy.deepcopy(traced), plan, pruned)
    with pytest.raises(PlanError, match=r"exp_avg has shape .*, and `pruned` has"):
        fxprune.migrate_optimizer(optimizer, traced, plan, traced)


@by_network
def test_a_checkpoint_is_sliced_alone(name: str) -> None:
    """Without the network: whole, in shards, under the names of tied tensors."""
    traced = graph(name)
    plan = random_plan(traced)
    state = traced.state_dict()
    expected = fxprune.rewrite(traced, plan).state_dict()
    whole = fxprune.apply(plan, state)
    shards: dict[str, Tensor] = {}
    for key in reversed(state):
        shards |= fxprune.apply(plan, {key: state[key].clone()})
    assert whole.keys() == shards.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(whole[key], value), key
        assert torch.equal(shards[key], value), key
    assert any(expected[key].shape != state[key].shape for key in state)


@by_network
def test_what_is_kept_is_put_back_in_its_place(name: str) -> None:
    traced = graph(name)
    plan = random_plan(traced)
    state = {key: value.clone() for key, value in traced.state_dict().items()}
    pruned = {key: value + 1 for key, value in fxprune.apply(plan, state).items()}
    full = fxprune.restore(plan, pruned, state)
    masks = plan.masks()
    masks |= {alias: masks[own] for alias, own in plan.aliases.items() if own in masks}
    assert full.keys() == state.keys()
    for key, value in state.items():
        kept = masks.get(key, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(full[key], value + kept.to(value.dtype)), key
    again = fxprune.apply(plan, full)
    assert all(torch.equal(again[key], pruned[key]) for key in pruned)
    traced.load_state_dict(full)


def test_states_of_another_model_are_refused() -> None:
    traced = graph("tied")
    plan = random_plan(traced)
    with pytest.raises(PlanError, match=r"no tensor 'module\.head\.weight'.*embedding\.weight"):
        fxprune.apply(plan, {"module.head.weight": torch.zeros(11, 8)})
    with pytest.raises(PlanError, match=r"head\.weight has shape \(11, 7\).* has \(11, 8\)"):
        fxprune.apply(plan, {"head.weight": torch.zeros(11, 7)})
    state = traced.state_dict()
    with pytest.raises(PlanError, match=r"\(11, 8\), and the plan leaves \(11, 4\)"):
        fxprune.restore(plan, state, state)
