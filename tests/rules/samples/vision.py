"""Samples of torchvision's operators, computed in plain torch where the compiled ones are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests import torchvision_shim
from tests.rules.harness import Input, Sample
from tests.rules.samples.inputs import data, real, sample


def _read(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear values of x [C, H, W] at pixel coordinates; zero outside."""
    height, width = x.shape[1:]
    grid = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], -1)
    flat = F.grid_sample(x[None], grid.reshape(1, 1, -1, 2), align_corners=True)
    return flat.reshape(len(x), *rows.shape)


def _align(x: Tensor, rois: Tensor, scale: float, h: int, w: int, n: int, aligned: bool) -> Tensor:
    result = []
    for image, *corners in rois.tolist():
        left, top, right, bottom = (c * scale - 0.5 * aligned for c in corners)
        rows = top + (torch.arange(h * n, dtype=x.dtype) + 0.5) * (bottom - top) / (h * n)
        columns = left + (torch.arange(w * n, dtype=x.dtype) + 0.5) * (right - left) / (w * n)
        values = _read(x[int(image)], *torch.meshgrid(rows, columns, indexing="ij"))
        result.append(values.reshape(len(values), h, n, w, n).mean((2, 4)))
    return torch.stack(result)


def _pool(x: Tensor, rois: Tensor, scale: float, h: int, w: int) -> tuple[Tensor, Tensor]:
    result = []
    for image, *corners in rois.tolist():
        left, top, right, bottom = (round(c * scale) for c in corners)
        region = x[int(image)][:, top : bottom + 1, left : right + 1]
        result.append(F.adaptive_max_pool2d(region, (h, w), return_indices=True))
    values, places = zip(*result, strict=True)
    return torch.stack(values), torch.stack(places).int()


