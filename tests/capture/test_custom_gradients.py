"""`torch.autograd.Function`: its own gradient survives, and what computes with sizes freezes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune


class Round(torch.autograd.Function):
    """Rounding with a straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float) -> Tensor:
        return torch.round(x / step) * step

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class MeanShift(torch.autograd.Function):
    """Divides by the number of channels, which only its Python knows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / x.shape[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Halve(torch.autograd.Function):
    """Holds a size as a number; with a context of its own, as newer code has it."""

    @staticmethod
    def forward(x: Tensor, width: int) -> Tensor:
        return x.reshape(-1, 2, width // 2).sum(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.width = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.cat([gradient, gradient], 1), None


bound_early = Round.apply


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(4 if kind == "halve" else 8, 3)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if self.kind == "round":
            hidden = Round.apply(hidden, 0.25)
        elif self.kind == "early":
            hidden = bound_early(hidden, 0.25)
        elif self.kind == "mean":
            hidden = MeanShift.apply(hidden)
        else:
            hidden = Halve.apply(hidden, 8)
        result: Tensor = self.last(hidden)
        return result


def gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    module(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["round", "early", "mean", "halve"])
def test_values_and_gradients_are_the_models(kind: str) -> None:
    model, x = Net(kind).double(), torch.randn(5, 6, dtype=torch.float64)
    traced = fxprune.trace(model, torch.randn(2, 6, dtype=torch.float64))
    assert torch.equal(traced(x), model(x))
    expected = gradients(model, x)
    assert len(expected) == 4
    found = gradients(traced, x)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_computes_element_by_element_is_pruned() -> None:
    model, x = Net("round").double(), torch.randn(5, 6, dtype=torch.float64)
    result = fxprune.prune(model, torch.randn(2, 6, dtype=torch.float64), sparsity=0.5)
    assert result.module.first.weight.shape == (4, 6)
    assert fxprune.verify(result.analysis.traced, result.plan, result.module, x).ok
    kept = result.plan.kept("first.weight:0")
    found = gradients(result.module, x)
    with torch.no_grad():
        model.first.weight.mul_(result.plan.masks()["first.weight"])
        model.first.bias.mul_(result.plan.masks()["first.bias"])
    assert torch.allclose(found["first.weight"], gradients(model, x)["first.weight"][kept])
    again = fxprune.prune(result.module, x, sparsity=0.5)
    assert again.module.first.weight.shape == (2, 6)
    assert fxprune.verify(again.analysis.traced, again.plan, again.module, x).ok


@pytest.mark.parametrize(("kind", "name"), [("mean", "MeanShift"), ("halve", "Halve")])
def test_what_computes_with_sizes_is_frozen(kind: str, name: str) -> None:
    analysis = fxprune.analyze(fxprune.trace(Net(kind), torch.randn(2, 6)))
    assert analysis.groups == ()
    reasons = {group.reason for group in analysis.frozen}
    assert f"SizedCustomGradient({name}) computes with sizes" in reasons


class Checkpointed(nn.Module):
    """Activations of the hidden layer are made again for the gradients."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.reentrant = reentrant

    def inner(self, x: Tensor) -> Tensor:
        return self.first(x).relu() * 2

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.inner, x, use_reentrant=self.reentrant)
        result: Tensor = self.last(hidden)
        return result


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_is_checkpointed_is_captured_and_has_its_gradients(reentrant: bool) -> None:
    model = Checkpointed(reentrant).double()
    traced = fxprune.trace(model, torch.randn(2, 6, dtype=torch.float64))
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.equal(traced(x), model(x))
    expected = {name: gradient.clone() for name, gradient in gradients(model, x).items()}
    for name, gradient in gradients(traced, x).items():
        assert torch.equal(gradient, expected[name]), name
    assert [group.name for group in fxprune.analyze(traced).groups] == ["first.weight:0"]


class Reversible(torch.autograd.Function):
    """Calls a module, and calls it again for the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        ctx.module, ctx.x = module, x
        return x + module(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class CallsReversible(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return Reversible.apply(x, self.inner)


def test_custom_gradients_of_modules_are_refused() -> None:
    message = (
        r"test_custom_gradients\.py:\d+: Reversible, a torch\.autograd\.Function, is called with"
    )
    with pytest.raises(fxprune.TraceError, match=message + " an argument of type Linear"):
        fxprune.trace(CallsReversible(), torch.randn(2, 4))


class Ignores(torch.autograd.Function):
    """Takes anything beside a tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anything: Any) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * 2, None


class Passes(nn.Module):
    def __init__(self, anything: Any) -> None:
        super().__init__()
        self.anything = anything

    def forward(self, x: Tensor) -> Any:
        return Ignores.apply(x, self.anything)


@pytest.mark.parametrize(
    "anything",
    [..., {1, 2}, range(3), b"a", int, slice(1, None), None, "s", torch.float32, [1, None, (2.0,)]],
)
def test_plain_arguments_are_held(anything: object) -> None:
    x = torch.randn(2, 4)
    assert torch.equal(fxprune.trace(Passes(anything), x)(x), 2 * x)


@pytest.mark.parametrize("anything", [Passes, slice(None, Passes), len])
def test_other_arguments_are_refused(anything: object) -> None:
    with pytest.raises(
        fxprune.TraceError, match=r"Ignores, a .* is called with an argument of type"
    ):
        fxprune.trace(Passes(anything), torch.randn(2, 4))
