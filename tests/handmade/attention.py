"""Attention in the layouts that people write: how queries, keys and values come to their heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.handmade.table import Handmade, floats, joined, padding

INPUT, WIDTH, HEADS, INNER = 5, 14, 4, 6
Triple = tuple[Tensor, Tensor, Tensor]


class Attention(nn.Module):
    """Separate projections around softmax attention; subclasses replace one step each.

    Queries, keys and values are (batch, heads, tokens, head dimension).
    """

    kv_heads = HEADS

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(INPUT, WIDTH), nn.Linear(HEADS * INNER, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.project()

    def project(self) -> None:
        self.q = nn.Linear(WIDTH, HEADS * INNER)
        self.k = nn.Linear(WIDTH, self.kv_heads * INNER)
        self.v = nn.Linear(WIDTH, self.kv_heads * INNER)

    def heads(self, x: Tensor) -> Triple:
        batch, count, _ = x.shape
        layers = (self.q, self.k, self.v)
        q, k, v = (y(x).view(batch, count, -1, INNER).transpose(1, 2) for y in layers)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.matmul(q, k.transpose(-2, -1)) / INNER**0.5
        return torch.matmul(scores.softmax(-1), v)

    def join(self, y: Tensor) -> Tensor:
        batch, _, count, _ = y.shape
        return y.transpose(1, 2).reshape(batch, count, -1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.out(self.join(self.attend(*self.heads(x)))))


class FusedPermuted(Attention):
    """timm: reshape(B, N, 3, H, D), permuted, unbound."""

    def project(self) -> None:
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * INNER)

    def heads(self, x: Tensor) -> Triple:
        batch, count, _ = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, HEADS, INNER).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return q, k, v


class FusedIndexed(FusedPermuted):
    """The same, but indexed; and head dimension by shape."""

    def heads(self, x: Tensor) -> Triple:
        batch, count, _ = x.shape
        qkv = self.qkv(x)
        qkv = qkv.reshape(batch, count, 3, HEADS, qkv.shape[-1] // HEADS // 3)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]


class FusedChunked(FusedPermuted):
    """chunk(3, -1), each part viewed."""

    def heads(self, x: Tensor) -> Triple:
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (p.unflatten(-1, (HEADS, INNER)).transpose(1, 2) for p in parts)
        return q, k, v


class FusedSplit(FusedPermuted):
    """GPT-2: split by width."""

    def heads(self, x: Tensor) -> Triple:
        batch, count, _ = x.shape
        parts = self.qkv(x).split(HEADS * INNER, dim=2)
        q, k, v = (p.view(batch, count, HEADS, INNER).transpose(1, 2) for p in parts)
        return q, k, v


class FusedSliced(FusedPermuted):
    """Slices of the fused result."""

    def heads(self, x: Tensor) -> Triple:
        y, width = self.qkv(x), HEADS * INNER
        parts = y[..., :width], y[..., width : 2 * width], y[..., 2 * width :]
        q, k, v = (p.reshape(*p.shape[:2], HEADS, INNER).permute(0, 2, 1, 3) for p in parts)
        return q, k, v


class Interleaved(FusedPermuted):
    """BLOOM: (H, 3, D), selected."""

    def heads(self, x: Tensor) -> Triple:
        qkv = self.qkv(x).view(*x.shape[:2], HEADS, 3, INNER)
        q, k, v = qkv[..., 0, :], qkv[..., 1, :], qkv[..., 2, :]
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class InterleavedChunked(FusedPermuted):
    """GPT-NeoX: (H, 3*D), chunked."""

    def heads(self, x: Tensor) -> Triple:
        qkv = self.qkv(x).view(*x.shape[:2], HEADS, 3 * INNER).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=-1)
        return q, k, v


class InterleavedLast(FusedPermuted):
    """TNT-like: (H, D, 3): every third feature of a head."""

    def heads(self, x: Tensor) -> Triple:
        qkv = self.qkv(x).view(*x.shape[:2], HEADS, INNER, 3).permute(4, 0, 2, 1, 3)
        return qkv[0], qkv[1], qkv[2]


class HeadFirst(Attention):
    """fairseq: (batch * heads, tokens, head dimension) through bmm, length before batch."""

    def heads(self, x: Tensor) -> Triple:
        batch, count, _ = x.shape
        x = x.transpose(0, 1)
        layers = (self.q, self.k, self.v)
        q, k, v = (
            y(x).contiguous().view(count, batch * HEADS, INNER).transpose(0, 1) for y in layers
        )
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.bmm(F.softmax(torch.bmm(q * INNER**-0.5, k.transpose(1, 2)), -1), v)

    def join(self, y: Tensor) -> Tensor:
        rows, count, _ = y.shape
        y = y.transpose(0, 1).contiguous().view(count, rows // HEADS, HEADS * INNER)
        return y.transpose(0, 1)


class HeadProjections(Attention):
    """One Linear per head, concatenated, as in minGPT's ancestors."""

    def project(self) -> None:
        self.layers = nn.ModuleList(nn.Linear(WIDTH, 3 * INNER) for _ in range(HEADS))

    def heads(self, x: Tensor) -> Triple:
        q, k, v = torch.stack([layer(x) for layer in self.layers], 1).chunk(3, -1)
        return q, k, v


