"""The models of the sweep: how to build each, and inputs of any batch size for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from tests import torchvision_shim  # noqa: F401  (before torchvision)

# isort: split
import timm
import torchvision

from benchmarks import zoo_detection
from benchmarks.zoo_entry import Entry, Inputs
from benchmarks.zoo_huggingface import huggingface


def entries() -> tuple[Entry, ...]:
    """All models."""
    return (*_torchvision(), *_detection(), *_timm(), *huggingface())


def _images(*shape: int) -> Inputs:
    """One image (or clip) of `shape` per sample, under the name of the model's first input."""

    def make(model: nn.Module, batch: int) -> dict[str, Any]:
        name = next(iter(inspect.signature(model.forward).parameters))
        offset = torch.randn(batch, shape[0], *[1] * (len(shape) - 1), dtype=torch.float64)
        return {name: torch.randn(batch, *shape, dtype=torch.float64) + 2 * offset}

    return make


SINGLE_PRECISION = frozenset({"efficientvit_b0", "raft_small"})
"""Models that calculate in float32 inside, whatever the type of their input."""


def _widen_casts(name: str) -> None:
    """Calculate in float64 throughout: else rounding is all that a comparison would see."""
    if name in SINGLE_PRECISION:  # each model has a process of its own
        torch.Tensor.float = torch.Tensor.double  # type: ignore[assignment, method-assign]


# -- torchvision -----------------------------------------------------------------------------------

