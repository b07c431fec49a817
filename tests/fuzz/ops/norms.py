"""Normalisation, written as modules, as functions and by hand."""

from __future__ import annotations

import math

from tests.fuzz.program import Builder, Value
from tests.fuzz.table import ANY, CONVOLUTION, FIRST, LAST, op, per_channel


@op(f"{FIRST} BC")
def batch_norm(b: Builder, x: Value) -> None:
    rank = CONVOLUTION.get(x.kind, "1d")
    b.emit(x.kind, b.call(f"nn.BatchNorm{rank}({x['C']}, affine={b.flag()})", x))


@op(FIRST)
def functional_batch_norm(b: Builder, x: Value) -> None:
    mean, var = b.buffer(f"torch.zeros({x['C']})"), b.buffer(f"torch.ones({x['C']})")
    weight = b.parameter(x["C"], stem="scale")
    b.emit(x.kind, f"F.batch_norm({x}, {mean}, {var}.exp(), {weight})")


def positions(x: Value) -> int:
    """How many values each channel of a sample has."""
    return math.prod(x.shape) // (x.shape[0] * x["C"])


@op(f"{FIRST} BC", lambda b, x: x["C"] * positions(x) > 1)
def group_norm(b: Builder, x: Value) -> None:
    groups = b.divisor(x["C"] if positions(x) > 1 else max(x["C"] // 2, 1))
    if x["C"] % groups:
        groups = 1
    b.emit(x.kind, b.call(f"nn.GroupNorm({groups}, {x['C']}, affine={b.flag()})", x))


@op(FIRST, lambda b, x: x["C"] % 2 == 0 and x["C"] * positions(x) > 2)
def functional_group_norm(b: Builder, x: Value) -> None:
    weight = b.parameter(x["C"], stem="scale")
    b.emit(x.kind, f"F.group_norm({x}, 2, {weight}, None)")


@op(FIRST, lambda b, x: x["C"] * positions(x) > 1)
def instance_norm(b: Builder, x: Value) -> None:
    if x.shape[-1] > 2:
        source = f"nn.InstanceNorm{CONVOLUTION[x.kind]}({x['C']}, affine={b.flag()})"
        b.emit(x.kind, b.call(source, x))
    else:
        b.emit(x.kind, b.call(f"nn.GroupNorm(1, {x['C']})", x))


@op(LAST)
def layer_norm(b: Builder, x: Value) -> None:
    b.emit(x.kind, b.call(f"nn.LayerNorm({x['C']}, elementwise_affine={b.flag()})", x))


@op(LAST)
def functional_layer_norm(b: Builder, x: Value) -> None:
    shape = b.pick((f"({b.size(x, 'C')},)", f"{x}.shape[-1:]"))
    b.emit(x.kind, f"F.layer_norm({x}, {shape}, {b.parameter(x['C'], stem='scale')})")


@op("BTC BHWC BCT")
def layer_norm_over_two(b: Builder, x: Value) -> None:
    """Statistics over tokens and channels together."""
    b.emit(x.kind, b.call(f"nn.LayerNorm(({x.shape[-2]}, {x.shape[-1]}))", x))


@op("BCHW")
def layer_norm_2d(b: Builder, x: Value) -> None:
    """ConvNeXt's: permuted there and back."""
    norm = b.call(f"nn.LayerNorm({x['C']})", f"{x}.permute(0, 2, 3, 1)")
    b.emit("BCHW", f"{norm}.permute(0, 3, 1, 2)")


@op(LAST)
def rms_norm(b: Builder, x: Value) -> None:
    b.emit(x.kind, b.call(f"nn.RMSNorm({x['C']})", x))


@op(ANY)
def rms_norm_by_hand(b: Builder, x: Value) -> None:
    mean = f"{x}.pow(2).mean({x.dim('C')}, keepdim=True)"
    scale = per_channel(x, b.parameter(x["C"], stem="scale"))
    b.emit(x.kind, f"{x} * torch.rsqrt({mean} + 1e-3) * {scale}")


@op(ANY)
def standardise_by_hand(b: Builder, x: Value) -> None:
    dim = x.dim("C")
    mean = b.temp(x.kind, f"{x}.mean({dim}, keepdim=True)")
    var = b.temp(x.kind, f"{x}.var({dim}, keepdim=True, unbiased=False)")
    b.emit(x.kind, f"({x} - {mean}) / ({var} + 1e-2).sqrt()")


@op(ANY)
def normalize(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"F.normalize({x}, dim={x.dim('C')}, eps=1e-3)")


@op("BCHW")
def global_response_norm(b: Builder, x: Value) -> None:
    norm = b.temp("BCHW", f"torch.norm({x}, p=2, dim=(2, 3), keepdim=True)")
    share = f"{norm} / ({norm}.mean(1, keepdim=True) + 1e-2)"
    scale, bias = (b.parameter(1, x["C"], 1, 1, stem=s) for s in ("scale", "bias"))
    b.emit("BCHW", f"{scale} * ({x} * {share}) + {bias} + {x}")


@op(FIRST)
def weight_standardised_conv(b: Builder, x: Value) -> None:
    out, taps = b.width(), (2,) * (len(x.kind) - 2)
    weight = b.parameter(out, x["C"], *taps)
    dims = tuple(range(1, len(taps) + 2))
    mean, std = f"{weight}.mean({dims}, keepdim=True)", f"{weight}.std({dims}, keepdim=True)"
    call = f"F.conv{CONVOLUTION[x.kind]}({x}, ({weight} - {mean}) / ({std} + 0.1), padding=1)"
    b.emit(x.kind, call)


@op("BTC BC")
def weight_normalised_linear(b: Builder, x: Value) -> None:
    weight = b.parameter(b.width(), x["C"])
    b.emit(x.kind, f"F.linear({x}, F.normalize({weight}, dim=1))")
