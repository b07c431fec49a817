"""Convolutions of every kind, linear layers, and products with bare parameters."""

from __future__ import annotations

from tests.fuzz.program import Builder, Value
from tests.fuzz.table import (
    ANY,
    CONVOLUTION,
    FIRST,
    LAST,
    activation,
    op,
    project,
    projection,
    several,
)


@op(FIRST)
def conv(b: Builder, x: Value) -> None:
    b.emit(x.kind, project(b, x, b.width(), b.flag()))


@op(FIRST, several("C"))
def grouped_conv(b: Builder, x: Value) -> None:
    groups = b.divisor(x["C"], 2)
    source = f"nn.Conv{CONVOLUTION[x.kind]}({x['C']}, {b.width(groups)}, 3, padding=1"
    b.emit(x.kind, b.call(f"{source}, groups={groups}, bias={b.flag()})", x))


@op(FIRST)
def depthwise_conv(b: Builder, x: Value) -> None:
    out, groups = x["C"] * b.between(1, 2), x["C"]
    source = f"nn.Conv{CONVOLUTION[x.kind]}({groups}, {out}, 3, padding=1, groups={groups})"
    b.emit(x.kind, b.call(source, x))


@op(FIRST)
def dilated_conv(b: Builder, x: Value) -> None:
    source = f"nn.Conv{CONVOLUTION[x.kind]}({x['C']}, {b.width()}, 3, padding=2, dilation=2)"
    b.emit(x.kind, b.call(source, x))


@op(FIRST, lambda b, x: x.shape[-1] > 2)
def strided_conv(b: Builder, x: Value) -> None:
    source = f"nn.Conv{CONVOLUTION[x.kind]}({x['C']}, {b.width()}, 3, stride=2, padding=1)"
    b.emit(x.kind, b.call(source, x))


@op(FIRST, lambda b, x: b.small(*x.shape, 8))
def transposed_conv(b: Builder, x: Value) -> None:
    groups = b.divisor(x["C"]) if b.flag() else 1
    source = f"nn.ConvTranspose{CONVOLUTION[x.kind]}({x['C']}, {b.width(groups)}, 2, stride=2"
    b.emit(x.kind, b.call(f"{source}, groups={groups})", x))


@op(FIRST)
def functional_conv(b: Builder, x: Value) -> None:
    out, taps = b.width(), (3,) * (len(x.kind) - 2)
    weight, bias = b.parameter(out, x["C"], *taps), b.parameter(out, stem="bias")
    b.emit(x.kind, f"F.conv{CONVOLUTION[x.kind]}({x}, {weight}, {bias}, padding=1)")


@op(LAST)
def linear(b: Builder, x: Value) -> None:
    b.emit(x.kind, project(b, x, b.width(), b.flag()))


@op(LAST)
def mlp(b: Builder, x: Value) -> None:
    hidden = b.temp(x.kind, f"{activation(b)}({project(b, x, b.width())})")
    b.emit(x.kind, project(b, hidden, b.width()))


@op(LAST)
def functional_linear(b: Builder, x: Value) -> None:
    out = b.width()
    b.emit(x.kind, f"F.linear({x}, {b.parameter(out, x['C'])}, {b.parameter(out, stem='bias')})")


@op(LAST)
def matmul_weight(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{x} @ {b.parameter(x['C'], b.width())}")


@op("BTC")
def conv1d_of_gpt(b: Builder, x: Value) -> None:
    """A linear layer as GPT-2 writes it: flattened, addmm with a transposed weight, viewed back."""
    out = b.width()
    weight, bias = b.parameter(x["C"], out), b.parameter(out, stem="bias")
    flat = f"{x}.reshape(-1, {b.size(x, 'C')})"
    b.emit("BTC", f"torch.addmm({bias}, {flat}, {weight}).view(*{x}.shape[:2], {out})")


@op("BTC")
def einsum_weight(b: Builder, x: Value) -> None:
    b.emit("BTC", f'torch.einsum("btc,cd->btd", {x}, {b.parameter(x["C"], b.width())})')


@op("BCT BCHW")
def einsum_channels(b: Builder, x: Value) -> None:
    space = "hw" if x.kind == "BCHW" else "t"
    weight = b.parameter(b.width(), x["C"])
    b.emit(x.kind, f'torch.einsum("bc{space},dc->bd{space}", {x}, {weight})')


@op("BC BTC")
def bilinear(b: Builder, x: Value) -> None:
    y = b.use(b.pick(b.partners(x, "C")))
    layer = b.layer(f"nn.Bilinear({x['C']}, {y['C']}, {b.width()})")
    b.emit(x.kind, f"{layer}({x}, {y})")


@op(LAST)
def tied_weight(b: Builder, x: Value) -> None:
    """An autoencoder whose decoder is the encoder's weight, transposed."""
    weight = b.parameter(b.width(), x["C"])
    b.emit(x.kind, f"F.linear({activation(b)}(F.linear({x}, {weight})), {weight}.t())")


@op(ANY)
def shared_module(b: Builder, x: Value) -> None:
    """One module called twice, the second time on its own result."""
    layer = projection(b, x, x["C"])
    b.emit(x.kind, f"{layer}({activation(b)}({layer}({x})))")


@op(ANY, lambda b, x: len(b.partners(x)) > 1)
def siamese_module(b: Builder, x: Value) -> None:
    """One module called on two values."""
    other = b.use(b.pick([y for y in b.partners(x) if y is not x]))
    layer = projection(b, x, b.width())
    b.emit(x.kind, f"{layer}({x})")
    b.emit(x.kind, f"{layer}({other})")


@op("BTC BC")
def tied_modules(b: Builder, x: Value) -> None:
    """Two modules that hold one parameter."""
    width = x["C"]
    first, second = (b.layer(f"nn.Linear({width}, {width})") for _ in range(2))
    b.run_layer(f"{second}.weight = {first}.weight")
    b.emit(x.kind, f"{second}({activation(b)}({first}({x})))")
