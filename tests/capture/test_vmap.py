"""Functions under torch.vmap are captured as the ops on whole batches that they become."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, fx, nn

import fxprune

Body = Callable[["Members", Tensor], Tensor]


class Members(nn.Module):
    """Three members of an ensemble read the features of one layer: (batch, 7) -> by `body`."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.features = nn.Linear(7, 6)
        self.weights = nn.Parameter(torch.randn(3, 4, 6))
        self.biases = nn.Parameter(torch.randn(3, 4))
        self.head = nn.Linear(4, 2)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, torch.relu(self.features(x)))


def over_members(model: Members, x: Tensor) -> Tensor:
    layers = torch.vmap(lambda w, b: torch.tanh(F.linear(x, w, b)))
    return model.head(layers(model.weights, model.biases)).mean(0)


def over_both(model: Members, x: Tensor) -> Tensor:
    each = torch.vmap(lambda w, b, row: torch.relu(w @ row) + b, in_dims=(0, 0, None), out_dims=-1)
    rows = torch.vmap(each, in_dims=(None, None, 0))(model.weights, model.biases, x)
    return model.head(rows.transpose(1, 2)).mean(1)


def over_rows_in_chunks(model: Members, x: Tensor) -> Tensor:
    def row(features: Tensor) -> Tensor:
        scale = torch.arange(1, 7, dtype=features.dtype) / features.shape[0]
        return F.linear(features * scale, model.weights[0], model.biases[0])

    return model.head(torch.vmap(row)(x))


def of_its_head(model: Members, x: Tensor) -> Tensor:
    hidden = torch.vmap(lambda row: model.weights.sum(0) @ row)(x)
    return torch.vmap(model.head)(hidden)


def into_a_copy(model: Members, x: Tensor) -> Tensor:
    def row(features: Tensor) -> Tensor:
        hidden = model.weights[1] @ features
        hidden.mul_(2).unsqueeze_(0)
        return (hidden + model.weights.sum((0, 2)))[0]

    return model.head(torch.vmap(row)(x))


def assert_followed(body: Body, **tolerance: float) -> tuple[fx.GraphModule, Tensor]:
    """The captured graph, which computes the same for any batch, and inputs of another batch."""
    torch.manual_seed(0)
    model = Members(body).double().eval()
    x, other = (torch.randn(n, 7, dtype=torch.float64) for n in (5, 8))
    traced = fxprune.trace(model, x)
    assert traced.meta["fxprune"].dynamic == {"x": (0,)}
    torch.testing.assert_close(traced(other), model(other), **tolerance)
    return traced, other


BODIES = (over_members, over_both, over_rows_in_chunks, of_its_head, into_a_copy)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_it_computes_the_same_and_is_pruned(body: Body) -> None:
    traced, other = assert_followed(body, rtol=1e-13, atol=1e-13)
    analysis = fxprune.analyze(traced)
    own = {group.name: group for group in analysis.groups if group.size in (4, 6)}
    assert sorted(group.size for group in own.values()) == [4, 6]
    plan = fxprune.PruningPlan.build(analysis, {name: [0, 2] for name in own})
    pruned = fxprune.rewrite(traced, plan)
    assert pruned.weights.shape == (3, 2, 2)
    assert fxprune.verify(traced, plan, pruned, other).ok


def test_sizes_within_follow_the_inputs() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            place = torch.arange(tokens.shape[1], device=tokens.device)
            near = torch.vmap(lambda q: (place - q).abs() < 3)(place)
            x = self.embedding(tokens)
            scores = (x @ x.mT).masked_fill(~near, -torch.inf)
            return scores.softmax(-1) @ x

    model = Positions().double().eval()
    traced = fxprune.trace(model, torch.randint(9, (2, 6)))
    assert traced.meta["fxprune"].dynamic == {"tokens": (0, 1)}
    tokens = torch.randint(9, (3, 11))
    torch.testing.assert_close(traced(tokens), model(tokens))


LARGER = torch.vmap(lambda row: row * 2)


def branches(model: Members, x: Tensor) -> Tensor:
    return torch.vmap(lambda c: c * 2 if c.shape[0] > 100 else c * 3, in_dims=1, out_dims=1)(x)


