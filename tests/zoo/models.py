"""The models of the zoo: how to build each, what to trace it with and what to run it with.

Inputs for a run have another batch size than those for the trace, and for language models another
sequence length. `reduced` models keep their architecture and have fewer blocks or smaller images,
so that the tests are quick; with FXPRUNE_ZOO=genuine in the environment the full ones are tested.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
import transformers
from torch import nn
from torchvision.models import convnext, densenet, maxvit, swin_transformer, vision_transformer

GENUINE = os.environ.get("FXPRUNE_ZOO") == "genuine"
VOCABULARY = 96


@dataclass(frozen=True)
class ZooModel:
    """A model with the inputs that it is traced with and those that it is checked with."""

    name: str
    family: str
    build: Callable[[], nn.Module]
    example: Callable[[], dict[str, Any]]
    inputs: Callable[[], dict[str, Any]]


def _images(batch: int, size: int, name: str = "x") -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        colours = torch.randn(batch, 3, 1, 1, dtype=torch.float64)  # tell the samples apart
        return {name: torch.randn(batch, 3, size, size, dtype=torch.float64) + 2 * colours}

    return make


def _tokens(batch: int, length: int, masked: bool = False) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        ids = torch.randint(0, VOCABULARY, (batch, length))
        if not masked:
            return {"input_ids": ids}
        mask = torch.ones(batch, length, dtype=torch.int64)
        mask[0, length - 3 :] = 0
        return {"input_ids": ids, "attention_mask": mask}

    return make


def _vision(
    name: str,
    family: str,
    size: int,
    reduced: Callable[[], nn.Module] | None = None,
    **options: Any,
) -> ZooModel:
    """A torchvision model by name; `size` is the image size of the quick test."""
    genuine_size = 299 if name == "inception_v3" else 224

    def build() -> nn.Module:
        if reduced is not None and not GENUINE:
            return reduced()
        models = torchvision.models
        constructor = getattr(models, name, None) or getattr(models.segmentation, name)
        model: nn.Module = constructor(weights=None, **options)
        return model

    pixels = genuine_size if GENUINE else size
    return ZooModel(name, family, build, _images(2, pixels), _images(3, pixels))


def _small_densenet() -> nn.Module:
    return densenet.DenseNet(32, (2, 3, 4, 2), 64)


def _small_convnext() -> nn.Module:
    setting = convnext.CNBlockConfig
    return convnext.ConvNeXt(
        [setting(96, 192, 2), setting(192, 384, 2), setting(384, None, 2)],
        stochastic_depth_prob=0.1,
    )


def _small_vit() -> nn.Module:
    return vision_transformer.VisionTransformer(
        image_size=32, patch_size=16, num_layers=3, num_heads=12, hidden_dim=768, mlp_dim=3072
    )


def _small_swin(v2: bool) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        window = [8, 8] if v2 else [7, 7]
        parts: dict[str, Any] = {}
        if v2:
            parts = {
                "block": swin_transformer.SwinTransformerBlockV2,
                "downsample_layer": swin_transformer.PatchMergingV2,
            }
        return swin_transformer.SwinTransformer(
            [4, 4], 96, [2, 2, 2], [3, 6, 12], window, stochastic_depth_prob=0.2, **parts
        )

    return build


def _small_maxvit() -> nn.Module:
    return maxvit.MaxVit(
        input_size=(64, 64),
        stem_channels=64,
        block_channels=[64, 128],
        block_layers=[2, 2],
        head_dim=32,
        stochastic_depth_prob=0.2,
        partition_size=4,
    )


def _bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return transformers.BertModel(config)


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=4, n_positions=64
    )
    return transformers.GPT2LMHeadModel(config)


def _llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return transformers.LlamaForCausalLM(config)


def _hf_vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    return transformers.ViTModel(config)


VISION = (
    _vision("resnet18", "residual", 64),
    _vision("resnet50", "residual", 64),
    _vision("densenet121", "dense", 64, _small_densenet),
    _vision("googlenet", "inception", 96, init_weights=False),
    _vision("inception_v3", "inception", 128, init_weights=False),
    _vision("mobilenet_v2", "mobile", 64),
    _vision("mobilenet_v3_small", "mobile", 64),
    _vision("efficientnet_b0", "mobile", 64),
    _vision("regnet_y_400mf", "grouped", 64),
    _vision("shufflenet_v2_x1_0", "shuffle", 64),
    _vision("squeezenet1_1", "inception", 64),
    _vision("convnext_tiny", "convnext", 64, _small_convnext),
    _vision("vit_b_16", "transformer", 32, _small_vit),
    _vision("swin_t", "window", 64, _small_swin(v2=False)),
    _vision("swin_v2_t", "window", 64, _small_swin(v2=True)),
    _vision("maxvit_t", "window", 64, _small_maxvit),
    _vision("fcn_resnet50", "segmentation", 64, weights_backbone=None),
    _vision("deeplabv3_resnet50", "segmentation", 64, weights_backbone=None),
)

LANGUAGE = (
    ZooModel("bert", "encoder", _bert, _tokens(2, 9, masked=True), _tokens(3, 13, masked=True)),
    ZooModel("gpt2", "decoder", _gpt2, _tokens(2, 9), _tokens(3, 13)),
    ZooModel("llama_gqa", "decoder", _llama, _tokens(2, 9), _tokens(3, 13)),
    ZooModel(
        "hf_vit",
        "transformer",
        _hf_vit,
        _images(2, 32, "pixel_values"),
        _images(3, 32, "pixel_values"),
    ),
)

MODELS = VISION + LANGUAGE
