"""Recurrent layers: what they read of their input, of one another and of themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import Statistics
from tests.criteria.networks import analyzed


class Recurrent(nn.Module):
    """Tokens through recurrent layers, read at the last step."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.layers = kind(5, 6, batch_first=True, **options)
        self.head = nn.Linear(12 if options.get("bidirectional") else 6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(tokens))[0][:, -1])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {"num_layers": 2}),
        (nn.GRU, {}),
        (nn.RNN, {"num_layers": 2, "bidirectional": True}),
        (nn.LSTM, {"bidirectional": True}),
    ],
    ids=["LSTM of two layers", "GRU", "bidirectional RNN of two layers", "bidirectional LSTM"],
)
def test_mask_gradients_are_the_products_of_all_consumers(
    kind: type[nn.RNNBase], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = Recurrent(kind, **options).double().eval()
    tokens, targets = torch.randint(11, (5, 4)), torch.randint(3, (5,))
    analysis = analyzed(model, tokens[:2])
    statistics = Statistics(analysis, [(tokens, targets)])
    assert sorted(group.size for group in analysis.groups) == [5, 6]
    for group in analysis.groups:
        found = statistics.mask_grads(group)
        for n in range(len(tokens)):
            loss = nn.functional.cross_entropy(model(tokens[n : n + 1]), targets[n : n + 1])
            named = dict(model.named_parameters())
            slopes = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            slope_of = dict(zip(named, slopes, strict=True))
            expected = torch.zeros(group.size, dtype=torch.float64)
            for member in group.members:
                slope = slope_of[member.parameter]
                if member.role == "consumer" and slope is not None:
                    weight = named[member.parameter].detach()
                    expected += member.reduce(weight * slope, group)
            torch.testing.assert_close(found[n], expected, rtol=1e-10, atol=1e-12)


def test_all_units_can_be_pruned_by_fisher() -> None:
    torch.manual_seed(0)
    model, tokens = Recurrent(nn.LSTM).eval(), torch.randint(11, (8, 4))
    data = [(tokens, torch.randint(3, (8,)))]
    result = fxprune.prune(model, tokens[:2], 0.5, "fisher", data=data)
    assert result.module.layers.hidden_size == 3
    assert result.module.embedding.embedding_dim == 3
    assert fxprune.verify(result.analysis.traced, result.plan, result.module, tokens).ok
