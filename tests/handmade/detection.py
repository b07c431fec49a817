"""Encoder-decoders for images and one-stage detectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.handmade.table import Handmade, floats


def block(source: int, target: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, SiLU."""
    convolution = nn.Conv2d(source, target, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(target), nn.SiLU())


class UNet(nn.Module):
    """Skip connections are concatenated after bilinear upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(block(3, 6), block(6, 8))
        self.second = nn.Sequential(block(8, 10), block(10, 12))
        self.bottom = nn.Sequential(block(12, 14), block(14, 16))
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.third = nn.Sequential(block(16 + 12, 11), block(11, 9))
        self.fourth = block(9 + 8, 7)
        self.head = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(F.max_pool2d(first, 2))
        bottom = self.bottom(F.max_pool2d(second, 2))
        third = self.third(torch.cat([second, self.up(bottom)], 1))
        return self.head(self.fourth(torch.cat([first, self.up(third)], 1)))


class PaddedUNet(nn.Module):
    """Transposed convolutions, padded or interpolated to what odd sizes leave of the skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bottom = block(3, 8), block(8, 12), block(12, 16)
        self.up1 = nn.ConvTranspose2d(16, 10, 2, stride=2)
        self.up2 = nn.ConvTranspose2d(14, 6, 2, stride=2)
        self.third, self.fourth = block(10 + 12, 14), block(6 + 8, 9)
        self.head = nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(F.max_pool2d(first, 2))
        up = self.up1(self.bottom(F.max_pool2d(second, 2)))
        rows, columns = (second.shape[d] - up.shape[d] for d in (2, 3))
        up = F.pad(up, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        third = self.third(torch.cat([second, up], dim=1))
        up = F.interpolate(self.up2(third), size=first.shape[2:], mode="nearest")
        return self.head(self.fourth(torch.cat([first, up], dim=1)))


class Bottleneck(nn.Module):
    def __init__(self, width: int, inner: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2 = block(width, inner), block(inner, width)
        self.add = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    """YOLOv8: one half passes, the other one goes through bottlenecks; all is concatenated."""

    def __init__(self, source: int, target: int, inner: int, shortcut: bool) -> None:
        super().__init__()
        half = target // 2
        self.cv1 = block(source, 2 * half, 1)
        self.cv2 = block(3 * half, target, 1)
        self.m = nn.ModuleList([Bottleneck(half, inner, shortcut)])

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class SPPF(nn.Module):
    """Pools of growing size, concatenated."""

    def __init__(self, source: int, inner: int, target: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = block(source, inner, 1), block(4 * inner, target, 1)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Detect(nn.Module):
    """Anchor-free and decoupled: box distances as distributions over `bins`, and classes."""

    bins, classes = 6, 3

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.boxes = nn.ModuleList(
            nn.Sequential(block(w, 10), nn.Conv2d(10, 4 * self.bins, 1)) for w in widths
        )
        self.scores = nn.ModuleList(
            nn.Sequential(block(w, 9), nn.Conv2d(9, self.classes, 1)) for w in widths
        )
        self.register_buffer("distances", torch.arange(self.bins, dtype=torch.float64))

    def anchors(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        points, strides = [], []
        for level, x in enumerate(maps):
            height, width = x.shape[2:]
            sx = torch.arange(width, device=x.device, dtype=x.dtype) + 0.5
            sy = torch.arange(height, device=x.device, dtype=x.dtype) + 0.5
            sy, sx = torch.meshgrid(sy, sx, indexing="ij")
            points.append(torch.stack((sx, sy), -1).view(-1, 2))
            strides.append(torch.full((height * width, 1), 2.0 ** (level + 2), dtype=x.dtype))
        return torch.cat(points).transpose(0, 1), torch.cat(strides).transpose(0, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        rows = 4 * self.bins + self.classes
        levels = zip(maps, self.boxes, self.scores, strict=True)
        both = [torch.cat((boxes(x), scores(x)), 1) for x, boxes, scores in levels]
        flat = torch.cat([x.view(maps[0].shape[0], rows, -1) for x in both], 2)
        box, scores = flat.split((4 * self.bins, self.classes), 1)
        box = box.permute(0, 2, 1)
        batch, count, width = box.shape
        distribution = box.view(batch, count, 4, width // 4).softmax(3)
        near, far = distribution.matmul(self.distances).transpose(1, 2).chunk(2, 1)
        anchors, strides = self.anchors(maps)
        low, high = anchors.unsqueeze(0) - near, anchors.unsqueeze(0) + far
        corners = torch.cat(((low + high) / 2, high - low), 1) * strides
        return torch.cat((corners, scores.sigmoid()), 1)


class Yolo8(nn.Module):
    """Backbone of C2f blocks, FPN and PAN neck, anchor-free head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.c1 = block(3, 6, 3, 2), C2f(6, 8, 3, True)
        self.down1, self.c2 = block(8, 10, 3, 2), C2f(10, 12, 5, True)
        self.down2, self.sppf = block(12, 14, 3, 2), SPPF(14, 7, 16)
        self.up = nn.Upsample(scale_factor=2)
        self.fpn = C2f(16 + 12, 18, 11, False)
        self.down3, self.pan = block(18, 15, 3, 2), C2f(15 + 16, 20, 13, False)
        self.detect = Detect((18, 20))

    def forward(self, x: Tensor) -> Tensor:
        c2 = self.c2(self.down1(self.c1(self.stem(x))))
        p5 = self.sppf(self.down2(c2))
        p4 = self.fpn(torch.cat([self.up(p5), c2], 1))
        return self.detect([p4, self.pan(torch.cat([self.down3(p4), p5], 1))])


class Focus(nn.Module):
    """YOLOv5's stem: every second pixel of every second row, four times, as channels."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.conv = block(4 * source, target)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.conv(torch.cat(corners, 1))


class CSP(nn.Module):
    """Cross-stage partial block: two plain convolutions, concatenated and normalised together."""

    def __init__(self, source: int, inner: int, target: int) -> None:
        super().__init__()
        self.cv1, self.cv4 = block(source, inner, 1), block(2 * inner, target, 1)
        self.cv2 = nn.Conv2d(source, inner, 1, bias=False)
        self.cv3 = nn.Conv2d(inner, inner, 1, bias=False)
        self.bn, self.act = nn.BatchNorm2d(2 * inner), nn.LeakyReLU(0.1)
        self.m = Bottleneck(inner, 5, True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv3(self.m(self.cv1(x)))
        return self.cv4(self.act(self.bn(torch.cat((y, self.cv2(x)), dim=1))))


class Yolo5(nn.Module):
    """Slices of pixels as channels, twice; anchor boxes as a view of the head's channels."""

    anchors, outputs = 3, 7

    def __init__(self) -> None:
        super().__init__()
        self.focus, self.csp = Focus(3, 8), CSP(8, 6, 10)
        self.again = Focus(10, 12)
        self.head = nn.Conv2d(12, self.anchors * self.outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.again(self.csp(self.focus(x))))
        batch, _, rows, columns = x.shape
        x = x.view(batch, self.anchors, self.outputs, rows, columns)
        return x.permute(0, 1, 3, 4, 2).contiguous().sigmoid()


class Reorganised(nn.Module):
    """YOLOv2's pass-through: space to depth by view and permute, then depth to space and back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mixed = block(3, 6), block(24, 20, 1)
        self.small, self.head = block(5, 7), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, channels, rows, columns = x.shape
        x = x.view(batch, channels, rows // 2, 2, columns // 2, 2)
        x = x.permute(0, 3, 5, 1, 2, 4).reshape(batch, 4 * channels, rows // 2, columns // 2)
        x = self.mixed(x).view(batch, 5, 2, 2, rows // 2, columns // 2)
        x = x.permute(0, 1, 4, 2, 5, 3).reshape(batch, 5, rows, columns)
        return self.head(self.small(x))


IMAGES = floats(x=(2, 3, 32, 32)), floats(x=(3, 3, 64, 32))

MODELS = {
    "unet": Handmade(UNet, *IMAGES, "6 7 8 9 10 11 12 14 16"),
    "padded_unet": Handmade(
        PaddedUNet, floats(x=(2, 3, 37, 35)), floats(x=(3, 3, 41, 43)), "6 8 9 10 12 14 16"
    ),
    "yolo8": Handmade(
        Yolo8, *IMAGES, "3 4 4 5 6 6 6 6 7 8 9 9 9 9 9 10 10 10 10 10 10 11 12 13 14 15 16 18 20"
    ),
    "yolo5": Handmade(Yolo5, *IMAGES, "5 6 6 6 8 10 12"),
    "reorganised": Handmade(Reorganised, *IMAGES, "5 6 7"),
}
