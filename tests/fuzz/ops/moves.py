"""Splits, slices, views, permutations and gathers."""

from __future__ import annotations

from tests.fuzz.program import Builder, Value
from tests.fuzz.table import ANY, FIRST, even, op, project, several


def sliced(x: Value, inside: str) -> str:
    """`x` indexed along its channels."""
    return f"{x}[{', '.join([':'] * x.dim('C') + [inside])}]"


@op(ANY, several("C"))
def split(b: Builder, x: Value) -> None:
    first = b.between(1, x["C"] - 1)
    sizes = f"[{first}, {b.size(x, 'C')} - {first}]" if b.flag() else f"[{first}, {x['C'] - first}]"
    for part in b.temps((x.kind, x.kind), f"torch.split({x}, {sizes}, dim={x.dim('C')})"):
        b.offer(part)


@op(ANY, several("C"))
def chunk(b: Builder, x: Value) -> None:
    for part in b.temps((x.kind, x.kind), f"{x}.chunk(2, dim={x.dim('C')})"):
        b.offer(part)


@op(ANY, even("C"))
def multiply_halves(b: Builder, x: Value) -> None:
    left, right = b.temps((x.kind, x.kind), f"{x}.chunk(2, {x.dim('C') - len(x.kind)})")
    b.emit(x.kind, f"{left} * {right}")


@op(ANY, several("C"))
def narrow(b: Builder, x: Value) -> None:
    start = b.between(0, x["C"] - 1)
    b.emit(x.kind, f"{x}.narrow({x.dim('C')}, {start}, {b.between(1, x['C'] - start)})")


@op(ANY, several("C"))
def slices(b: Builder, x: Value) -> None:
    cut = b.between(1, x["C"] - 1)
    b.emit(x.kind, sliced(x, f":{cut}"))
    b.emit(x.kind, sliced(x, f"{cut}:"))


@op(ANY, even("C"))
def rotate_halves(b: Builder, x: Value) -> None:
    """As rotary embeddings do: the halves change places."""
    half = b.size(x, "C", divide=2)
    left, right = sliced(x, f":{half}"), sliced(x, f"{half}:")
    b.emit(x.kind, f"torch.cat([-{right}, {left}], dim={x.dim('C')})")


@op(FIRST)
def flatten(b: Builder, x: Value) -> None:
    b.emit("BC", f"{x}.flatten(1)")


@op("BCHW BCTHW")
def to_tokens(b: Builder, x: Value) -> None:
    b.emit("BTC", f"{x}.flatten(2).transpose(1, 2)")


@op("BCT BTC")
def transpose(b: Builder, x: Value) -> None:
    b.emit("BTC" if x.kind == "BCT" else "BCT", f"{x}.transpose(1, 2)")


@op("BCHW")
def to_channels_last(b: Builder, x: Value) -> None:
    b.emit("BHWC", b.pick((f"{x}.permute(0, 2, 3, 1)", f"{x}.movedim(1, -1)")))


@op("BHWC")
def to_channels_first(b: Builder, x: Value) -> None:
    b.emit("BCHW", f"{x}.permute(0, 3, 1, 2).contiguous()")


@op("BTC", several("T"))
def to_image(b: Builder, x: Value) -> None:
    """Tokens back to rows and columns, by unflatten or view."""
    rows = b.divisor(x["T"])
    sizes = f"{rows}, {b.size(x, 'T', divide=rows)}"
    y = f"{x}.transpose(1, 2)"
    view = f"{y}.reshape({x}.shape[0], {b.size(x, 'C')}, {sizes})"
    b.emit("BCHW", b.pick((f"{y}.unflatten(2, ({sizes}))", view)))


@op("BCHW")
def image_to_video(b: Builder, x: Value) -> None:
    """Rows become time, or there is one frame."""
    b.emit("BCTHW", b.pick((f"{x}.unsqueeze(2)", f"{x}.unsqueeze(3)", f"{x}.unsqueeze(-1)")))