def _bins(values: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Of every channel ``(c, i, j)``, the bin (i, j), and which channel that was."""
    channels = torch.arange(values.shape[1]).reshape(1, -1, h, w)
    grid = values.reshape(len(values), -1, h, w, h, w)
    own = torch.einsum("kcijij->kcij", grid)
    return own, channels.expand(own.shape).int().contiguous()


def _ps_align(x: Tensor, rois: Tensor, scale: float, h: int, w: int, n: int) -> Any:
    return _bins(_align(x, rois, scale, h, w, n, True), h, w)


def _ps_pool(x: Tensor, rois: Tensor, scale: float, h: int, w: int) -> Any:
    return _bins(_align(x, rois, scale, h, w, 2, False), h, w)


def _deform(
    x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *options: Any
) -> Tensor:
    sh, sw, ph, pw, dh, dw, groups, shared, masked = options
    _, _, kh, kw = weight.shape
    height, width = offset.shape[2:]
    rows = torch.arange(height)[:, None] * sh - ph
    columns = torch.arange(width)[None, :] * sw - pw
    images = []
    for b, image in enumerate(x):
        parts = []
        for s, part in enumerate(image.chunk(shared)):
            for tap in range(kh * kw):
                place = s * kh * kw + tap
                i, j = rows + tap // kw * dh, columns + tap % kw * dw
                moved = _read(part, i + offset[b, 2 * place], j + offset[b, 2 * place + 1])
                parts.append(moved * mask[b, place] if masked else moved)
        taps = torch.stack(parts).reshape(shared, kh * kw, -1, height, width).transpose(1, 2)
        images.append(taps.reshape(groups, -1, kh * kw, height, width))
    kernels = weight.reshape(groups, -1, weight.shape[1], kh * kw)
    result = torch.einsum("bgithw,goit->bgohw", torch.stack(images), kernels)
    return result.reshape(len(x), -1, height, width) + bias[:, None, None]


def _pooled(x: Tensor, rois: Tensor, _: float, h: int, w: int, *__: Any) -> Tensor:
    return x.new_empty(len(rois), x.shape[1], h, w)


def _pooled_bins(x: Tensor, rois: Tensor, _: float, h: int, w: int, *__: Any) -> Any:
    shape = (len(rois), x.shape[1] // (h * w), h, w)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int32)


def _pooled_places(x: Tensor, rois: Tensor, scale: float, h: int, w: int) -> Any:
    values = _pooled(x, rois, scale, h, w)
    return values, torch.empty_like(values, dtype=torch.int32)


def _deformed(x: Tensor, weight: Tensor, offset: Tensor, *_: Any) -> Tensor:
    return x.new_empty(len(x), len(weight), *offset.shape[2:])


REGIONS = "Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width"
CONVOLUTION = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, int stride_h, "
    "int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, int groups, "
    "int offset_groups, bool use_mask"
)
PLAIN: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    f"roi_align({REGIONS}, int sampling_ratio, bool aligned) -> Tensor": (_align, _pooled),
    f"roi_pool({REGIONS}) -> (Tensor, Tensor)": (_pool, _pooled_places),
    f"ps_roi_align({REGIONS}, int sampling_ratio) -> (Tensor, Tensor)": (_ps_align, _pooled_bins),
    f"ps_roi_pool({REGIONS}) -> (Tensor, Tensor)": (_ps_pool, _pooled_bins),
    f"deform_conv2d({CONVOLUTION}) -> Tensor": (_deform, _deformed),
}
"""Signature → what the operator computes, and its result's shape on meta tensors."""


def _register() -> None:
    for signature, (compute, shape) in PLAIN.items():
        name = signature.partition("(")[0]
        if not hasattr(torch.ops.torchvision, name):
            torchvision_shim.library().define(signature)
            torchvision_shim.library().impl(name, compute, "CPU")
            torchvision_shim.library().impl(name, shape, "Meta")


_register()
ops = torch.ops.torchvision


def regions() -> Input:
    """Three regions in two images of 7 × 9 pixels: (image, left, top, right, bottom)."""
    corners = [[0, 1, 1, 7, 5], [1, 0, 2, 6, 6], [1, 3, 0, 8, 4]]
    return Input(lambda: torch.tensor(corners, dtype=torch.float64), fixed=True)


def _convolved(groups: int, shared: int, masked: bool = False) -> Callable[..., Tensor]:
    def run(x: Tensor, weight: Tensor, bias: Tensor, offset: Tensor) -> Tensor:
        taps = shared * 6
        mask = offset[:, :taps].sigmoid() if masked else offset.new_zeros(0, 1)
        sizes = (1, 1, 0, 1, 1, 1)
        return ops.deform_conv2d(x, weight, offset, mask, bias, *sizes, groups, shared, masked)

    return run


WEIGHTS = (real(6, 4, 2, 3), real(6))

VISION: tuple[Sample, ...] = (
    sample(
        "torchvision::roi_align",
        lambda x, r: ops.roi_align(x, r, 1.0, 3, 2, 2, True),
        real(2, 4, 7, 9),
        regions(),
    ),
    sample(
        "torchvision::roi_pool",
        lambda x, r: ops.roi_pool(x, r, 1.0, 3, 2)[0],
        real(2, 4, 7, 9),
        regions(),
    ),
    sample(
        "torchvision::ps_roi_align",
        lambda x, r: ops.ps_roi_align(x, r, 1.0, 3, 2, 2)[0],
        real(2, 24, 7, 9),
        regions(),
    ),
    sample(
        "torchvision::ps_roi_pool",
        lambda x, r: ops.ps_roi_pool(x, r, 1.0, 3, 2)[0],
        real(2, 24, 7, 9),
        regions(),
    ),
    sample(
        "torchvision::deform_conv2d",
        _convolved(1, 1),
        real(2, 4, 7, 9),
        *WEIGHTS,
        data(2, 12, 6, 9),
    ),
    sample(
        "torchvision::deform_conv2d",
        _convolved(1, 2, masked=True),
        real(2, 4, 7, 9),
        *WEIGHTS,
        data(2, 24, 6, 9),
    ),
    sample(
        "torchvision::deform_conv2d",
        _convolved(2, 1),
        real(2, 8, 7, 9),
        *WEIGHTS,
        real(2, 12, 6, 9),
    ),
)
