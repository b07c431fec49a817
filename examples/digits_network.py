"""The network of the demo: small, and with every kind of coupling that pruning has to respect."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int, **options: int) -> nn.Sequential:
    """A convolution that keeps the image size at stride 1, and its normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options),
        nn.BatchNorm2d(outputs),
    )


class ResidualBlock(nn.Module):
    """Bottleneck with a grouped convolution; the sum couples what goes in with what comes out."""

    def __init__(self, width: int, groups: int = 4) -> None:
        super().__init__()
        self.reduce = conv_bn(width, width, 1)
        self.grouped = conv_bn(width, width, 3, groups=groups)
        self.expand = conv_bn(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.reduce(x))
        y = torch.relu(self.grouped(y))
        return torch.relu(x + self.expand(y))


class MultiScale(nn.Module):
    """Two kernel sizes side by side, concatenated: half the image size, twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fine = conv_bn(width, width, 3, stride=2)
        self.coarse = conv_bn(width, width, 5, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.cat([self.fine(x), self.coarse(x)], dim=1))


class DigitsNet(nn.Module):
    """Images [batch, 1, 8, 8] to logits [batch, 10]."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.stem = conv_bn(1, width, 3)
        self.block1 = ResidualBlock(width)
        self.scale1 = MultiScale(width)
        self.block2 = ResidualBlock(2 * width)
        self.scale2 = MultiScale(2 * width)
        self.block3 = ResidualBlock(4 * width)
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = self.scale1(self.block1(x))
        x = self.scale2(self.block2(x))
        x = self.block3(x)
        return self.classifier(x.mean(dim=(2, 3)))
