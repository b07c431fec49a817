"""torchvision's detectors without their post-processing: backbone, feature pyramid and heads.

Non-maximum suppression and the choice of proposals depend on data and hold no parameters; what is
pruned is what is convolved and multiplied. `examples/detection.py` puts the pruned layers back
under a detector's own transform, anchors and post-processing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import torchvision_shim  # noqa: F401  (before torchvision)

# isort: split
from torchvision.models import detection


class DenseOneStage(nn.Module):
    """Images [N, 3, H, W] → the head's outputs for every anchor, by name.

    The classification and regression heads read the pyramid levels; no level is an output.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> Any:
        return self.head(list(self.backbone(images).values()))


class PooledLevels(nn.Module):
    """A stand-in for the pooling of regions: every whole level is one region of `size` × `size`.

    It couples the channels of the pyramid with those of the heads behind it as RoIAlign does.
    Maps: level name → [N, C, H, W], of which those in `names` are read.
    Returns [N * levels, C, size, size].
    """

    def __init__(self, names: list[str], size: int) -> None:
        super().__init__()
        self.names, self.size = names, size

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        levels = [x for name, x in maps.items() if name in self.names]
        return torch.cat([F.adaptive_avg_pool2d(x, self.size) for x in levels])


class DenseTwoStage(nn.Module):
    """Images [N, 3, H, W] → proposals' scores and offsets per level, and the heads' outputs.

    The outputs are (objectness, offsets, (class scores, boxes)[, mask or keypoint logits]).
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        regions = detector.roi_heads
        self.backbone, self.rpn = detector.backbone, nn.Module()
        self.rpn.head = detector.rpn.head
        self.roi_heads = nn.Module()
        parts = ("box", "mask", "keypoint")
        self.parts = [p for p in parts if getattr(regions, f"{p}_head", None) is not None]
        for part in self.parts:
            for kind in ("head", "predictor"):
                name = f"{part}_{kind}"
                setattr(self.roi_heads, name, getattr(regions, name))
            pool = getattr(regions, f"{part}_roi_pool")
            stand_in = PooledLevels(pool.featmap_names, pool.output_size[0])
            setattr(self.roi_heads, f"{part}_roi_pool", stand_in)

    def forward(self, images: Tensor) -> Any:
        maps = self.backbone(images)
        outputs = list(self.rpn.head(list(maps.values())))
        for part in self.parts:
            pool, head, predictor = (
                getattr(self.roi_heads, f"{part}_{kind}")
                for kind in ("roi_pool", "head", "predictor")
            )
            outputs.append(predictor(head(pool(maps))))
        return tuple(outputs)


ONE_STAGE = {
    "retinanet_resnet50_fpn": 64,
    "retinanet_resnet50_fpn_v2": 64,
    "fcos_resnet50_fpn": 64,
    "ssd300_vgg16": 272,  # the smallest at which every extra level has a pixel
    "ssdlite320_mobilenet_v3_large": 320,
}
"""Constructor name → image size."""

SINGLE_PIXEL = frozenset({"ssdlite320_mobilenet_v3_large"})
"""Those whose smallest level is one pixel at that size, with batch normalisation behind it."""

TWO_STAGE = {
    "fasterrcnn_resnet50_fpn": 64,
    "fasterrcnn_resnet50_fpn_v2": 64,
    "fasterrcnn_mobilenet_v3_large_fpn": 64,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 64,
    "maskrcnn_resnet50_fpn": 64,
    "maskrcnn_resnet50_fpn_v2": 64,
    "keypointrcnn_resnet50_fpn": 64,
}


def build(name: str) -> nn.Module:
    """The detector with random weights."""
    detector: nn.Module = getattr(detection, name)(weights=None, weights_backbone=None)
    return detector


def dense(detector: nn.Module) -> nn.Module:
    """The part of a detector that can be pruned; it shares the detector's modules and names."""
    return DenseTwoStage(detector) if hasattr(detector, "rpn") else DenseOneStage(detector)