class BareHeads(Attention):
    """Projections as bare (H, C, D) parameters through einsum, T5X and JAX ports."""

    def project(self) -> None:
        self.q, self.k, self.v = (nn.Parameter(torch.randn(HEADS, WIDTH, INNER)) for _ in range(3))
        self.back = nn.Parameter(torch.randn(HEADS, INNER, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (torch.einsum("btc,hcd->bhtd", x, w) for w in (self.q, self.k, self.v))
        return self.head(x + torch.einsum("bhtd,hdc->btc", self.attend(q, k, v), self.back))

    def __init__(self) -> None:
        super().__init__()
        del self.out


class GroupedInterleave(Attention):
    """Two queries share a key-value head, repeated by repeat_interleave."""

    kv_heads = 2

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        groups = HEADS // self.kv_heads
        return super().attend(q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1))


class GroupedExpand(GroupedInterleave):
    """Hugging Face's repeat_kv: expanded and reshaped."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return Attention.attend(self, q, self.repeated(k), self.repeated(v))

    def repeated(self, x: Tensor) -> Tensor:
        batch, heads, count, inner = x.shape
        x = x[:, :, None, :, :].expand(batch, heads, 2, count, inner)
        return x.reshape(batch, heads * 2, count, inner)


class GroupedByView(GroupedInterleave):
    """Queries are viewed as (key-value head, query); keys are broadcast, by einsum."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, _, count, inner = q.shape
        q = q.view(batch, self.kv_heads, 2, count, inner)
        scores = torch.einsum("bgrid,bgjd->bgrij", q, k) * INNER**-0.5
        return torch.einsum("bgrij,bgjd->bgrid", scores.softmax(-1), v).flatten(1, 2)


class GroupedNative(GroupedInterleave):
    """torch's own grouped attention."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class MultiQuery(Attention):
    """One key-value head for all, broadcast."""

    kv_heads = 1


class MultiQueryFused(Attention):
    """Falcon: all queries, one key and one value in a fused projection."""

    def project(self) -> None:
        self.qkv = nn.Linear(WIDTH, (HEADS + 2) * INNER)

    def heads(self, x: Tensor) -> Triple:
        qkv = self.qkv(x).view(*x.shape[:2], HEADS + 2, INNER).transpose(1, 2)
        return qkv[:, :-2], qkv[:, -2:-1], qkv[:, -1:]


class Normalised(Attention):
    """Queries and keys are normalised over the head dimension, by maps that all heads share."""

    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = nn.LayerNorm(INNER), nn.RMSNorm(INNER)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(self.q_norm(q), self.k_norm(k), v)


class Cosine(Attention):
    """Swin v2: cosine attention with a learned scale per head, clamped."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.randn(HEADS, 1, 1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return (scores * self.logit_scale.clamp(max=4.6).exp()).softmax(-1) @ v


class HeadScales(Attention):
    """NormFormer: a gain per head, and one per feature of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(HEADS))
        self.features = nn.Parameter(torch.randn(HEADS, 1, INNER))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = super().attend(q * self.features, k, v)
        return torch.einsum("bhtd,h->bhtd", y, self.gain)


class Masked(Attention):
    """SDPA with a padding mask and a causal one, made outside."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        x = self.embed(x)
        count = x.shape[1]
        causal = torch.ones(count, count, dtype=torch.bool).tril()
        keep = causal & ~mask[:, None, None, :]
        y = F.scaled_dot_product_attention(*self.heads(x), attn_mask=keep, dropout_p=0.0)
        return self.head(x + self.out(self.join(y)))


class Causal(Attention):
    """SDPA with is_causal and a scale of its own."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)


class ChannelGram(Attention):
    """XCiT: features of a head attend to each other; a temperature per head."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(HEADS, 1, 1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (F.normalize(y, dim=-2) for y in (q, k))
        scores = (q.transpose(-2, -1) @ k * self.temperature).softmax(-1)
        return (scores @ v.transpose(-2, -1)).transpose(-2, -1)


SEQUENCES = floats(x=(2, 9, INPUT)), floats(x=(3, 13, INPUT))
FUSED = {"qkv.weight:0": "4 4x6 4x6"}
SEPARATE = {"q.weight:0": "4 4x6", "k.weight:0": "4 4x6", "v.weight:0": "4 4x6"}
PLAIN = "4 14 4x6 4x6"
# The queries that a key-value head serves may differ between the key-value heads.
GROUPED = {"q.weight:0": "2 2x2 2x6", "k.weight:0": "2 2x6", "v.weight:0": "2 2x6"}


def separate(build: type[Attention], groups: str = PLAIN) -> Handmade:
    return Handmade(build, *SEQUENCES, groups, SEPARATE)


def fused(build: type[Attention], groups: str = PLAIN) -> Handmade:
    return Handmade(build, *SEQUENCES, groups, FUSED)


def grouped(build: type[Attention]) -> Handmade:
    return Handmade(build, *SEQUENCES, "2 14 2x2 2x6 2x6", GROUPED)


MODELS = {
    "separate_projections": separate(Attention),
    "fused_permuted": fused(FusedPermuted),
    "fused_indexed": fused(FusedIndexed),
    "fused_chunked": fused(FusedChunked),
    "fused_split": fused(FusedSplit),
    "fused_sliced": fused(FusedSliced),
    "interleaved": fused(Interleaved),
    "interleaved_chunked": fused(InterleavedChunked),
    "interleaved_last": Handmade(
        InterleavedLast,
        *SEQUENCES,
        PLAIN,
        FUSED,
        limit="every third row is a query's: a product cannot hold parts that interleave",
    ),
    "head_first": separate(HeadFirst),
    "head_projections": Handmade(HeadProjections, *SEQUENCES, "6 6 14"),
    "bare_heads": Handmade(
        BareHeads,
        *SEQUENCES,
        PLAIN,
        {"q:0": "4", "q:2": "4x6", "v:2": "4x6"},
    ),
    "grouped_interleave": grouped(GroupedInterleave),
    "grouped_expand": grouped(GroupedExpand),
    "grouped_by_view": grouped(GroupedByView),
    "grouped_native": grouped(GroupedNative),
    "multi_query": Handmade(MultiQuery, *SEQUENCES, "4 6 6 14", {"q.weight:0": "4 6"}),
    "multi_query_fused": Handmade(MultiQueryFused, *SEQUENCES, "4 6 6 14"),
    "normalised": Handmade(Normalised, *SEQUENCES, "4 6 14 4x6", {"q.weight:0": "4 6"}),
    "cosine": separate(Cosine),
    "head_scales": separate(HeadScales),
    "masked": Handmade(
        Masked,
        joined(floats(x=(2, 9, INPUT)), padding(mask=(2, 9))),
        joined(floats(x=(3, 13, INPUT)), padding(mask=(3, 13))),
        PLAIN,
        SEPARATE,
    ),
    "causal": separate(Causal),
    "channel_gram": Handmade(
        ChannelGram, *SEQUENCES, PLAIN, {"q.weight:0": "4 4x6", "k.weight:0": "4 4x6"}
    ),
}
