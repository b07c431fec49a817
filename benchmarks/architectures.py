"""Every architecture of transformers, as far as small configurations can be made by rule.

    python -m benchmarks.architectures                # all of them, ten minutes of one core
    python -m benchmarks.architectures llama swin     # some

The zoo has chosen models with fitting inputs; this is the other way round: nobody chose. Each
configuration class gets small sizes under the names that configurations use, with one of two sets
of sizes; what runs in eager mode is traced, pruned to half its units at random, and verified in
float64 at another batch size. What does not run is counted: mostly sizes that do not fit together,
or inputs of several kinds.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from tabulate import tabulate
from torch import nn
from tqdm import tqdm
from transformers.models.auto.modeling_auto import MODEL_MAPPING

import fxprune
from tests import torchvision_shim  # noqa: F401

RESULTS = Path(__file__).parent / "results" / "architectures.json"
LIMIT = 150  # seconds for one model
LARGEST = 30_000_000  # parameters
VOCABULARY = 96
IMAGE = 64

_WIDTHS = "hidden_size d_model n_embd dim embedding_size emb_dim embed_dim attention_hidden_size"
_DEPTHS = """num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers
num_encoder_layers num_decoder_layers"""
_HEADS = """num_attention_heads n_head num_heads n_heads encoder_attention_heads
decoder_attention_heads"""
_HIDDEN = """intermediate_size d_ff encoder_ffn_dim decoder_ffn_dim ffn_dim n_inner hidden_dim
ffn_hidden_size"""
SIZES: Mapping[str, Any] = {
    **dict.fromkeys(_WIDTHS.split(), 32),
    **dict.fromkeys(_DEPTHS.split(), 2),
    **dict.fromkeys(_HEADS.split(), 4),
    **dict.fromkeys(_HIDDEN.split(), 64),
    **dict.fromkeys("num_local_experts num_experts n_routed_experts".split(), 4),
    **dict.fromkeys("q_lora_rank kv_lora_rank num_conv_pos_embeddings".split(), 16),
    **dict.fromkeys("head_dim d_kv v_head_dim state_size".split(), 8),
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1, "vocab_size": VOCABULARY, "max_position_embeddings": 128,
    "n_positions": 128, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "image_size": IMAGE, "patch_size": 16, "conv_dim": (32, 32, 32), "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3), "num_feat_extract_layers": 3, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
VARIANTS: Sequence[Mapping[str, Any]] = (
    {"num_key_value_heads": 2, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
    {"num_key_value_heads": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
)
"""Sizes that fit some configurations and not others."""

Row = dict[str, Any]


def shrink(config: transformers.PretrainedConfig, sizes: Mapping[str, Any]) -> None:
    """Give a configuration, and those in it, the sizes that it has a name for."""
    for name, size in sizes.items():
        known = getattr(config, name, None)
        listed = isinstance(known, (list, tuple)) and not name.startswith("conv_")
        tiny = name == "patch_size" and isinstance(known, int) and known <= 4
        if hasattr(config, name) and known is not None and not listed and not tiny:
            setattr(config, name, size)
    config._experts_implementation = "batched_mm"  # the default takes no float64
    for part in vars(config).values():
        if isinstance(part, transformers.PretrainedConfig):
            shrink(part, sizes)


def inputs_of(model: nn.Module, batch: int) -> dict[str, torch.Tensor]:
    """Tokens, images, videos or sounds, as the parameters of forward say."""
    config: Any = model.config
    names = inspect.signature(model.forward).parameters
    size = getattr(config, "image_size", IMAGE)
    size = size if isinstance(size, int) else IMAGE
    channels = getattr(config, "num_channels", 3)
    frames = getattr(config, "num_frames", 8)

    def real(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, dtype=torch.float64)

    made: dict[str, torch.Tensor] = {}
    main = str(getattr(model, "main_input_name", "input_ids"))
    if "pixel_values_videos" in names and "pixel_values" not in names:
        made["pixel_values_videos"] = real(frames, channels, size, size)
    elif main == "pixel_values" and hasattr(config, "num_frames"):
        made[main] = real(frames, channels, size, size)
    elif main == "pixel_values" or ("pixel_values" in names and "input_ids" not in names):
        made["pixel_values"] = real(channels, size, size)
    elif main == "input_values":
        made[main] = real(4000)
    elif main == "input_features":
        made[main] = real(config.num_mel_bins, 2 * config.max_source_positions)
    else:
        made["input_ids"] = torch.randint(3, VOCABULARY, (batch, 12))
        if hasattr(config, "vision_config"):
            made["pixel_values"] = real(channels, size, size)
    if "decoder_input_ids" in names:
        made["decoder_input_ids"] = torch.randint(3, VOCABULARY, (batch, 7))
    return made


def build(config_class: Any, variant: Mapping[str, Any]) -> nn.Module:
    """A small model in float64 that runs in eager mode, with weights that leave nothing at zero."""
    config = config_class()
    shrink(config, {**SIZES, **variant})
    found = MODEL_MAPPING[config_class]
    torch.manual_seed(0)
    model: nn.Module = (found[0] if isinstance(found, (list, tuple)) else found)(config)
    if sum(p.numel() for p in model.parameters()) > LARGEST:
        raise ValueError("it stays large")
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2 and parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model(**inputs_of(model, 2))
    return model


def check(model: nn.Module) -> Row:
    """Trace, prune at random, and verify at another batch size, or at the same if it must be."""
    example = inputs_of(model, 2)
    traced = fxprune.trace(model, example)
    analysis = fxprune.analyze(traced)
    plan = fxprune.plan(analysis, criterion="random", sparsity=0.5)
    pruned = fxprune.rewrite(traced, plan)
    free = all(0 in dims for dims in traced.meta["fxprune"].dynamic.values())
    other = inputs_of(model, 3) if free else example
    proof = fxprune.verify(traced, plan, pruned, other)
    return {
        "outcome": "right" if proof.ok else "WRONG",
        "law": proof.law,
        "error": proof.max_error,
        "groups": len(analysis.groups),
        "free batch": free,
        "reason": None if proof.ok else str(proof),
    }


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"it takes longer than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def measure(config_class: Any) -> Row:
    """One architecture: what became of it."""
    start = time.process_time()
    row: Row = {"architecture": config_class.model_type}
    try:
        with _limited(LIMIT):
            row |= _tried(config_class)
    except TimeoutError as error:
        row |= {"outcome": "refused", "reason": str(error)}
    return row | {"seconds": round(time.process_time() - start, 1)}


def _tried(config_class: Any) -> Row:
    why = ""
    for variant in VARIANTS:
        try:
            model = build(config_class, variant)
        except TimeoutError:
            raise
        except Exception as error:  # whatever a model does with sizes that do not fit
            why = why or f"{type(error).__name__}: {error}"
            continue
        try:
            return check(model)
        except TimeoutError:
            raise
        except Exception as error:  # one that is not ours is a fault
            outcome = "refused" if isinstance(error, fxprune.FxpruneError) else "WRONG"
            return {"outcome": outcome, "reason": f"{type(error).__name__}: {error}"}
    return {"outcome": "does not run in eager mode", "reason": why}


def markdown(rows: Sequence[Row]) -> str:
    """The counts, what is wrong or refused and why, and what is right."""
    counts = Counter(row["outcome"] for row in rows)
    right = [row for row in rows if row["outcome"] == "right"]
    bad = [row for row in rows if row["outcome"] in ("WRONG", "refused")]
    table = [[r["architecture"], r["outcome"], _short(r["reason"])] for r in bad]
    parts = [
        "# Architectures of transformers",
        f"Made by `python -m benchmarks.architectures` (transformers {transformers.__version__}, "
        f"torch {torch.__version__}). Small configurations made by rule, random weights, half of "
        "all units removed at random, verified in float64 at another batch size where the batch "
        "is free.",
        tabulate(counts.most_common(), ["outcome", "architectures"], "github"),
        f"Largest relative error of those that are right: {max(r['error'] for r in right):.1e}; "
        f"{sum(not r['free batch'] for r in right)} of them only run at the batch size that they "
        "were traced at.",
        tabulate(table, ["architecture", "outcome", "reason"], "github"),
        "Right: " + ", ".join(row["architecture"] for row in right) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _short(text: str) -> str:
    first = re.sub(r"\S*/site-packages/", "", text.splitlines()[0]).replace("|", "\\|")
    return first if len(first) <= 300 else f"{first[:297]}..."


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="model types")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    classes = sorted({c.model_type: c for c in MODEL_MAPPING}.items())
    chosen = [c for name, c in classes if not options.names or name in options.names]
    rows = [measure(config_class) for config_class in tqdm(chosen, unit="model")]
    options.output.write_text(json.dumps(rows, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(markdown(rows))
    print(tabulate(Counter(r["outcome"] for r in rows).most_common()))
    return int(any(row["outcome"] == "WRONG" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
