"""Pruned detectors detect: their dense part is put back under their own post-processing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import boxes

import fxprune
from benchmarks import zoo_detection
from examples.detection import plain_nms, put_back
from tests.zoo import checks

SIZE = {"min_size": 96, "max_size": 128}
FEW = {"rpn_post_nms_top_n_test": 12, "rpn_post_nms_top_n_train": 12, "box_score_thresh": 0.0}


def _backbone() -> nn.Module:
    return resnet_fpn_backbone(backbone_name="resnet18", weights=None)  # with frozen batch norms


DETECTORS: dict[str, Callable[[], Any]] = {
    "retinanet": lambda: detection.RetinaNet(_backbone(), 4, score_thresh=0.0, **SIZE),
    "fcos": lambda: detection.FCOS(_backbone(), 4, score_thresh=0.0, **SIZE),
    "ssdlite": lambda: detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4, score_thresh=0.0
    ),
    "mask_rcnn": lambda: detection.MaskRCNN(_backbone(), 4, **SIZE, **FEW),
    "keypoint_rcnn": lambda: detection.KeypointRCNN(_backbone(), 2, **SIZE, **FEW),
}
every_detector = pytest.mark.parametrize("name", DETECTORS)


@pytest.fixture(autouse=True)
def _plain_operators() -> Iterator[None]:
    """Suppression in plain torch, and torchvision's plain roi_align without compiling it."""
    with patch.object(boxes, "nms", plain_nms), torch.compiler.set_stance("force_eager"):
        yield


def _pictures() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 90, 120), (3, 96, 96))
    return [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _targets(detector: Any) -> list[dict[str, Tensor]]:
    target = {
        "boxes": torch.tensor([[8.0, 8.0, 60.0, 70.0]], dtype=torch.float64),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 90, 120, dtype=torch.uint8),
        "keypoints": torch.tensor([[[20.0, 20.0, 1.0]] * 17]),
    }
    return [target, {**target, "masks": torch.ones(1, 96, 96, dtype=torch.uint8)}]


@every_detector
def test_a_pruned_detector_detects_what_the_masked_one_does(name: str) -> None:
    torch.manual_seed(0)
    detector = DETECTORS[name]().double().eval()
    dense = zoo_detection.dense(detector)
    traced = fxprune.trace(dense, torch.randn(2, 3, 96, 96, dtype=torch.float64))
    analysis = fxprune.analyze(traced, strict=True)
    plan = checks.random_plan(analysis, lambda group: group.maskable)
    smaller = put_back(detector, fxprune.rewrite(traced, plan))
    masked = copy.deepcopy(detector)
    checks.apply_masks(masked, plan)

    found, expected, full = (
        checks.run(model, {"images": _pictures()}) for model in (smaller, masked, detector)
    )
    assert [len(f["boxes"]) for f in found] == [len(e["boxes"]) for e in expected]
    assert all(len(f["boxes"]) > 0 for f in found)
    assert all(torch.equal(f["labels"], e["labels"]) for f, e in zip(found, expected, strict=True))
    assert checks.relative_error(found, expected) <= checks.TOLERANCE
    assert not torch.equal(full[0]["scores"], expected[0]["scores"]), "nothing was masked"

    sizes = [sum(p.numel() for p in model.parameters()) for model in (smaller, detector)]
    assert sizes[0] < 0.5 * sizes[1]


@every_detector
def test_a_pruned_detector_trains(name: str) -> None:
    torch.manual_seed(0)
    detector = DETECTORS[name]().double().eval()
    example = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    result = fxprune.prune(zoo_detection.dense(detector), example, sparsity=0.5)
    smaller = put_back(detector, result.module).train()
    losses = smaller(_pictures(), _targets(detector))
    torch.stack(list(losses.values())).sum().backward()
    gradients = [p.grad for p in smaller.parameters() if p.requires_grad]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)


def test_tensors_that_the_code_does_not_know_are_refused() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(nn.functional.channel_shuffle(self.first(x), 2))

    model = Shuffled()
    result = fxprune.prune(model, torch.randn(2, 3, 4, 4), sparsity=0.5)
    with pytest.raises(ValueError, match="of which the model's code is not aware"):
        put_back(model, result.module)
