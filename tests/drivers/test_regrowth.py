"""Dynamic pruning: what drops, what comes back and with which weights, and what finalising does."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune import PlanError
from fxprune.regrowth import DynamicPruning
from tests.criteria.networks import IMAGES, Attentive, Residual, chain, randomized

LABELLED = [(torch.randn(n, 2, 4, 4, dtype=torch.float64), torch.randint(3, (n,))) for n in (4, 3)]


def residual() -> torch.fx.GraphModule:
    return fxprune.trace(randomized(Residual(6, 5, nn.Tanh), 0).double(), IMAGES.double())


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


@torch.no_grad()
def noise(module: nn.Module) -> None:
    """An optimizer's step that moves everything."""
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))


def masked(pruning: DynamicPruning) -> dict[str, set[int]]:
    return {
        group.name: set(range(group.size)) - set(pruning.plan.kept(group).tolist())
        for group in pruning.analysis.groups
    }


@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_first_update_masks_what_a_plan_removes(scope: str) -> None:
    traced = residual()
    before = state(traced)
    expected = fxprune.plan(fxprune.analyze(copy.deepcopy(traced)), sparsity=0.5, scope=scope)
    pruning = DynamicPruning(traced, scope=scope)
    pruning.update(0.5)
    assert pruning.plan.kept_units == expected.kept_units
    masks = expected.masks()
    for name, value in traced.state_dict().items():
        assert value.equal(before[name] * masks[name] if name in masks else before[name])


def test_masks_hold_until_the_end() -> None:
    traced = residual()
    pruning = DynamicPruning(traced)
    pruning.update(0.5)
    noise(traced)
    assert any(float((v * ~m).abs().max()) > 0 for v, m in entries(pruning))
    pruning.hold()
    assert all(float((v * ~m).abs().max()) == 0 for v, m in entries(pruning))
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    expected = traced(x)
    noise(traced)
    pruning.hold()
    module = pruning.finalise()
    assert not torch.allclose(traced(x), expected)
    torch.testing.assert_close(module(x), traced(x), rtol=1e-10, atol=1e-10)
    assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in traced.parameters())


def entries(pruning: DynamicPruning) -> list[tuple[Tensor, Tensor]]:
    tensors = pruning.traced.state_dict()
    return [(tensors[name], mask) for name, mask in pruning.plan.masks().items()]


def test_units_come_back_with_the_weights_that_they_had() -> None:
    traced = residual()
    pruning = DynamicPruning(traced, regrow=0.5)
    pruning.update(0.5)
    gone = masked(pruning)
    kept_then = pruning.plan.masks()
    original = state(traced)
    start = {n: t.clone() for n, t in pruning._dense.traced.state_dict().items()}
    noise(traced)
    pruning.hold()
    trained = state(traced)
    pruning.update(0.5, LABELLED)
    now = masked(pruning)
    returned = {name: gone[name] - now[name] for name in gone}
    assert sum(map(len, returned.values())) == round(0.5 * sum(map(len, gone.values())))
    assert sum(map(len, now.values())) == sum(map(len, gone.values()))
    kept_now = pruning.plan.masks()
    for name, value in traced.state_dict().items():
        if name in kept_now:
            was_kept = kept_then.get(name, torch.ones_like(value, dtype=torch.bool))
            expected = torch.where(was_kept, trained[name], start[name]) * kept_now[name]
            assert value.equal(expected)
    assert any(not original[name].equal(value) for name, value in traced.state_dict().items())


class Masked(nn.Module):
    """The residual network with a factor on every read, by hand."""

    def __init__(self, model: Residual) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
        model, stream = self.model, masks["stem.weight:0"][:, None, None]
        x = model.stem(x)
        for i, block in enumerate(model.blocks):
            hidden = block[2](block[1](block[0](x * stream)))
            hidden = hidden * masks[f"blocks.{i}.0.weight:0"][:, None, None]
            x = torch.relu(x + block[4](block[3](hidden)))
        x = x + model.same(x * stream)
        return model.head(x.mean((2, 3)) * masks["stem.weight:0"])