@op("BCTHW")
def frame(b: Builder, x: Value) -> None:
    """One frame of a video, or their mean."""
    b.emit("BCHW", b.pick((f"{x}[:, :, {b.between(0, x['T'] - 1)}]", f"{x}.mean(2)")))


@op("BCTHW")
def frames_to_channels(b: Builder, x: Value) -> None:
    b.emit("BCHW", f"{x}.flatten(1, 2)")


@op("BHWC")
def rows_to_tokens(b: Builder, x: Value) -> None:
    b.emit("BTC", f"{x}.view({x}.shape[0], -1, {b.size(x, 'C')})")


@op("BC")
def channels_to_tokens(b: Builder, x: Value) -> None:
    """Channels become two dimensions."""
    count = b.divisor(x["C"])
    sizes = f"{count}, {b.size(x, 'C', divide=count)}"
    b.emit("BTC", b.pick((f"{x}.unflatten(1, ({sizes}))", f"{x}.view(-1, {sizes})")))


@op("BC")
def channels_to_image(b: Builder, x: Value) -> None:
    rows = b.divisor(x["C"])
    columns = b.divisor(x["C"] // rows)
    b.emit("BCHW", f"{x}.view(-1, {x['C'] // rows // columns}, {rows}, {columns})")


@op("BTC BCT")
def flatten_tokens(b: Builder, x: Value) -> None:
    flat = f"{b.size(x, 'T')} * {b.size(x, 'C')}"
    b.emit("BC", b.pick((f"{x}.flatten(1)", f"{x}.reshape({x}.shape[0], {flat})")))


@op("BCHW")
def fold_rows_into_channels(b: Builder, x: Value) -> None:
    b.emit("BCT", f"{x}.flatten(1, 2)")


@op(ANY, several("C"))
def regroup(b: Builder, x: Value) -> None:
    """Channels as a grid, transposed and flattened again: ShuffleNet's shuffle."""
    dim, groups = x.dim("C"), b.divisor(x["C"], 2)
    grid = f"{x}.unflatten({dim}, ({groups}, {b.size(x, 'C', divide=groups)}))"
    b.emit(x.kind, f"{grid}.transpose({dim}, {dim + 1}).flatten({dim}, {dim + 1})")


@op("BCHW")
def channel_shuffle(b: Builder, x: Value) -> None:
    groups = b.divisor(x["C"])
    functional = f"F.channel_shuffle({x}, {groups})"
    b.emit("BCHW", functional if b.flag() else b.call(f"nn.ChannelShuffle({groups})", x))


@op("BCHW")
def pixel_shuffle(b: Builder, x: Value) -> None:
    """The channels must be a multiple of four in number; else a layer makes them so."""
    if x["C"] % 4:
        x = b.temp(x.kind, project(b, x, b.width(4)))
    b.emit("BCHW", b.pick((f"F.pixel_shuffle({x}, 2)", b.call("nn.PixelShuffle(2)", x))))


@op("BCHW", lambda b, x: x["H"] % 2 == 0 and x["W"] % 2 == 0)
def pixel_unshuffle(b: Builder, x: Value) -> None:
    b.emit("BCHW", f"F.pixel_unshuffle({x}, 2)")


@op("BCHW", lambda b, x: x["H"] % 2 == 0 and x["W"] % 2 == 0)
def patches(b: Builder, x: Value) -> None:
    """Space to depth by a view: every patch of 2 x 2 becomes a token."""
    c, h, w = (b.size(x, letter) for letter in "CHW")
    grid = f"{x}.reshape({x}.shape[0], {c}, {h} // 2, 2, {w} // 2, 2).permute(0, 2, 4, 1, 3, 5)"
    b.emit("BTC", f"{grid}.reshape({x}.shape[0], -1, {b.size(x, 'C', times=4)})")


@op("BCHW", lambda b, x: x["H"] > 1 and x["W"] > 1)
def unfold(b: Builder, x: Value) -> None:
    b.emit("BCT", f"F.unfold({x}, 2)")


@op("BCHW BTC BC")
def unbind(b: Builder, x: Value) -> None:
    """Two runs of channels, by unflatten and unbind; the channels must be even in number."""
    if x["C"] % 2:
        x = b.temp(x.kind, f"torch.cat([{x}, {x}], {x.dim('C')})")
    dim = x.dim("C")
    grid = f"{x}.unflatten({dim}, (2, {b.size(x, 'C', divide=2)}))"
    left, right = b.temps((x.kind, x.kind), f"{grid}.unbind({dim})")
    b.emit(x.kind, f"{left} - 2 * {right}")


@op(ANY, several("C"))
def even_and_odd(b: Builder, x: Value) -> None:
    b.emit(x.kind, sliced(x, "::2"))
    b.emit(x.kind, sliced(x, "1::2"))


@op(ANY, several("C"))
def select_channel(b: Builder, x: Value) -> None:
    """One channel, kept as a dimension of size 1, scales all."""
    channel = b.between(0, x["C"] - 1)
    b.emit(x.kind, f"{x} * {sliced(x, f'{channel}:{channel + 1}')}")


@op(ANY)
def flip(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{x}.flip({x.dim('C')})")


@op(ANY)
def flip_and_add(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{x} + 0.5 * {x}.flip({x.dim('C')})")


@op(ANY, several("C"))
def roll(b: Builder, x: Value) -> None:
    rolled = f"torch.roll({x}, {b.between(1, x['C'] - 1)}, {x.dim('C')})"
    b.emit(x.kind, f"{x} + {rolled}" if b.flag() else rolled)


@op(ANY, several("C"))
def permute_by_list(b: Builder, x: Value) -> None:
    order = list(range(x["C"]))
    for i in range(min(x["C"] - 1, 3)):
        j = b.between(i, x["C"] - 1)
        order[i], order[j] = order[j], order[i]
    b.emit(x.kind, sliced(x, str(order)))


@op(ANY)
def index_select(b: Builder, x: Value) -> None:
    chosen = sorted({b.between(0, x["C"] - 1) for _ in range(4)})
    b.emit(x.kind, f"{x}.index_select({x.dim('C')}, {b.buffer(f'torch.tensor({chosen})')})")


@op(ANY, lambda b, x: b.small(*x.shape, 2))
def repeat_interleave(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{x}.repeat_interleave(2, dim={x.dim('C')})")


@op(ANY, lambda b, x: b.small(*x.shape, 2))
def repeat(b: Builder, x: Value) -> None:
    repeats = ", ".join("2" if letter == "C" else "1" for letter in x.kind)
    b.emit(x.kind, f"{x}.repeat({repeats})")


@op("BC", several("C"))
def expand(b: Builder, x: Value) -> None:
    """A vector is repeated along a new dimension, without a copy."""
    steps = b.between(1, 3)
    b.emit("BTC", f"{x}.unsqueeze(1).expand(-1, {steps}, {b.pick(('-1', x['C']))})")


@op(ANY)
def pad_channels(b: Builder, x: Value) -> None:
    """Zero channels are added, as the shortcuts of ResNet's option A do."""
    behind = len(x.kind) - 1 - x.dim("C")
    pads = [0, 0] * behind + [b.between(0, 1), b.between(1, 2)]
    b.emit(x.kind, f"F.pad({x}, {tuple(pads)})")


@op(ANY)
def squeeze_again(b: Builder, x: Value) -> None:
    """A dimension of size 1 comes and goes."""
    b.emit(x.kind, f"{x}.unsqueeze(1).squeeze(1)")


@op("BC")
def outer_product(b: Builder, x: Value) -> None:
    y = b.use(b.pick(b.partners(x, "C")))
    b.emit("BTC", f"{x}[:, :, None] * {y}[:, None, :]")
