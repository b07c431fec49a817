"""Forward latency of pruned networks beside the same widths written by hand.

    python -m benchmarks.latency

Half of every group is removed; then the network's own class is built at the widths that are left
and takes over the pruned weights: torchvision's ResNet-50 and ViT-B/16, and Hugging Face's Llama
with grouped-query attention. In float64 both must compute the same, else nothing is timed. Then
their forwards alternate in float32, in eval and inference mode, on one thread; which one is first
changes from pair to pair. Times are CPU time: wall time would measure what else the machine does.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, fx, nn
from tqdm import tqdm

from tests import torchvision_shim  # noqa: F401  (before torchvision)

# isort: split
import torchvision
import transformers

import fxprune
from tests.zoo import checks

PAIRS = 40
TOLERANCE = 1e-9
RESULTS = Path(__file__).parent / "results" / "latency.json"

Found = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A network to prune, its inputs, and how a person would write the result.

    by_hand  makes, from the pruned module, the network's class at the pruned widths and weights
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    by_hand: Callable[[nn.Module], nn.Module]


# -- how a person would write the result -----------------------------------------------------------


def _resnet(pruned: nn.Module) -> nn.Module:
    """Torchvision's ResNet-50 with layers of the pruned widths."""
    model = torchvision.models.resnet50()
    for name, layer in pruned.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            model.set_submodule(name, copy.deepcopy(layer))
    return model


VIT = {"image_size": 224, "patch_size": 16, "num_layers": 12, "num_heads": 12}


def _vit(pruned: nn.Module) -> nn.Module:
    """Torchvision's ViT of half the width. Its attention divides by the root of its own head size.

    The pruned network divides by the root of the original one: the queries make up for that.
    """
    model = torchvision.models.VisionTransformer(**VIT, hidden_dim=384, mlp_dim=1536).double()
    model.load_state_dict(pruned.state_dict())
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            with torch.no_grad():
                for parameter in (module.in_proj_weight, module.in_proj_bias):
                    parameter[: module.embed_dim] *= (32 / 64) ** 0.5
    return model


LLAMA: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "use_cache": False,
}


def _llama(heads: int, head_size: int, hidden: int) -> nn.Module:
    config = transformers.LlamaConfig(
        **LLAMA,
        num_attention_heads=heads,
        num_key_value_heads=4,
        head_dim=head_size,
        intermediate_size=hidden,
    )
    return transformers.LlamaModel(config)


def _small_llama(pruned: nn.Module) -> nn.Module:
    """Llama with half the queries' heads, head size and hidden width; the original's scale."""
    model = _llama(8, 32, 1408).double()
    model.load_state_dict(pruned.state_dict())
    model.rotary_emb.inv_freq = pruned.rotary_emb.inv_freq.clone()
    for layer in model.layers:
        layer.self_attn.scaling = 64**-0.5
    return model


def _image() -> dict[str, Tensor]:
    return {"x": torch.randn(1, 3, 224, 224, dtype=torch.float64)}


CASES = (
    Case("ResNet-50, one image", torchvision.models.resnet50, _image, _resnet),
    Case(
        "ViT-B/16, one image",
        lambda: torchvision.models.VisionTransformer(**VIT, hidden_dim=768, mlp_dim=3072),
        _image,
        _vit,
    ),
    Case(
        "Llama, 4 blocks, 2 x 128 tokens",
        lambda: _llama(16, 64, 2816),
        lambda: {"input_ids": torch.randint(0, 1000, (2, 128))},
        _small_llama,
    ),
)


# -- measuring -------------------------------------------------------------------------------------


def prepare(
    case: Case, dtype: torch.dtype
) -> tuple[fx.GraphModule, nn.Module, dict[str, Tensor], float]:
    """The pruned module, the one by hand, the inputs, and how far apart their outputs are."""
    torch.manual_seed(0)
    model, inputs = case.build().double().eval(), case.inputs()
    model = checks.enliven(model, inputs).to(dtype)
    inputs = {n: x.to(dtype) if x.is_floating_point() else x for n, x in inputs.items()}
    pruned = fxprune.prune(model, inputs, sparsity=0.5).module.eval()
    by_hand = case.by_hand(pruned).to(dtype).eval()
    with torch.inference_mode():
        ours, theirs = checks.run(pruned, inputs), checks.run(by_hand, inputs)
    return pruned, by_hand, inputs, checks.relative_error(ours, theirs)


def _seconds(module: nn.Module, inputs: dict[str, Tensor]) -> float:
    start = time.process_time()
    module(**inputs)
    return time.process_time() - start


def measure(case: Case) -> Found:
    """The seconds of every pair; ValueError if the two do not compute the same."""
    *_, error = prepare(case, torch.float64)
    if not error <= TOLERANCE:
        raise ValueError(f"{case.name}: by hand, the outputs differ by {error:.1e}")
    pruned, by_hand, inputs, _ = prepare(case, torch.float32)
    pairs = []
    with torch.inference_mode():
        for count in tqdm(range(PAIRS + 3), desc=case.name, file=sys.stderr):
            order = [pruned, by_hand] if count % 2 else [by_hand, pruned]
            taken = {id(module): _seconds(module, inputs) for module in order}
            pairs.append((taken[id(pruned)], taken[id(by_hand)]))
    pairs = pairs[3:]  # the first ones warm up
    return {
        "case": case.name,
        "error": error,
        "pruned": [a for a, _ in pairs],
        "by_hand": [b for _, b in pairs],
    }


def markdown(rows: Sequence[Found]) -> str:
    """The table: medians, the median ratio of the pairs and the middle half of the ratios."""
    lines = []
    for row in rows:
        ratios = [a / b for a, b in zip(row["pruned"], row["by_hand"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        lines.append(
            [
                row["case"],
                f"{row['error']:.0e}",
                f"{1000 * statistics.median(row['pruned']):.1f}",
                f"{1000 * statistics.median(row['by_hand']):.1f}",
                f"{middle:.3f}",
                f"{low:.3f} – {high:.3f}",
            ]
        )
    headers = ["network", "difference", "pruned ms", "by hand ms", "ratio"]
    headers.append(f"middle half of {PAIRS} pairs")
    return tabulate(lines, headers, "github", disable_numparse=True) + "\n"


def main() -> int:
    torch.set_num_threads(1)
    rows = [measure(case) for case in CASES]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