def rounds(model: Members, x: Tensor) -> Tensor:
    return torch.vmap(lambda c: c * (len(c) // 64 + 1), in_dims=1, out_dims=1)(x)


def branches_outside(model: Members, x: Tensor) -> Tensor:
    return torch.vmap(lambda row: row * 2 if x.size(0) > 100 else row * 3)(x)


def rounds_outside(model: Members, x: Tensor) -> Tensor:
    times = x.shape[0] // 64 + 1
    return torch.vmap(lambda row: row * times)(x)


@pytest.mark.parametrize("body", [branches, rounds, branches_outside, rounds_outside])
def test_sizes_that_functions_ask_for_are_fixed(body: Body) -> None:
    model = Members(body).double().eval()
    traced = fxprune.trace(model, torch.randn(5, 7, dtype=torch.float64))
    assert traced.meta["fxprune"].dynamic == {"x": ()}


def of_a_size_outside(model: Members, x: Tensor) -> Tensor:
    twice = 2 * x.shape[0] + 1
    return torch.vmap(lambda row: row * twice)(x)


def of_features(model: Members, x: Tensor) -> Tensor:
    return torch.vmap(lambda row: row / row.shape[0] * (2 if row.numel() == 6 else 3))(x)


def on_its_device(model: Members, x: Tensor) -> Tensor:
    def row(features: Tensor) -> Tensor:
        assert features.device.type == "cpu"
        assert not features.is_meta
        place = torch.arange(6, device=features.device).to(features.dtype)
        return features * place + torch.zeros(6, device=features.device, dtype=features.dtype)

    return torch.vmap(row)(x)


def of_what_learns(model: Members, x: Tensor) -> Tensor:
    def weight(w: Tensor) -> Tensor:
        return w.sum() * (2 if w.requires_grad else 3) * (5 if model.biases.requires_grad else 7)

    return x * torch.vmap(weight)(model.weights).sum()


def indexed(model: Members, x: Tensor) -> Tensor:
    order = torch.tensor([3, 1, 0, 2, 5, 4])
    x = torch.vmap(lambda row: row[order])(x)
    return torch.vmap(lambda row, place: row * row[place], in_dims=(0, None))(x, order)


def assigned(model: Members, x: Tensor) -> Tensor:
    def row(features: Tensor) -> Tensor:
        out = features.clone()
        out[1:] = features[:-1]
        return out.view(2, 3).t_().transpose_(0, 1).reshape(6)

    return torch.vmap(row)(x)


def normed(model: Members, x: Tensor) -> Tensor:
    x = torch.vmap(lambda row: F.layer_norm(row, (6,)))(x)
    return torch.vmap(nn.BatchNorm1d(6).double().eval())(x.unsqueeze(1))[:, 0]


@pytest.mark.parametrize(
    "body",
    [of_a_size_outside, of_features, on_its_device, of_what_learns, indexed, assigned, normed],
)
def test_what_functions_ask_and_do_is_followed(body: Body) -> None:
    assert_followed(body)


def test_layers_within_are_pruned() -> None:
    traced, other = assert_followed(lambda model, x: model.head(normed(model, x)[:, :4]))
    plan = fxprune.plan(fxprune.analyze(traced), sparsity=0.5)
    assert fxprune.verify(traced, plan, fxprune.rewrite(traced, plan), other).ok


class ByTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (2.0 if self.training else 3.0)


class Mapped(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(4, 6), layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(self.layer, randomness="different")(self.first(x))


def test_the_mode_of_layers_within_is_followed() -> None:
    model, x = Mapped(ByTraining()).double(), torch.randn(5, 4, dtype=torch.float64)
    traced = fxprune.trace(model, x)
    for training in (False, True):
        model.train(training)
        traced.train(training)
        torch.testing.assert_close(traced(x), model(x))


def test_dropout_within_is_noted() -> None:
    traced = fxprune.trace(Mapped(nn.Dropout(0.5)), torch.randn(5, 4))
    (note,) = traced.meta["fxprune"].mode_notes
    assert "draws random numbers" in note


def test_vmap_is_left_as_it_was() -> None:
    with pytest.raises(fxprune.TraceError):
        fxprune.trace(Members(draws).eval(), torch.randn(5, 7))
    assert torch._functorch.apis.vmap_impl is torch._functorch.vmap.vmap_impl
    assert torch.equal(LARGER(torch.ones(2, 3)), torch.full((2, 3), 2.0))


def draws(model: Members, x: Tensor) -> Tensor:
    return torch.vmap(lambda row: row + torch.rand(6), randomness="different")(x)


def test_random_numbers_are_refused() -> None:
    message = r"test_vmap.py:\d+: the model draws random numbers \(aten::rand\) in a function"
    with pytest.raises(fxprune.TraceError, match=message):
        fxprune.trace(Members(draws).eval(), torch.randn(5, 7))


def test_masks_of_transformers() -> None:
    """EmbeddingGemma's masks are functions of four indices under four vmaps."""
    config = transformers.Gemma3TextConfig(
        vocab_size=99, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=4, sliding_window=6,
        layer_types=["sliding_attention", "full_attention"], use_bidirectional_attention=True,
        use_cache=False,
    )  # fmt: skip
    model = transformers.Gemma3TextModel(config).double().eval()
    tokens, other = torch.randint(99, (2, 12)), torch.randint(99, (3, 17))
    traced = fxprune.trace(model, tokens)
    assert traced.meta["fxprune"].dynamic == {"input_ids": (0, 1)}
    plan = fxprune.plan(fxprune.analyze(traced), sparsity=0.5)
    assert fxprune.verify(traced, plan, fxprune.rewrite(traced, plan), other).ok
