"""Convolutional networks: blocks that split, concatenate, shuffle, gate and regroup channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.handmade.detection import block
from tests.handmade.table import Handmade, floats


class SuperResolution(nn.Module):
    """A residual body; channels become pixels twice, the second time those of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body = nn.Conv2d(3, 8, 3, padding=1), block(8, 8)
        self.up1, self.up2 = nn.Conv2d(8, 6 * 4, 3, padding=1), nn.Conv2d(6, 3 * 4, 3, padding=1)
        self.shuffle, self.act = nn.PixelShuffle(2), nn.PReLU(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = self.act(self.shuffle(self.up1(y + self.body(y))))
        base = F.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False)
        return base + self.shuffle(self.up2(y))


class Unshuffled(nn.Module):
    """Pixels of feature maps become channels, and channels pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = block(3, 6), block(24, 20, 1)
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.pixel_shuffle(self.inner(F.pixel_unshuffle(self.stem(x), 2)), 2))


class UnequalSplit(nn.Module):
    """ShuffleNet-like: 4 of 15 channels pass, 11 are computed on; then 3 groups of 5 shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 15)
        self.branch = nn.Sequential(block(11, 7, 1), nn.Conv2d(7, 7, 3, 1, 1, groups=7))
        self.back = block(7, 11, 1)
        self.last = block(15, 9, 1)
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        passed, used = torch.split(self.stem(x), [4, 11], dim=1)
        x = torch.cat((passed, self.back(self.branch(used))), 1)
        batch, channels, rows, columns = x.shape
        x = x.view(batch, 3, channels // 3, rows, columns).transpose(1, 2).contiguous()
        x = self.last(x.view(batch, -1, rows, columns))
        return self.head(x.mean([2, 3]))


class ComputedShuffle(nn.Module):
    """A shuffle of 3 groups of 5 channels whose groups are computed on before it is undone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = block(3, 15), nn.Conv2d(15, 4, 1)
        self.scale = nn.Parameter(torch.ones(5, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, rows, columns = x.shape
        y = self.stem(x).view(batch, 3, 5, rows, columns).transpose(1, 2)
        y = (y * self.scale).reshape(batch, 15, rows, columns)
        return self.head(y)


class DenseThenSplit(nn.Module):
    """Dense concatenation, and its parts taken apart again at other boundaries."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.layers = nn.ModuleList(block(8 + 4 * i, 4) for i in range(3))
        self.low, self.high = block(12, 6, 1), block(8, 5, 1)
        self.head = nn.Conv2d(11, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        low, high = x[:, :12], x[:, 12:]
        return self.head(torch.cat([self.low(low), self.high(high)], 1))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection, residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = block(3, 8, 3, 2), block(8, 24, 1)
        self.depthwise = nn.Conv2d(24, 24, 5, padding=2, groups=24, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.reduce, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.project, self.head = nn.Conv2d(24, 8, 1, bias=False), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.hardswish(self.norm(self.depthwise(self.expand(x))))
        gate = self.excite(F.relu6(self.reduce(F.adaptive_avg_pool2d(y, 1))))
        x = x + self.project(y * F.hardsigmoid(gate))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Grouped(nn.Module):
    """Grouped convolutions, one with more outputs than inputs, and grouped transposed ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 12)
        self.wide = nn.Conv2d(12, 24, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(24, 20, 2, stride=2, groups=2)
        self.depthwise = nn.ConvTranspose2d(20, 20, 3, padding=1, groups=20)
        self.head = nn.Conv2d(20, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.depthwise(F.gelu(self.up(F.relu(self.wide(self.stem(x)))))))


class DepthMultiplier(nn.Module):
    """A depthwise convolution that makes three channels of each, and a strided one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 6)
        self.multiply = nn.Conv2d(6, 18, 3, padding=1, groups=6)
        self.head = nn.Conv2d(18, 3, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.multiply(self.stem(x))))


class Volumes(nn.Module):
    """3-D convolutions, pooling and a transposed one; a fully connected head on what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6)
        self.second = nn.Conv3d(6, 8, (1, 3, 3), padding=(0, 1, 1))
        self.up = nn.ConvTranspose3d(8, 5, 2, stride=2)
        self.pool, self.head = nn.AdaptiveAvgPool3d((1, 2, 2)), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.norm(self.first(x))), 2)
        x = self.up(F.relu(self.second(x)))
        return self.head(torch.flatten(self.pool(x), 1))


class GroupNorms(nn.Module):
    """Group normalisation with several groups and with one, behind residual sums."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(4, 12)
        self.inner, self.norm2 = nn.Conv2d(12, 10, 1), nn.GroupNorm(1, 10)
        self.outer, self.head = nn.Conv2d(10, 12, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.outer(F.relu(self.norm2(self.inner(F.silu(self.norm1(x)))))))


class InstanceNorms(nn.Module):
    """Style transfer: instance normalisation with and without affine maps, reflection padding."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d(1)
        self.first, self.norm1 = nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8)
        self.head = nn.Conv2d(8, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.first(self.pad(x))))
        y = y + self.norm2(self.second(self.pad(y)))
        return torch.tanh(self.head(self.pad(y)))


class Modulated(nn.Module):
    """FiLM: a code shifts and scales channels; the norm it follows has no map of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.film = nn.Sequential(nn.Linear(5, 14), nn.ReLU(), nn.Linear(14, 2 * 10))
        self.conv, self.norm = nn.Conv2d(3, 10, 3, padding=1), nn.BatchNorm2d(10, affine=False)
        self.head = nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        gamma, beta = self.film(code)[:, :, None, None].chunk(2, dim=1)
        return self.head(F.relu(self.norm(self.conv(x)) * (1 + gamma) + beta))


class Selective(nn.Module):
    """Selective kernels: branches are stacked, and a softmax over them weighs each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(block(3, 8, k) for k in (1, 3, 5))
        self.squeeze, self.weigh = nn.Linear(8, 5), nn.Linear(5, 3 * 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([branch(x) for branch in self.branches], 1)
        pooled = F.relu(self.squeeze(y.sum(1).mean((-1, -2))))
        weight = self.weigh(pooled).view(-1, 3, 8, 1, 1).softmax(1)
        return self.head((y * weight).sum(1))


class Unfolded(nn.Module):
    """A convolution by hand: unfold, a linear map of the patches, fold with its overlaps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 6)
        self.mix = nn.Linear(6 * 9, 5 * 9)
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        patches = F.unfold(self.stem(x), 3, padding=1)
        patches = F.gelu(self.mix(patches.transpose(1, 2)).transpose(1, 2))
        return self.head(F.fold(patches, size, 3, padding=1))


