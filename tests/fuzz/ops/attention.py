"""Attention in the layouts that people write: how queries, keys and values come to their heads."""

from __future__ import annotations

from tests.fuzz.program import Builder, Value
from tests.fuzz.table import op, project, projection


def attend(b: Builder, q: object, k: object, v: object, inner: int) -> str:
    """Softmax attention over the last two dimensions, in one of its spellings."""
    if b.flag():
        return f"F.scaled_dot_product_attention({q}, {k}, {v})"
    scale = b.pick((f"/ {inner} ** 0.5", f"* {inner} ** -0.5", f"/ math.sqrt({inner})"))
    return f"({q} @ {k}.transpose(-2, -1) {scale}).softmax(-1) @ {v}"


def joined(b: Builder, x: Value, heads: str, out: int) -> None:
    """Heads (batch, heads, tokens, dimension) back to tokens, through an output layer."""
    y = b.temp("BNTD", heads)
    tokens = f"{y}.transpose(1, 2)"
    width = y["N"] * y["D"]
    flat = b.pick((f"{tokens}.flatten(2)", f"{tokens}.reshape({x}.shape[0], -1, {width})"))
    b.emit("BTC", project(b, b.temp("BTC", flat), out))


def sizes(b: Builder) -> tuple[int, int]:
    """Numbers of heads and of dimensions in each."""
    return b.between(1, 3), b.between(1, 4)


@op("BTC")
def attention(b: Builder, x: Value) -> None:
    """Three layers; keys and values may come from another sequence."""
    heads, inner = sizes(b)
    other = b.use(b.pick([v for v in b.values if v.kind == "BTC"])) if b.flag() else x
    parts = []
    for source in (x, other, other):
        layer = b.temp("BTC", project(b, source, heads * inner, b.flag()))
        view = f"{layer}.view({source}.shape[0], -1, {heads}, {inner})"
        parts.append(b.temp("BNTD", f"{view}.transpose(1, 2)"))
    joined(b, x, attend(b, *parts, inner), x["C"])


@op("BTC")
def fused_attention(b: Builder, x: Value) -> None:
    """timm's: one layer, reshaped to (3, heads, dimension), unbound or indexed."""
    heads, inner = sizes(b)
    qkv = b.temp("BTC", project(b, x, 3 * heads * inner))
    grid = f"{qkv}.reshape({x}.shape[0], {x}.shape[1], 3, {heads}, {b.size(qkv, 'C', 3 * heads)})"
    five = b.temp("3BNTD", f"{grid}.permute(2, 0, 3, 1, 4)")
    if b.flag():
        q, k, v = b.temps(("BNTD",) * 3, f"{five}.unbind(0)")
        joined(b, x, attend(b, q, k, v, inner), x["C"])
    else:
        joined(b, x, attend(b, f"{five}[0]", f"{five}[1]", f"{five}[2]", inner), x["C"])


@op("BTC")
def chunked_attention(b: Builder, x: Value) -> None:
    """The fused result is chunked, split or sliced."""
    heads, inner = sizes(b)
    width = heads * inner
    qkv = b.temp("BTC", project(b, x, 3 * width))
    cuts = (
        f"{qkv}.chunk(3, dim=-1)",
        f"{qkv}.split({width}, dim=2)",
        f"{qkv}[..., :{width}], {qkv}[..., {width}:{2 * width}], {qkv}[..., {2 * width}:]",
    )
    parts = b.temps(("BTC",) * 3, b.pick(cuts))
    shaped = [f"{p}.unflatten(-1, ({heads}, {inner})).transpose(1, 2)" for p in parts]
    joined(b, x, attend(b, *temps(b, shaped), inner), x["C"])


def temps(b: Builder, sources: list[str]) -> list[Value]:
    return [b.temp("BNTD", source) for source in sources]


