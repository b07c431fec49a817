"""Small random networks: chains, residual streams, concatenations, gates, attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune import Analysis

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.ReLU6,
    lambda: nn.LeakyReLU(0.1),
)


def randomized(model: nn.Module, seed: int) -> nn.Module:
    """Weights, statistics and scales that no initialisation makes: signed, and of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(noise.abs() + 0.3 if "var" in name else noise)
    return model.eval()


def analyzed(model: nn.Module, inputs: Tensor) -> Analysis:
    return fxprune.analyze(fxprune.trace(model, inputs))


class Residual(nn.Module):
    """A stream that two blocks read and add to, of convolutions with normalisation."""

    def __init__(self, width: int, hidden: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, hidden, 3, padding=1, bias=False),
                nn.BatchNorm2d(hidden),
                activation(),
                nn.Conv2d(hidden, width, 1),
                nn.BatchNorm2d(width),
            )
            for _ in range(2)
        )
        self.same = nn.Conv2d(width, width, 1)  # reads and makes the stream
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        x = x + self.same(x)
        return self.head(x.mean((2, 3)))


class Concatenated(nn.Module):
    """Two branches side by side, flattened into a linear layer."""

    def __init__(self, width: int, hidden: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, width, 1), nn.Conv2d(2, hidden, 3, padding=1)
        self.norm, self.activation = nn.BatchNorm2d(width + hidden), activation()
        self.mix = nn.Conv2d(width + hidden, hidden, 3)
        self.head = nn.Linear(hidden * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.left(x), self.right(x)], 1)
        return self.head(self.mix(self.activation(self.norm(both))).flatten(1))


def chain(widths: list[int], activation: Callable[[], nn.Module]) -> nn.Module:
    """Two convolutions, the second flattened, then linear layers."""
    first, second, *rest = widths
    layers: list[nn.Module] = [
        nn.Conv2d(2, first, 3, padding=1),
        nn.BatchNorm2d(first),
        activation(),
        nn.Conv2d(first, second, 3, padding=1),
        activation(),
        nn.AvgPool2d(2),
        nn.Flatten(),
    ]
    inputs = second * 4
    for width in rest:
        layers += [nn.Linear(inputs, width), nn.LayerNorm(width), activation()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 3))


IMAGES = torch.randn(1, 2, 4, 4)
WIDTHS = st.integers(2, 5)
SEEDS = st.integers(0, 2**20)


@st.composite
def chains(draw: st.DrawFn) -> nn.Module:
    widths = draw(st.lists(WIDTHS, min_size=2, max_size=4))
    return randomized(chain(widths, draw(st.sampled_from(ACTIVATIONS))), draw(SEEDS))


@st.composite
def coupled(draw: st.DrawFn) -> nn.Module:
    network = draw(st.sampled_from((Residual, Concatenated)))
    arguments = draw(WIDTHS), draw(WIDTHS), draw(st.sampled_from(ACTIVATIONS))
    return randomized(network(*arguments), draw(SEEDS))


class Gated(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 6, 3), nn.Linear(6, 3)
        self.squeeze, self.excite = nn.Linear(6, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        gate = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return self.head((x * gate[:, :, None, None]).mean((2, 3)))


class Attentive(nn.Module):
    """Tokens of a vocabulary through a transformer's encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


class Recurrent(nn.Module):
    """Tokens of a vocabulary through two recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 5), nn.Linear(6, 3)
        self.layers = nn.LSTM(5, 6, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(tokens))[0][:, -1])
