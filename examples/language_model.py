"""Prune a language model with grouped-query attention: heads go with the queries that they serve.

python -m examples.language_model
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fxprune


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,  # each key and value head serves two query heads
        use_cache=False,
    )
    model = LlamaForCausalLM(config).eval()
    tokens = torch.randint(config.vocab_size, (2, 12))
    traced = fxprune.trace(model, {"input_ids": tokens})
    analysis = fxprune.analyze(traced)

    # The groups of key and value heads are those that the groups of their query heads lie in.
    heads = {group.outer for group in analysis.groups if group.outer is not None}
    print(analysis.explain("model.layers.0.self_attn.k_proj"))
    plan = fxprune.plan(
        analysis,
        sparsity=0.5,
        groups=lambda group: group.name in heads or ".mlp." in group.name,
        limits={"*.mlp": fxprune.Limits(round_to=16)},
    )
    pruned = fxprune.rewrite(traced, plan)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj"):
        before, after = (m.get_submodule(f"model.layers.0.{name}") for m in (traced, pruned))
        print(f"{name}: {before.out_features} -> {after.out_features}")
    logits = pruned(tokens).logits
    print(f"logits: {tuple(logits.shape)}")
    longer = torch.randint(config.vocab_size, (3, 20))  # batch and length are free
    print(f"longer: {tuple(pruned(longer).logits.shape)}")


if __name__ == "__main__":
    main()