class Windows(nn.Module):
    """Window partition and its inverse, around maps of channels and of positions in a window."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 3)
        self.inner, self.outer = nn.Linear(8, 14), nn.Linear(14, 8)
        self.positions = nn.Sequential(nn.Linear(16, 9), nn.GELU(), nn.Linear(9, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        batch, rows, columns, channels = x.shape
        y = x.view(batch, rows // 4, 4, columns // 4, 4, channels)
        y = y.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, channels)
        y = self.outer(F.gelu(self.inner(y)))
        y = self.positions(y.transpose(1, 2)).transpose(1, 2)
        y = y.reshape(batch, rows // 4, columns // 4, 4, 4, -1)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, -1)
        return self.head(x + y)


IMAGES = floats(x=(2, 3, 8, 8)), floats(x=(3, 3, 12, 8))

MODELS = {
    "super_resolution": Handmade(SuperResolution, *IMAGES, "6 8"),
    "unshuffled": Handmade(Unshuffled, *IMAGES, "5 6"),
    "unequal_split": Handmade(UnequalSplit, *IMAGES, "4 7 9 11 11"),
    "computed_shuffle": Handmade(ComputedShuffle, *IMAGES, "3 5"),
    "dense_then_split": Handmade(DenseThenSplit, *IMAGES, "4 4 4 5 6 8"),
    "inverted_residual": Handmade(InvertedResidual, *IMAGES, "6 8 24"),
    "grouped": Handmade(Grouped, *IMAGES, "2 2x2 2x3 2x6 2x10"),
    "depth_multiplier": Handmade(DepthMultiplier, *IMAGES, "6 6x3"),
    "volumes": Handmade(Volumes, floats(x=(2, 2, 4, 8, 8)), floats(x=(3, 2, 6, 8, 12)), "5 6 8"),
    "group_norms": Handmade(GroupNorms, *IMAGES, "4 10 4x3"),
    "instance_norms": Handmade(InstanceNorms, *IMAGES, "8"),
    "modulated": Handmade(
        Modulated,
        floats(x=(2, 3, 8, 8), code=(2, 5)),
        floats(x=(3, 3, 12, 8), code=(3, 5)),
        "10 14",
    ),
    "selective": Handmade(Selective, *IMAGES, "5 8"),
    "unfolded": Handmade(Unfolded, *IMAGES, "5 6"),
    "windows": Handmade(Windows, *IMAGES, "8 9 14"),
}
