"""torch's own transformer modules, with masks, and cross attention of other widths."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.handmade.table import VOCABULARY, Handmade, Inputs, floats, joined, padding, tokens

WIDTH, HEADS = 24, 4


class Translation(nn.Module):
    """`nn.Transformer` with learned positions, a causal mask and padding masks."""

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(VOCABULARY, WIDTH)
        self.target = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.randn(64, WIDTH))
        self.body = nn.Transformer(WIDTH, HEADS, 1, 1, 20, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor, source_padding: Tensor) -> Tensor:
        length = target.shape[1]
        causal = nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.float64)
        x = self.source(source) + self.positions[: source.shape[1]]
        y = self.target(target) + self.positions[:length]
        y = self.body(
            x,
            y,
            tgt_mask=causal,
            src_key_padding_mask=source_padding,
            memory_key_padding_mask=source_padding,
            tgt_is_causal=True,
        )
        return self.head(y)


class Encoder(nn.Module):
    """`nn.TransformerEncoder`, normalised first, length before batch, a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 20, activation="gelu", norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = self.embed(x)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1).transpose(0, 1)
        padding = torch.cat([padding.new_zeros(padding.shape[0], 1), padding], 1)
        return self.head(self.body(x, src_key_padding_mask=padding)[0])


class Queries(nn.Module):
    """`nn.TransformerDecoder` of learned queries, as in DETR; class and box heads."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.query = nn.Embedding(6, WIDTH)
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 20, batch_first=True)
        self.body = nn.TransformerDecoder(layer, 2)
        self.classes = nn.Linear(WIDTH, 3)
        self.boxes = nn.Sequential(nn.Linear(WIDTH, 10), nn.ReLU(), nn.Linear(10, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        memory = self.features(x).flatten(2).transpose(1, 2)
        queries = self.query.weight.unsqueeze(0).repeat(x.shape[0], 1, 1)
        y = self.body(queries, memory)
        return {"logits": self.classes(y), "boxes": self.boxes(y).sigmoid()}


class Cross(nn.Module):
    """Cross attention with keys and values of other widths, and its weights returned."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(5, WIDTH), nn.Linear(6, 10)
        self.value = nn.Linear(6, 14)
        self.attend = nn.MultiheadAttention(WIDTH, HEADS, kdim=10, vdim=14, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attend(
            self.query(x), self.key(context), self.value(context), key_padding_mask=mask
        )
        return self.head(y), weights


class Biased(nn.Module):
    """Self attention with an added float mask, biases for keys and values, a zero attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        self.attend = nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True, add_zero_attn=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        mask = torch.full((length, length), -2.0, dtype=x.dtype).triu(1)
        y = self.embed(x).transpose(0, 1)
        y, _ = self.attend(y, y, y, attn_mask=mask, need_weights=False)
        return self.head(y.mean(0))


def _memory(batch: int, length: int, steps: int) -> Inputs:
    parts = floats(x=(batch, length, 5)), floats(context=(batch, steps, 6))
    return joined(*parts, padding(mask=(batch, steps)))()


def _sentences(batch: int, source: int, target: int) -> Inputs:
    ids = tokens(source=(batch, source), target=(batch, target))
    return joined(ids, padding(source_padding=(batch, source)))()


FUSED = "4 4x6 4x6"

MODELS = {
    "transformer": Handmade(
        Translation,
        lambda: _sentences(2, 9, 7),
        lambda: _sentences(3, 13, 11),
        "4 4 4 20 20 24 4x6 4x6 4x6 4x6 4x6 4x6",
        {
            "body.encoder.layers.0.self_attn.in_proj_weight:0": FUSED,
            "body.decoder.layers.0.self_attn.in_proj_weight:0": FUSED,
            "body.decoder.layers.0.multihead_attn.in_proj_weight:0": FUSED,
        },
    ),
    "transformer_encoder": Handmade(
        Encoder,
        joined(floats(x=(2, 9, 5)), padding(padding=(2, 9))),
        joined(floats(x=(3, 13, 5)), padding(padding=(3, 13))),
        "4 4 20 20 24 4x6 4x6 4x6 4x6",
        {"body.layers.1.self_attn.in_proj_weight:0": FUSED},
    ),
    "transformer_decoder": Handmade(
        Queries,
        floats(x=(2, 3, 16, 16)),
        floats(x=(3, 3, 24, 16)),
        "4 4 4 4 10 20 20 24 4x6 4x6 4x6 4x6 4x6 4x6 4x6 4x6",
        {"body.layers.1.multihead_attn.in_proj_weight:0": FUSED},
    ),
    "cross_attention": Handmade(
        Cross,
        lambda: _memory(2, 9, 7),
        lambda: _memory(3, 13, 11),
        "4 10 14 24 24 4x6 4x6",
        {"attend.q_proj_weight:0": "4 4x6", "attend.v_proj_weight:0": "4 4x6"},
    ),
    "biased_attention": Handmade(
        Biased,
        floats(x=(2, 9, 5)),
        floats(x=(3, 13, 5)),
        "4 24 24 4x6 4x6",
        {"attend.in_proj_weight:0": FUSED, "attend.bias_k:2": "4 4x6"},
    ),
}
