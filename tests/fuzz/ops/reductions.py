"""Reductions over channels, space and tokens, and gates made of them."""

from __future__ import annotations

from tests.fuzz.program import Builder, Value
from tests.fuzz.table import ANY, FIRST, activation, op, project, several

SPACIOUS = ANY.replace(" BC ", " ")
OVER = ("mean", "sum", "amax", "amin", "logsumexp", "prod")


@op(ANY)
def scale_by_reduction(b: Builder, x: Value) -> None:
    """The channels are reduced to one, which is broadcast back."""
    name = b.pick(OVER)
    b.emit(x.kind, f"{x} * torch.tanh({x}.{name}({x.dim('C')}, keepdim=True))")


@op(SPACIOUS, several("C"))
def reduce_channels(b: Builder, x: Value) -> None:
    """The channels are reduced away; what is left has other channels."""
    name = b.pick((*OVER, "var", "std", "norm"))
    argument = f"dim={x.dim('C')}" + ", correction=0" * (name in ("var", "std"))
    kinds = {"BCTHW": "BCHW", "BCHW": "BCT", "BHWC": "BCT", "BCT": "BC", "BTC": "BC"}
    b.emit(kinds[x.kind], f"{x}.{name}({argument})")


@op(ANY)
def sum_over_size(b: Builder, x: Value) -> None:
    """A mean written as a sum over a size: the size is a value and stays."""
    total = f"{x}.sum({x.dim('C')}, keepdim=True)"
    b.emit(x.kind, f"{x} - {total} / {b.size(x, 'C')}")


@op(ANY, several("C"))
def softmax(b: Builder, x: Value) -> None:
    name = b.pick(("softmax", "log_softmax"))
    b.emit(x.kind, f"{x} + F.{name}({x}, dim={x.dim('C')})")


@op("BTC BCT", several("T"))
def softmax_over_tokens(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{x}.softmax({x.dim('T')})")


@op(ANY, several("C"))
def maximum_with_positions(b: Builder, x: Value) -> None:
    values = f"{x}.max(dim={x.dim('C')}, keepdim=True).values"
    b.emit(x.kind, f"{x} - {values}")


@op("BTC BCT")
def cumulative_sum(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{x}.cumsum({x.dim(b.pick('TC'))})")


@op(SPACIOUS)
def global_pool(b: Builder, x: Value) -> None:
    dims = tuple(d for d, letter in enumerate(x.kind) if letter not in "BC")
    b.emit("BC", f"{x}.{b.pick(('mean', 'sum', 'amax'))}({dims})")


@op("BCHW")
def adaptive_pool(b: Builder, x: Value) -> None:
    pool = b.pick(("AdaptiveAvgPool2d", "AdaptiveMaxPool2d"))
    b.emit("BC", f"torch.flatten({b.call(f'nn.{pool}(1)', x)}, 1)")


@op("BTC", several("T"))
def class_token(b: Builder, x: Value) -> None:
    token = b.between(0, x["T"] - 1)
    b.emit("BC", b.pick((f"{x}[:, {token}]", f"{x}.select(1, {token})", f"{x}[:, -1, :]")))


@op("BTC")
def prepend_token(b: Builder, x: Value) -> None:
    """Learned tokens before or after the others, expanded to the batch."""
    own = f"{b.parameter(1, b.between(1, 3), x['C'], stem='token')}.expand({x}.shape[0], -1, -1)"
    b.emit("BTC", f"torch.cat([{', '.join(b.pick(((own, str(x)), (str(x), own))))}], dim=1)")


@op("BTC", several("T"))
def some_steps(b: Builder, x: Value) -> None:
    """Tokens by their positions, from either end."""
    n = b.between(1, x["T"] - 1)
    b.emit("BTC", b.pick((f"{x}[:, {n}:]", f"{x}[:, :-{n}]", f"{x}[:, ::2]", f"{x}[:, -{n}:]")))


@op("BTC", several("T"))
def some_folded_steps(b: Builder, x: Value) -> None:
    """Tokens by the positions of their channels, where these are folded into them."""
    n = b.between(1, x["T"] - 1) * x["C"]
    part = b.pick((f"{x}.flatten(1)[:, {n}:]", f"{x}.flatten(1)[:, :-{n}]"))
    b.emit("BTC", f"{part}.reshape({x}.shape[0], -1, {x['C']})")


@op("BCHW")
def squeeze_and_excite(b: Builder, x: Value) -> None:
    inner = b.width(high=5)
    down, up = (f"nn.Conv2d({i}, {o}, 1)" for i, o in ((x["C"], inner), (inner, x["C"])))
    gate = b.temp("BCHW", f"F.silu({b.call(down, b.call('nn.AdaptiveAvgPool2d(1)', x))})")
    b.emit("BCHW", f"{x} * torch.sigmoid({b.call(up, gate)})")


@op(FIRST)
def squeeze_by_linear(b: Builder, x: Value) -> None:
    """The gate is a vector that is viewed back to the rank of what it gates."""
    space = tuple(range(2, len(x.kind)))
    pooled = b.temp("BC", f"{activation(b)}({x}.mean({space}))")
    gate = b.temp("BC", f"torch.sigmoid({project(b, pooled, x['C'])})")
    ones = ", 1" * len(space)
    viewed = b.pick((f"view({x}.shape[0], {x['C']}{ones})", f"view(-1, {x['C']}{ones})"))
    b.emit(x.kind, f"{x} * {gate}.{viewed}")


@op("BCHW")
def efficient_channel_gate(b: Builder, x: Value) -> None:
    """ECA: a convolution along the channels, which fixes them."""
    pooled = b.temp("BCT", f"{x}.mean((2, 3)).unsqueeze(1)")
    gate = b.call("nn.Conv1d(1, 1, 3, padding=1, bias=False)", pooled)
    b.emit("BCHW", f"{x} * torch.sigmoid({gate}).transpose(1, 2).unsqueeze(-1)")


@op(FIRST)
def spatial_gate(b: Builder, x: Value) -> None:
    """CBAM's: mean and maximum over channels gate every position."""
    mean, top = f"{x}.mean(1, keepdim=True)", f"{x}.amax(1, keepdim=True)"
    both = b.temp(x.kind, f"torch.cat([{mean}, {top}], 1)")
    b.emit(x.kind, f"{x} * torch.sigmoid({project(b, both, 1)})")


def vector(b: Builder, x: Value) -> Value:
    """A vector of the program, or else the mean of `x` over its positions."""
    vectors = [v for v in b.values if v.kind == "BC"]
    if vectors:
        return b.use(b.pick(vectors))
    dims = tuple(d for d, letter in enumerate(x.kind) if letter not in "BC")
    return b.temp("BC", f"{x}.mean({dims})")


@op(FIRST)
def film(b: Builder, x: Value) -> None:
    """A vector scales and shifts the channels: the halves of one layer's result."""
    scale, shift = b.temps(("BC", "BC"), f"{project(b, vector(b, x), 2 * x['C'])}.chunk(2, dim=1)")
    ones = "[..., None]" * (len(x.kind) - 2)
    b.emit(x.kind, f"{x} * (1 + {scale}{ones}) + {shift}{ones}")


@op(SPACIOUS)
def add_vector(b: Builder, x: Value) -> None:
    """A vector is added at every position; a layer brings it to the width if need be."""
    added = vector(b, x)
    if added["C"] != x["C"]:
        added = b.temp("BC", project(b, added, x["C"]))
    index = ", ".join(":" if letter in "BC" else "None" for letter in x.kind)
    b.emit(x.kind, f"{x} + {added}[{index}]")