@op("BTC")
def interleaved_attention(b: Builder, x: Value) -> None:
    """Heads outside: (heads, 3, dimension) as BLOOM, or (heads, dimension, 3)."""
    heads, inner = sizes(b)
    qkv = b.temp("BTC", project(b, x, 3 * heads * inner))
    if b.flag():
        grid = b.temp("BTN3D", f"{qkv}.view(*{x}.shape[:2], {heads}, 3, {inner})")
        parts = [f"{grid}[..., {i}, :].transpose(1, 2)" for i in range(3)]
    else:
        grid = b.temp("BTND3", f"{qkv}.view(*{x}.shape[:2], {heads}, {inner}, 3)")
        parts = [f"{grid}[..., {i}].transpose(1, 2)" for i in range(3)]
    joined(b, x, attend(b, *temps(b, parts), inner), x["C"])


@op("BTC")
def grouped_query_attention(b: Builder, x: Value) -> None:
    """Several query heads share a key-value head, repeated or expanded; one head is MQA's."""
    heads, inner = sizes(b)
    times = b.between(2, 3)
    q = b.temp("BNTD", headed(b, x, heads * times, inner))
    parts = [q]
    spelling = b.choose(2)
    for _ in range(2):
        part = b.temp("BNTD", headed(b, x, heads, inner))
        if spelling:
            wide = f"{part}[:, :, None].expand(-1, -1, {times}, -1, -1)"
            parts.append(b.temp("BNTD", f"{wide}.flatten(1, 2)"))
        else:
            parts.append(b.temp("BNTD", f"{part}.repeat_interleave({times}, dim=1)"))
    joined(b, x, attend(b, *parts, inner), x["C"])


def headed(b: Builder, x: Value, heads: int, inner: int) -> str:
    y = project(b, x, heads * inner, b.flag())
    return f"{y}.view({x}.shape[0], {x}.shape[1], {heads}, {inner}).transpose(1, 2)"


@op("BTC")
def rotary_attention(b: Builder, x: Value) -> None:
    """Queries and keys are rotated by tables, by halves or by neighbours."""
    heads, inner = b.between(1, 2), 2 * b.between(1, 2)
    cos, sin = (b.buffer(f"torch.randn({x['T']}, {inner})") for _ in range(2))
    rotated = []
    by_halves = b.flag()
    for _ in range(2):
        y = b.temp("BNTD", headed(b, x, heads, inner))
        if by_halves:
            half = b.pick((f"{inner // 2}", f"{y}.shape[-1] // 2"))
            turned = f"torch.cat([-{y}[..., {half}:], {y}[..., :{half}]], -1)"
        else:
            turned = f"torch.stack([-{y}[..., 1::2], {y}[..., ::2]], -1).flatten(-2)"
        rotated.append(b.temp("BNTD", f"{y} * {cos} + {turned} * {sin}"))
    v = b.temp("BNTD", headed(b, x, heads, b.between(1, 3)))
    joined(b, x, attend(b, *rotated, v, inner), x["C"])


@op("BTC")
def talking_heads(b: Builder, x: Value) -> None:
    """Scores are mixed between heads."""
    heads, inner = sizes(b)
    q, k, v = (b.temp("BNTD", headed(b, x, heads, inner)) for _ in range(3))
    scores = b.temp("BNTD", f"{q} @ {k}.transpose(-2, -1) * {inner} ** -0.5")
    mixed = f"{b.layer(f'nn.Linear({heads}, {heads})')}({scores}.permute(0, 2, 3, 1))"
    joined(b, x, f"{mixed}.permute(0, 3, 1, 2).softmax(-1) @ {v}", x["C"])


@op("BTC")
def einsum_attention(b: Builder, x: Value) -> None:
    """Bare (heads, channels, dimension) parameters and einsum throughout."""
    heads, inner = sizes(b)
    weights = [b.parameter(heads, x["C"], inner) for _ in range(3)]
    q, k, v = (b.temp("BNTD", f'torch.einsum("btc,hcd->bhtd", {x}, {w})') for w in weights)
    scores = b.temp("BNTD", f'torch.einsum("bhid,bhjd->bhij", {q}, {k}).softmax(-1)')
    mixed = b.temp("BTND", f'torch.einsum("bhij,bhjd->bihd", {scores}, {v})')
    back = b.parameter(heads, inner, x["C"])
    b.emit("BTC", f'torch.einsum("bihd,hdc->bic", {mixed}, {back})')


