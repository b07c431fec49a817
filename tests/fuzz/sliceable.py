"""Programs that run when their parameters are sliced: no size is written in their source."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.fuzz import ops
from tests.fuzz.program import VOCABULARY, Builder, Program, Value
from tests.fuzz.table import TABLE, Op, Write

assert ops  # the table is full

ROWS: dict[str, Op] = {
    name: TABLE[name]
    for name in (
        *("functional_linear", "matmul_weight", "tied_weight", "flip", "flip_and_add"),
        *("flatten", "flatten_tokens", "transpose"),
    )
}
"""The rows that programs are written by: of all programs those that hold no sizes, and some that
are made for small ones."""


def row(kinds: str) -> Callable[[Write], Write]:
    """Register a row for operands of these kinds (BC vectors, BTC tokens, BCT sequences)."""

    def register(write: Write) -> Write:
        name = write.__name__
        ROWS[name] = Op(name, tuple(kinds.split()), write, lambda b, x: True)
        return write

    return register


class SmallBuilder(Builder):
    """Widths that brute force can bear, and sizes that are read from shapes."""

    def width(self, multiple: int = 1, high: int = 3) -> int:
        """A number of channels."""
        return super().width(multiple, 3)

    def flag(self) -> bool:
        """Always: of a literal and a shape, `size` takes the shape."""
        return True


def projected(b: Builder, x: Value, out: int) -> str:
    """`x` through a bare weight."""
    if x.kind == "BCT":
        return f"F.conv1d({x}, {b.parameter(out, x['C'], 1)})"
    return f"F.linear({x}, {b.parameter(out, x['C'])})"


@row("BC BTC BCT")
def layer(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"torch.tanh({projected(b, x, b.width())})")


@row("BC BTC BCT")
def residual(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{x} + torch.sin({projected(b, x, x['C'])})")


@row("BC BTC BCT")
def gate(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{x} * torch.sigmoid({projected(b, x, x['C'])})")


@row("BC BTC BCT")
def joined(b: Builder, x: Value) -> None:
    new = projected(b, x, b.width())
    b.emit(x.kind, f"torch.cat([{x}, torch.tanh({new})], {x.dim('C')})")


@row("BC")
def scaled(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{x} * {b.parameter(x['C'], stem='scale')}")


@row("BC BTC")
def normalised(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"F.normalize({x}, dim=-1, eps=1e-3)")


@row("BC")
def batch_normalised(b: Builder, x: Value) -> None:
    mean, var = b.buffer(f"torch.zeros({x['C']})"), b.buffer(f"torch.zeros({x['C']})")
    b.emit(x.kind, f"F.batch_norm({x}, {mean}, {var}.exp())")


@row("BC BTC BCT")
def halves(b: Builder, x: Value) -> None:
    """Channels in two runs whose lengths follow the parameter."""
    if x["C"] % 2 == 0:
        left, right = b.temps(
            (x.kind, x.kind), f"{x}.unflatten({x.dim('C')}, (2, -1)).unbind({x.dim('C')})"
        )
        b.emit(x.kind, f"{left} * torch.tanh({right})")
    else:
        b.emit(x.kind, f"torch.tanh({x})")


@row("BC BTC BCT")
def mean_removed(b: Builder, x: Value) -> None:
    """A whole sum would cancel the channel itself: that is arithmetic, not structure."""
    b.emit(x.kind, f"{x} - 0.3 * {x}.sum({x.dim('C')}, keepdim=True)")


@row("BC")
def squared(b: Builder, x: Value) -> None:
    """Products of all pairs of channels."""
    b.emit("BC", f"({x}[:, :, None] * {x}[:, None, :]).flatten(1)")


@row("BTC")
def attended(b: Builder, x: Value) -> None:
    q, k = (b.parameter(2, x["C"]) for _ in range(2))
    scores = f"(F.linear({x}, {q}) @ F.linear({x}, {k}).mT).softmax(-1)"
    b.emit("BTC", f"{scores} @ {projected(b, x, b.width())}")


@row("BTC")
def headed(b: Builder, x: Value) -> None:
    """Two heads of two dimensions, as bare parameters; their results are summed."""
    first = f'torch.einsum("btc,hcd->bhtd", {x}, {b.parameter(2, x["C"], 2)})'
    b.emit("BTC", f'torch.einsum("bhtd,hdc->btc", torch.tanh({first}), {b.parameter(2, 2, 2)})')


@row("BTC BCT")
def pooled(b: Builder, x: Value) -> None:
    b.emit("BC", f"{x}.mean({x.dim('T')})")


@row("BCT")
def depthwise(b: Builder, x: Value) -> None:
    weight = b.parameter(x["C"], 1, 2)
    b.emit("BCT", f"F.conv1d({x}, {weight}, padding=1, groups={weight}.shape[0])")


@row("BCT")
def grouped(b: Builder, x: Value) -> None:
    if x["C"] % 2:
        x = b.temp("BCT", projected(b, x, 4))
    b.emit("BCT", f"F.conv1d({x}, {b.parameter(2, x['C'] // 2, 1)}, groups=2)")


def sliceable_program(seed: int, steps: int) -> Program:
    """A random program of a few rows; bare parameters only."""
    rng = random.Random(seed)
    b = SmallBuilder(rng.randrange)
    kind = rng.choice(("BC", "BTC", "BCT", "BT"))
    x = b.add_input(kind, *{"BC": (2,), "BTC": (2, 2), "BCT": (2, 2), "BT": (2,)}[kind])
    if kind == "BT":
        b.emit("BTC", f"F.embedding({x}, {b.parameter(VOCABULARY, b.width())})")
    else:
        b.emit(kind, projected(b, x, b.between(2, 4)))
    for _ in range(steps):
        last = b.values[-1]
        row = rng.choice([row for row in ROWS.values() if row.suits(b, last)])
        b.ops.append(row.name)
        row.write(b, last)
    last = b.values[-1]
    return b.program(projected(b, last, 2))
