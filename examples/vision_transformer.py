"""Prune whole heads and MLP units of a vision transformer; the width of its tokens stays.

python -m examples.vision_transformer
"""

from __future__ import annotations

import timm
import torch

import fxprune


def main() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_heads=6, depth=4).eval()
    images = torch.randn(2, 3, 64, 64)
    traced = fxprune.trace(model, images)
    analysis = fxprune.analyze(traced)

    # Head dimensions are groups nested in the groups of heads: what contains others are heads.
    heads = {group.outer for group in analysis.groups if group.outer is not None}
    mlps = {group.name for group in analysis.groups if ".mlp." in group.name}
    plan = fxprune.plan(
        analysis,
        sparsity=0.5,
        groups=lambda group: group.name in heads | mlps,
        limits={name: fxprune.Limits(sparsity=0.34) for name in heads},  # 2 of 6 heads
    )
    print(plan)
    pruned = fxprune.rewrite(traced, plan)
    before, after = (m.get_submodule("blocks.0.attn.qkv") for m in (traced, pruned))
    print(f"qkv of the first block: {before} -> {after}")
    print(f"heads: 6 -> {plan.kept(next(iter(sorted(heads)))).numel()}")
    print(f"parameters: {count(traced):,} -> {count(pruned):,}")
    print(f"logits of the pruned network: {tuple(pruned(images).shape)}")


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


if __name__ == "__main__":
    main()