@op("BTC")
def normalised_attention(b: Builder, x: Value) -> None:
    """Queries and keys are normalised over the head dimension."""
    heads, inner = sizes(b)
    q, k, v = (b.temp("BNTD", headed(b, x, heads, inner)) for _ in range(3))
    norm = b.layer(b.pick((f"nn.LayerNorm({inner})", f"nn.RMSNorm({inner})")))
    other = b.pick((norm, b.layer(f"nn.LayerNorm({inner})")))
    joined(b, x, attend(b, f"{norm}({q})", f"{other}({k})", v, inner), x["C"])


@op("BTC")
def channel_attention(b: Builder, x: Value) -> None:
    """XCiT's: channels of a head attend to each other."""
    heads, inner = sizes(b)
    q, k, v = (b.temp("BNDT", f"{headed(b, x, heads, inner)}.transpose(-2, -1)") for _ in range(3))
    q, k = (f"F.normalize({y}, dim=-1, eps=1e-3)" for y in (q, k))
    scale = b.parameter(heads, 1, 1, stem="scale")
    scores = b.temp("BNDD"[:3] + "E", f"({q} @ {k}.transpose(-2, -1) * {scale}).softmax(-1)")
    joined(b, x, f"({scores} @ {v}).transpose(-2, -1)", x["C"])


@op("BTC")
def linear_attention(b: Builder, x: Value) -> None:
    """No softmax over pairs: keys and values are summed up first."""
    heads, inner = sizes(b)
    q, k, v = (b.temp("BNTD", headed(b, x, heads, inner)) for _ in range(3))
    memory = b.temp("BNDE", f"{k}.softmax(-2).transpose(-2, -1) @ {v}")
    joined(b, x, f"F.elu({q}) @ {memory}", x["C"])


@op("BTC")
def causal_attention(b: Builder, x: Value) -> None:
    heads, inner = sizes(b)
    q, k, v = (b.temp("BNTD", headed(b, x, heads, inner)) for _ in range(3))
    if b.flag():
        joined(b, x, f"F.scaled_dot_product_attention({q}, {k}, {v}, is_causal=True)", x["C"])
        return
    mask = b.buffer(f"torch.ones({x['T']}, {x['T']}).tril().bool()")
    scores = f"({q} @ {k}.transpose(-2, -1)).masked_fill(~{mask}, -1e9)"
    joined(b, x, f"{scores}.softmax(-1) @ {v}", x["C"])


@op("BTC")
def attention_module(b: Builder, x: Value) -> None:
    """torch's own module; its width is that of its input."""
    heads, inner = sizes(b)
    y = b.temp("BTC", project(b, x, heads * inner))
    layer = b.layer(f"nn.MultiheadAttention({heads * inner}, {heads}, batch_first=True)")
    source = b.use(b.pick([v for v in b.values if v.kind == "BTC"])) if b.flag() else y
    if source is not y:
        source = b.temp("BTC", project(b, source, heads * inner))
    b.emit("BTC", f"{layer}({y}, {source}, {source}, need_weights=False)[0]")


@op("BTC")
def transformer_layer(b: Builder, x: Value) -> None:
    heads, inner = sizes(b)
    y = b.temp("BTC", project(b, x, heads * inner))
    first = b.flag()
    b.emit(
        "BTC",
        b.call(
            f"nn.TransformerEncoderLayer({heads * inner}, {heads}, {b.width(high=6)}, "
            f"batch_first=True, norm_first={first})",
            y,
        ),
    )


@op("BTC")
def heads_apart(b: Builder, x: Value) -> None:
    """A module per head, their results stacked."""
    heads, inner = sizes(b)
    layers = [projection(b, x, 3 * inner) for _ in range(heads)]
    stacked = b.temp("BNTD", f"torch.stack([{', '.join(f'{y}({x})' for y in layers)}], 1)")
    q, k, v = b.temps(("BNTD",) * 3, f"{stacked}.chunk(3, dim=-1)")
    joined(b, x, attend(b, q, k, v, inner), x["C"])


@op("BTC")
def attention_pooling(b: Builder, x: Value) -> None:
    """Learned queries attend to the tokens."""
    queries = b.parameter(b.between(1, 3), x["C"])
    scores = b.temp("BNT", f"({queries} @ {x}.transpose(1, 2)).softmax(-1)")
    b.emit("BTC", f"{scores} @ {x}")
