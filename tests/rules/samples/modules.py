"""Samples of modules: with a rule of their own, or whose attributes the rewriter fixes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tests.rules.harness import Sample
from tests.rules.samples.inputs import data, real, sample


class Apply(nn.Module):
    """Calls one module and returns its tensors."""

    def __init__(self, make: Callable[[], nn.Module], pick: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner, self.pick = make(), pick

    def forward(self, x: Tensor) -> Any:
        return self.pick(self.inner(x))


class ApplyTwo(Apply):
    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.pick(self.inner(x, y))


class Scaled(Apply):
    """Keeps the positions fixed by scaling them with data."""

    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.pick(self.inner(x * y))


class ApplyState(Apply):
    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:  # type: ignore[override]
        return self.pick(self.inner(x, (h, c)))


def _rnn(result: Any) -> Any:
    return result[0], result[1]


def _lstm(result: Any) -> Any:
    return result[0], result[1][0], result[1][1]


def _one(result: Any) -> Any:
    return result


def applied(
    make: Callable[[], nn.Module], pick: Callable[[Any], Any] = _one
) -> Callable[[], nn.Module]:
    return lambda: Apply(make, pick)


RECURRENT: tuple[Sample, ...] = (
    sample("LSTM", applied(lambda: nn.LSTM(3, 5), _lstm), real(4, 2, 3), module=True),
    sample(
        "LSTM",
        applied(lambda: nn.LSTM(3, 5, 2, batch_first=True, bidirectional=True), _lstm),
        real(4, 2, 3),
        module=True,
    ),
    sample("LSTM", applied(lambda: nn.LSTM(3, 5, proj_size=4), _lstm), real(4, 2, 3), module=True),
    sample(
        "LSTM",
        lambda: ApplyState(lambda: nn.LSTM(3, 5), _lstm),
        data(4, 2, 3),
        real(1, 2, 5),
        real(1, 2, 5),
        module=True,
    ),
    sample("GRU", applied(lambda: nn.GRU(3, 5, bias=False), _rnn), real(4, 3), module=True),
    sample("GRU", applied(lambda: nn.GRU(3, 5, 2), _rnn), real(4, 2, 3), module=True),
    sample(
        "RNN", applied(lambda: nn.RNN(3, 5, nonlinearity="relu"), _rnn), real(4, 2, 3), module=True
    ),
)

MODULES: tuple[Sample, ...] = (
    sample("linear", applied(lambda: nn.Linear(3, 5)), real(4, 3), module=True),
    sample(
        "_trilinear",
        lambda: ApplyTwo(lambda: nn.Bilinear(3, 5, 4), _one),
        real(6, 3),
        real(6, 5),
        module=True,
    ),
    sample(
        "convolution", applied(lambda: nn.Conv2d(6, 8, 3, groups=2)), real(2, 6, 5, 4), module=True
    ),
    sample(
        "convolution",
        applied(lambda: nn.ConvTranspose1d(6, 8, 3, groups=2)),
        real(2, 6, 5),
        module=True,
    ),
    sample("native_batch_norm", applied(lambda: nn.BatchNorm2d(6)), real(2, 6, 5, 4), module=True),
    sample("native_layer_norm", applied(lambda: nn.LayerNorm((6, 5))), real(2, 6, 5), module=True),
    sample("mean", applied(lambda: nn.RMSNorm(5)), real(2, 6, 5), module=True),
    sample("native_group_norm", applied(lambda: nn.GroupNorm(3, 6)), real(2, 6, 5), module=True),
    sample(
        "view",
        lambda: Scaled(lambda: nn.InstanceNorm1d(6, affine=True), _one),
        real(2, 6, 5),
        data(5),
        module=True,
    ),
    sample("_prelu_kernel", applied(lambda: nn.PReLU(6)), real(2, 6, 5), module=True),
    sample("glu", applied(lambda: nn.GLU(1)), real(2, 6, 5), module=True),
    sample("view", applied(lambda: nn.Unflatten(1, (2, 3))), real(2, 6), module=True),
    sample("pixel_shuffle", applied(lambda: nn.PixelShuffle(2)), real(2, 12, 3, 4), module=True),
    sample("channel_shuffle", applied(lambda: nn.ChannelShuffle(2)), real(2, 6, 3, 4), module=True),
    sample("avg_pool3d", applied(lambda: nn.LocalResponseNorm(3)), real(2, 6, 3, 4), module=True),
)
