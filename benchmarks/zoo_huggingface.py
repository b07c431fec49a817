"""The sweep's models of Hugging Face, from small configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn

from benchmarks.zoo_entry import Entry, Inputs

VOCABULARY = 96


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
    config: Any = model.config  # the encoder takes frames of one length, two for each position
    shape = config.num_mel_bins, 2 * config.max_source_positions
    features = torch.randn(batch, *shape, dtype=torch.float64)
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
    (
        "prophetnet",
        "ProphetNetModel",
        "ProphetNetConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 48,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 64,
        },
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


def huggingface() -> list[Entry]:
    """All of them."""
    return [_huggingface_entry(*row) for row in HUGGINGFACE]


def published() -> list[Entry]:
    """The same architectures at the sizes that they were published with."""
    return [
        _huggingface_entry(name, model, config, {}, inputs)
        for name, model, config, _, inputs in HUGGINGFACE
    ]


def _huggingface_entry(
    name: str, model: str, config: str, options: Mapping[str, Any], inputs: Inputs
) -> Entry:
    def build() -> nn.Module:
        built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
        return built

    return Entry(f"huggingface/{name}", build, inputs)
