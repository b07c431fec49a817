"""The models of the sweep: how to build each, and inputs of any batch size for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from tests import torchvision_shim  # noqa: F401  (before torchvision)

# isort: split
import timm
import torchvision
import transformers

Inputs: TypeAlias = Callable[[nn.Module, int], dict[str, Any]]
VOCABULARY = 96


@dataclass(frozen=True)
class Entry:
    """A model and how to make inputs for it: batch 2 to trace it, another to check it."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs


def entries() -> tuple[Entry, ...]:
    """All models."""
    return (*_torchvision(), *_timm(), *_huggingface())


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
VIDEO = "r3d_18 mc3_18 r2plus1d_18 s3d mvit_v1_b swin3d_t"
FULL_SIZE = frozenset("alexnet maxvit_t swin_t swin_v2_t vgg11 vgg11_bn vit_b_16".split())
TORCHVISION_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}


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
        clip = (3, 16, 224, 224) if name in ("s3d", "mvit_v1_b") else (3, 8, 64, 64)
        found.append(_torchvision_entry(name, getattr(models.video, name), _images(*clip), {}))
    found.append(_torchvision_entry("raft_small", models.optical_flow.raft_small, _frames, {}))
    return found


def _torchvision_entry(
    name: str, constructor: Callable[..., nn.Module], inputs: Inputs, options: Mapping[str, Any]
) -> Entry:
    def build() -> nn.Module:
        _widen_casts(name)
        return constructor(weights=None, **options)

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


# -- Hugging Face, from small configurations -------------------------------------------------------


def _tokens(*names: str) -> Inputs:
    """Token ids under each name, of another length for another batch size."""

    def make(model: nn.Module, batch: int) -> dict[str, Any]:
        lengths = range(batch * 3 + 3, batch * 3 + 3 + 2 * len(names), 2)
        return {
            name: torch.randint(3, VOCABULARY, (batch, length))
            for name, length in zip(names, lengths, strict=True)
        }

    return make


def _tokens_of_length(length: int) -> Inputs:
    def make(model: nn.Module, batch: int) -> dict[str, Any]:
        return {"input_ids": torch.randint(3, VOCABULARY, (batch, length))}

    return make


def _masked_tokens(model: nn.Module, batch: int) -> dict[str, Any]:
    ids = _tokens("input_ids")(model, batch)["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _pixels(size: int) -> Inputs:
    def make(model: nn.Module, batch: int) -> dict[str, Any]:
        colours = 2 * torch.randn(batch, 3, 1, 1, dtype=torch.float64)
        return {"pixel_values": torch.randn(batch, 3, size, size, dtype=torch.float64) + colours}

    return make


def _clip_inputs(model: nn.Module, batch: int) -> dict[str, Any]:
    return {**_tokens("input_ids")(model, batch), **_pixels(32)(model, batch)}


def _speech(model: nn.Module, batch: int) -> dict[str, Any]:
    features = torch.randn(batch, 16, 40, dtype=torch.float64)
    return {"input_features": features, **_tokens("decoder_input_ids")(model, batch)}


_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_GQA = {**_SIZES, "num_key_value_heads": 2, "pad_token_id": 0}
_VISION = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_TEXT_TOWER = {**_SIZES, "projection_dim": 32, "eos_token_id": 2, "bos_token_id": 1}
_SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}

_IDS = _tokens("input_ids")
_FIXED_IDS = _tokens_of_length(9)  # the scan over the sequence is a Python loop
_PAIRS = _tokens("input_ids", "decoder_input_ids")

