"""Small random networks in float64: convolutions, norms, residual sums, concatenations."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}
CLASSES = 3


class Network(nn.Module):
    """Convolutions whose outputs are added to or put beside what came before."""

    def __init__(self, steps: tuple[tuple[str, str, bool], ...], flat: bool, width: int) -> None:
        super().__init__()
        self.steps, self.flat = steps, flat
        channels, layers = width, []
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        for join, activation, norm in steps:
            new = channels if join == "add" else width
            parts: list[nn.Module] = [nn.BatchNorm2d(channels)] if norm else []
            parts += [ACTIVATIONS[activation](), nn.Conv2d(channels, new, 3, padding=1)]
            layers.append(nn.Sequential(*parts))
            channels = channels + new if join == "cat" else new
        self.layers = nn.ModuleList(layers)
        self.hidden = nn.Linear(channels * 9 if flat else channels, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for (join, _, _), layer in zip(self.steps, self.layers, strict=True):
            y = layer(x)
            x = x + y if join == "add" else torch.cat([x, y], 1) if join == "cat" else y
        x = x.flatten(1) if self.flat else x.mean((2, 3))
        return self.head(torch.tanh(self.hidden(x)))


class Problem:
    """A network with its groups and data."""

    def __init__(
        self, model: nn.Module, analysis: fxprune.Analysis, inputs: Tensor, targets: Tensor
    ) -> None:
        self.model, self.analysis, self.inputs, self.targets = model, analysis, inputs, targets

    def __repr__(self) -> str:
        return f"Problem({self.model}, {len(self.inputs)} samples)"

    @property
    def data(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.inputs, self.targets)]

    def losses(self, parameters: dict[str, Tensor]) -> Tensor:
        """The loss of each sample with these parameters in place of the model's."""
        named = dict(self.analysis.traced.named_parameters())
        out = torch.func.functional_call(
            self.analysis.traced, {**named, **parameters}, (self.inputs,)
        )
        return nn.functional.cross_entropy(out, self.targets, reduction="none")


def randomized(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with running statistics and affine maps of no special values."""
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def problem(model: nn.Module, inputs: Tensor, targets: Tensor) -> Problem:
    traced = fxprune.trace(model, inputs)
    return Problem(model, fxprune.analyze(traced), inputs, targets)


@st.composite
def problems(draw: st.DrawFn, activations: tuple[str, ...] = tuple(ACTIVATIONS)) -> Problem:
    step = st.tuples(
        st.sampled_from(["add", "cat", "chain"]), st.sampled_from(activations), st.booleans()
    )
    steps = tuple(draw(st.lists(step, min_size=1, max_size=3)))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    model = randomized(Network(steps, draw(st.booleans()), draw(st.integers(2, 4))))
    samples = draw(st.integers(1, 4))
    inputs = torch.randn(samples, 2, 3, 3, dtype=torch.float64)
    return problem(model, inputs, torch.randint(CLASSES, (samples,)))
