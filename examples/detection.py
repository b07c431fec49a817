"""Prune a detector's convolutions and keep its transform, anchors and post-processing.

    python -m examples.detection

A detector returns what is left after non-maximum suppression: how many boxes that is depends on the
image, so no graph can hold it. What can be pruned is the dense part: `backbone` and `head` of
RetinaNet, FCOS and SSD, which turn a batch of images into scores and offsets for every anchor. So

1. wrap the dense part as a module of its own and prune that,
2. put the smaller layers back where they came from: `put_back`.

The rest of the detector reads no channel, and is used as it is, for training and for detection.
"""

from __future__ import annotations

import copy
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn

from tests import torchvision_shim  # noqa: F401  (only where torchvision's operators do not load)

# isort: split
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.ops import box_iou, boxes

import fxprune


class Dense(nn.Module):
    """Images [N, 3, H, W] → the head's outputs for every anchor, by name."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> Any:
        return self.head(list(self.backbone(images).values()))


def put_back(detector: nn.Module, pruned: fx.GraphModule) -> Any:
    """A copy of `detector` with the layers of `pruned`, which keep their names in the graph.

    This needs a model whose own code names no channel counts, as those of torchvision's detectors.
    The layers are shared with `pruned`. Raises ValueError if the graph has tensors of its own.
    """
    result = copy.deepcopy(detector)
    known = {*dict(detector.named_parameters()), *dict(detector.named_buffers())}
    extra = {*dict(pruned.named_parameters()), *dict(pruned.named_buffers())} - known
    if extra:
        raise ValueError(f"the graph needs {sorted(extra)}, of which the model's code is not aware")
    for name, module in pruned.named_modules():
        if type(module) not in (nn.Module, type(pruned)):
            result.set_submodule(name, module)
            continue
        place = result.get_submodule(name)  # layers that the graph holds as plain functions
        for key, parameter in module.named_parameters(recurse=False):
            setattr(place, key, parameter)
        for key, buffer in module.named_buffers(recurse=False):
            setattr(place, key, buffer)
    return result


def plain_nms(found: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression in plain torch, for where torchvision's operator does not load."""
    order = scores.argsort(descending=True, stable=True)
    overlaps = box_iou(found[order], found[order]) > iou_threshold
    kept: list[int] = []
    for position in range(len(order)):
        if not kept or not bool(overlaps[position, kept].any()):
            kept.append(position)
    return order[kept]


def main() -> None:
    torch.manual_seed(0)
    detector = retinanet_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=3,
        min_size=128,
        score_thresh=0.009,  # weights are random here: every score is near 0.01
        detections_per_img=5,
    ).eval()

    result = fxprune.prune(Dense(detector), torch.randn(2, 3, 128, 128), sparsity=0.5)
    smaller = put_back(detector, result.module)

    images = [torch.rand(3, 120, 160), torch.rand(3, 128, 128)]
    with patch.object(boxes, "nms", plain_nms), torch.no_grad():
        for found in smaller(images):
            print(f"{len(found['boxes'])} boxes with labels {found['labels'].tolist()}")

    box, label = torch.tensor([[10.0, 10.0, 60.0, 80.0]]), torch.tensor([1])
    losses = smaller.train()(images, [{"boxes": box, "labels": label}] * 2)
    sum(losses.values()).backward()
    print("losses:", {name: round(float(loss.detach()), 3) for name, loss in losses.items()})
    before, after = (sum(p.numel() for p in m.parameters()) for m in (detector, smaller))
    print(f"parameters: {before:,} -> {after:,}")


if __name__ == "__main__":
    main()