def test_derivatives_are_by_masks_of_masked_reads() -> None:
    model = randomized(Residual(6, 5, nn.Tanh), 0).double()
    traced = fxprune.trace(copy.deepcopy(model), IMAGES.double())
    pruning = DynamicPruning(traced)
    pruning.update(0.4)
    masks = {
        group.name: pruning.plan.kept_mask(group).double().requires_grad_()
        for group in pruning.analysis.groups
    }
    outputs = torch.cat([Masked(model)(x, masks) for x, _ in LABELLED])
    loss = F.cross_entropy(outputs, torch.cat([y for _, y in LABELLED]))
    expected = dict(zip(masks, torch.autograd.grad(loss, list(masks.values())), strict=True))
    found = pruning.mask_derivatives(LABELLED)
    assert any(bool((expected[name][mask == 0] != 0).any()) for name, mask in masks.items())
    for name, derivative in found.items():
        torch.testing.assert_close(derivative, expected[name], rtol=1e-10, atol=1e-10)


def test_the_largest_derivatives_come_back() -> None:
    traced = residual()
    pruning = DynamicPruning(traced, regrow=0.3)
    pruning.update(0.5)
    gone = masked(pruning)
    derivatives = pruning.mask_derivatives(LABELLED)
    ranked = sorted(
        (
            (float(derivatives[name][unit].abs()), name, unit)
            for name in gone
            for unit in gone[name]
        ),
        reverse=True,
    )
    count = round(0.3 * len(ranked))
    pruning.update(0.5, LABELLED)
    now = masked(pruning)
    returned = {(name, unit) for name in gone for unit in gone[name] - now[name]}
    assert returned == {(name, unit) for _, name, unit in ranked[:count]}


def test_without_regrowth_masks_only_grow() -> None:
    pruning = DynamicPruning(residual(), regrow=0)
    seen: list[dict[str, set[int]]] = []
    for sparsity in (0.2, 0.4, 0.6):
        noise(pruning.traced)
        pruning.update(sparsity)
        seen.append(masked(pruning))
    for earlier, later in pairwise(seen):
        assert all(earlier[name] <= later[name] for name in earlier)
    assert sum(map(len, seen[-1].values())) == int(0.6 * 16)


def test_it_trains_a_transformer() -> None:
    traced = fxprune.trace(Attentive().eval(), torch.randint(11, (2, 4)))
    batches = [(torch.randint(11, (4, 4)), torch.randint(3, (4,))) for _ in range(2)]
    pruning = DynamicPruning(traced, regrow=0.5, criterion="taylor")
    optimizer = torch.optim.Adam(traced.parameters())
    for _ in range(3):
        pruning.update(0.5, iter(batches))
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(traced(x), y).backward()
            optimizer.step()
            pruning.hold()
    module = pruning.finalise()
    maskable = all(pruning.plan.group(name).maskable for name in pruning.plan.kept_units)
    tokens = torch.randint(11, (3, 4))
    assert module(tokens).shape == (3, 3)
    assert not maskable or torch.allclose(module(tokens), traced(tokens), atol=1e-5)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(PlanError, match="regrow is a share"):
        DynamicPruning(residual(), regrow=1.5)
    pruning = DynamicPruning(residual(), regrow=0.5)
    pruning.update(0.5)
    with pytest.raises(PlanError, match="needs data= to say which"):
        pruning.update(0.5)


def test_a_chain_keeps_its_last_units() -> None:
    traced = fxprune.trace(randomized(chain([4, 3], nn.ReLU), 0).double(), IMAGES.double())
    pruning = DynamicPruning(traced, regrow=0)
    pruning.update(0.99)
    assert all(pruning.plan.kept(group).numel() >= 1 for group in pruning.analysis.groups)