HUGGINGFACE: tuple[tuple[str, str, str, Mapping[str, Any], Inputs], ...] = (
    ("bert", "BertModel", "BertConfig", _SIZES, _masked_tokens),
    ("bert_classifier", "BertForSequenceClassification", "BertConfig", _SIZES, _masked_tokens),
    (
        "distilbert",
        "DistilBertModel",
        "DistilBertConfig",
        {
            "vocab_size": VOCABULARY,
            "dim": 48,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 64,
            "max_position_embeddings": 64,
        },
        _masked_tokens,
    ),
    ("roberta", "RobertaModel", "RobertaConfig", _SIZES, _masked_tokens),
    ("albert", "AlbertModel", "AlbertConfig", {**_SIZES, "embedding_size": 24}, _masked_tokens),
    (
        "deberta_v2",
        "DebertaV2Model",
        "DebertaV2Config",
        {**_SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        _masked_tokens,
    ),
    ("electra", "ElectraModel", "ElectraConfig", {**_SIZES, "embedding_size": 24}, _masked_tokens),
    (
        "gpt2",
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64},
        _IDS,
    ),
    ("gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", _SIZES, _IDS),
    (
        "opt",
        "OPTForCausalLM",
        "OPTConfig",
        {**_SIZES, "ffn_dim": 64, "word_embed_proj_dim": 48},
        _IDS,
    ),
    (
        "bloom",
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 48, "n_layer": 2, "n_head": 4},
        _IDS,
    ),
    ("llama", "LlamaForCausalLM", "LlamaConfig", _GQA, _IDS),
    ("mistral", "MistralForCausalLM", "MistralConfig", _GQA, _IDS),
    ("qwen2", "Qwen2ForCausalLM", "Qwen2Config", _GQA, _IDS),
    ("qwen3", "Qwen3ForCausalLM", "Qwen3Config", {**_GQA, "head_dim": 12}, _IDS),
    ("gemma", "GemmaForCausalLM", "GemmaConfig", {**_GQA, "head_dim": 12}, _IDS),
    ("phi3", "Phi3ForCausalLM", "Phi3Config", _GQA, _IDS),
    ("falcon", "FalconForCausalLM", "FalconConfig", _SIZES, _IDS),
    (
        "t5",
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": 48,
            "num_layers": 2,
            "num_heads": 4,
            "d_ff": 64,
            "d_kv": 12,
        },
        _PAIRS,
    ),
    (
        "bart",
        "BartForConditionalGeneration",
        "BartConfig",
        {**_SEQ2SEQ, "max_position_embeddings": 64},
        _PAIRS,
    ),
    ("vit", "ViTModel", "ViTConfig", _VISION, _pixels(32)),
    ("deit", "DeiTModel", "DeiTConfig", _VISION, _pixels(32)),
    (
        "swin",
        "SwinModel",
        "SwinConfig",
        {
            "image_size": 32,
            "embed_dim": 24,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        _pixels(32),
    ),
    (
        "convnext",
        "ConvNextModel",
        "ConvNextConfig",
        {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]},
        _pixels(64),
    ),
    (
        "segformer",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "hidden_sizes": [16, 32, 40, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 8],
            "decoder_hidden_size": 32,
            "num_labels": 7,
        },
        _pixels(64),
    ),
    (
        "clip",
        "CLIPModel",
        "CLIPConfig",
        {"text_config": _TEXT_TOWER, "vision_config": _VISION, "projection_dim": 32},
        _clip_inputs,
    ),
    (
        "whisper",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **_SEQ2SEQ,
            "num_mel_bins": 16,
            "max_source_positions": 20,
            "max_target_positions": 40,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        _speech,
    ),
    (
        "detr",
        "DetrForObjectDetection",
        "DetrConfig",
        {
            **{k: v for k, v in _SEQ2SEQ.items() if k != "vocab_size"},
            "num_queries": 6,
            "use_timm_backbone": True,
            "use_pretrained_backbone": False,
            "backbone": "resnet18",
            "backbone_config": None,
        },
        _pixels(96),
    ),
    (
        "mamba",
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "state_size": 8},
        _FIXED_IDS,
    ),
    (
        "mixtral",
        "MixtralForCausalLM",
        "MixtralConfig",
        {
            **_GQA,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "experts_implementation": "batched_mm",  # the default takes no float64
        },
        _IDS,
    ),
)


def _huggingface() -> list[Entry]:
    return [_huggingface_entry(*row) for row in HUGGINGFACE]


def _huggingface_entry(
    name: str, model: str, config: str, options: Mapping[str, Any], inputs: Inputs
) -> Entry:
    def build() -> nn.Module:
        built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
        return built

    return Entry(f"huggingface/{name}", build, inputs)