CLASSIFICATION = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t
mnasnet0_5 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large regnet_x_400mf regnet_y_400mf resnet18
resnet50 resnext50_32x4d wide_resnet50_2 shufflenet_v2_x0_5 shufflenet_v2_x1_0 squeezenet1_0
squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_16
"""
SEGMENTATION = (
    "fcn_resnet50 deeplabv3_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large"
)
VIDEO = "r3d_18 mc3_18 r2plus1d_18 s3d swin3d_t"
FULL_SIZE = frozenset("alexnet maxvit_t swin_t swin_v2_t vgg11 vgg11_bn vit_b_16".split())
TORCHVISION_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}

MVIT: Mapping[str, Mapping[str, Any]] = {
    "mvit_v1": {
        "residual_pool": False,
        "residual_with_cls_embed": False,
        "rel_pos_embed": False,
        "proj_after_attn": False,
    },
    "mvit_v2": {
        "residual_pool": True,
        "residual_with_cls_embed": False,
        "rel_pos_embed": True,
        "proj_after_attn": True,
    },
}


def _small_mvit(weights: None, **options: Any) -> nn.Module:
    """A multiscale vision transformer of five blocks for small clips; the named ones need 20 GB."""
    mvit = torchvision.models.video.mvit
    rows = [  # heads, input and output channels, strides of the queries and of keys and values
        (1, 48, 96, [], [1, 4, 4]),
        (2, 96, 96, [1, 2, 2], [1, 2, 2]),
        (2, 96, 192, [], [1, 2, 2]),
        (4, 192, 192, [1, 2, 2], [1, 1, 1]),
        (4, 192, 192, [], [1, 1, 1]),
    ]
    blocks = [
        mvit.MSBlockConfig(heads, wide, out, [3, 3, 3] if stride else [], [3, 3, 3], stride, pooled)
        for heads, wide, out, stride, pooled in rows
    ]
    return mvit.MViT((64, 64), 4, block_setting=blocks, **options)


def _torchvision() -> list[Entry]:
    models = torchvision.models
    found = []
    for name in CLASSIFICATION.split():
        size = 224 if name in FULL_SIZE else 160 if name == "inception_v3" else 96
        options = TORCHVISION_OPTIONS.get(name, {})
        found.append(
            _torchvision_entry(name, getattr(models, name), _images(3, size, size), options)
        )
    for name in SEGMENTATION.split():
        constructor, options = getattr(models.segmentation, name), {"weights_backbone": None}
        found.append(_torchvision_entry(name, constructor, _images(3, 96, 96), options))
    for name in VIDEO.split():
        clip = (3, 16, 224, 224) if name == "s3d" else (3, 8, 64, 64)
        found.append(_torchvision_entry(name, getattr(models.video, name), _images(*clip), {}))
    for name, options in MVIT.items():
        found.append(_torchvision_entry(name, _small_mvit, _images(3, 4, 64, 64), options))
    found.append(_torchvision_entry("raft_small", models.optical_flow.raft_small, _frames, {}))
    return found


def _torchvision_entry(
    name: str, constructor: Callable[..., nn.Module], inputs: Inputs, options: Mapping[str, Any]
) -> Entry:
    def build() -> nn.Module:
        _widen_casts(name)
        return constructor(weights=None, **options)

    return Entry(f"torchvision/{name}", build, inputs)


def _detection() -> list[Entry]:
    sizes = {**zoo_detection.ONE_STAGE, **zoo_detection.TWO_STAGE}
    return [_detector_entry(name, size) for name, size in sizes.items()]


def _detector_entry(name: str, size: int) -> Entry:
    def build() -> nn.Module:
        return zoo_detection.dense(zoo_detection.build(name))

    def inputs(model: nn.Module, batch: int) -> dict[str, Any]:
        # One image costs what others' batches do; but a single pixel has no statistics to fit.
        return _images(3, size, size)(model, batch - (name not in zoo_detection.SINGLE_PIXEL))

    return Entry(f"torchvision/{name}", build, inputs)


def _frames(model: nn.Module, batch: int) -> dict[str, Any]:
    images = [torch.randn(batch, 3, 128, 128, dtype=torch.float64) for _ in range(2)]
    return {"image1": images[0], "image2": images[1], "num_flow_updates": 2}


# -- timm: the smallest variant of every architecture module ---------------------------------------

TIMM: Mapping[str, int] = {
    "beit_base_patch16_224": 224,
    "halonet_h1": 256,
    "mobileone_s1": 96,
    "cait_xxs24_224": 224,
    "coat_tiny": 224,
    "convit_tiny": 224,
    "convmixer_768_32": 96,
    "convnext_zepto_rms": 96,
    "cpubone_nano": 96,
    "crossvit_tiny_240": 240,
    "csatv2": 256,
    "cs3darknet_focus_s": 96,
    "cspnext_tiny": 96,
    "davit_tiny": 224,
    "deepseek_vit_412m": 224,
    "deit_tiny_patch16_224": 224,
    "densenet121": 96,
    "dla46x_c": 96,
    "dpn48b": 96,
    "edgenext_xx_small": 96,
    "efficientformer_l1": 224,
    "efficientformerv2_s0": 224,
    "mobilenetv2_035": 96,
    "efficientvim_m1": 96,
    "efficientvit_b0": 96,
    "efficientvit_m0": 224,
    "vit_tiny_patch16_dinov3_qkvb": 256,
    "fasternet_t0": 96,
    "fastvit_t8": 96,
    "focalnet_tiny_srf": 224,
    "gcvit_xxtiny": 224,
    "gemma4_vit_167m": 192,
    "ghostnet_050": 96,
    "hardcorenas_b": 96,
    "hgnetv2_b0": 96,
    "hiera_tiny_224": 224,
    "sam2_hiera_tiny": 256,
    "hrnet_w18_small": 96,
    "iformer_t": 96,
    "inception_next_atto": 96,
    "inception_resnet_v2": 160,
    "inception_v3": 160,
    "inception_v4": 160,
    "lcnetv2_small": 96,
    "levit_128s": 224,
    "lowformer_b0": 96,
    "mambaout_femto": 96,
    "maxvit_pico_rw_256": 256,
    "poolformerv2_s12": 96,
    "gmlp_ti16_224": 224,
    "mobilenetv3_small_050": 96,
    "mobilenetv5_base": 256,
    "mobilevit_xxs": 96,
    "mvitv2_tiny": 224,
    "naflexvit_base_patch16_parfac_gap": 128,
    "nasnetalarge": 160,
    "nest_tiny": 224,
    "nextvit_small": 96,
    "nf_regnet_b0": 96,
    "pit_ti_224": 224,
    "pnasnet5large": 160,
    "pvt_v2_b0": 96,
    "qwen3_vit_88m": 192,
    "rdnet_tiny": 96,
    "regnetx_002": 96,
    "repghostnet_050": 96,
    "repvit_m1": 96,
    "res2next50": 96,
    "resnest14d": 96,
    "resnet10t": 96,
    "resnetv2_18": 96,
    "rexnet_100": 96,
    "selecsls42": 96,
    "legacy_seresnet18": 96,
    "sequencer2d_s": 224,
    "shvit_s1": 96,
    "skresnet18": 96,
    "starnet_s050": 96,
    "swiftformer_xs": 224,
    "swin_tiny_patch4_window7_224": 224,
    "swinv2_tiny_window8_256": 256,
    "swinv2_cr_tiny_224": 224,
    "tiny_vit_5m_224": 96,
    "tnt_s_legacy_patch16_224": 224,
    "tresnet_m": 96,
    "twins_svt_small": 224,
    "vgg11": 224,
    "visformer_tiny": 224,
    "vit_tiny_patch16_224": 224,
    "vit_tiny_r_s16_p8_224": 224,
    "vit_srelpos_small_patch16_224": 224,
    "samvit_base_patch16_224": 224,
    "vitamin_small_224": 224,
    "volo_d1_224": 224,
    "ese_vovnet19b_slim_dw": 96,
    "legacy_xception": 96,
    "xception41p": 96,
    "xcit_nano_12_p8_224": 224,
}
"""Model name → image size."""

TIMM_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "deepseek_vit_412m": {"depth": 2},
    "gemma4_vit_167m": {"depth": 2},
    "qwen3_vit_88m": {"depth": 2},
}
"""The shallowest form of families whose smallest member is large."""


def _timm() -> list[Entry]:
    return [_timm_entry(name, size) for name, size in TIMM.items()]


def _timm_entry(name: str, size: int) -> Entry:
    options = TIMM_OPTIONS.get(name, {})

    def build() -> nn.Module:
        _widen_casts(name)
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
        return model

    return Entry(f"timm/{name}", build, _images(3, size, size))
