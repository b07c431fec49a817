"""The op table of random programs: one row per op, and what rows share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.fuzz.program import Builder, Value

When = Callable[[Builder, Value], bool]
Write = Callable[[Builder, Value], None]

FIRST = "BCHW BCT BCTHW"
LAST = "BTC BC BHWC"
ANY = f"{FIRST} {LAST}"
CONVOLUTION = {"BCHW": "2d", "BCT": "1d", "BCTHW": "3d"}
ACTIVATIONS = (
    "torch.tanh",
    "F.gelu",
    "F.silu",
    "torch.sigmoid",
    "F.leaky_relu",
    "F.softplus",
    "F.elu",
    "torch.sin",
)


@dataclass(frozen=True)
class Op:
    """One row: `write` emits the op's lines for an operand of one of `kinds` that suits `when`.

    A row for one layout is drawn more often than a row for all of them: then each occurs as often.
    """

    name: str
    kinds: tuple[str, ...]
    write: Write
    when: When

    @property
    def weight(self) -> int:
        return len(ANY.split()) // len(self.kinds)

    def suits(self, builder: Builder, value: Value) -> bool:
        return value.kind in self.kinds and self.when(builder, value)


TABLE: dict[str, Op] = {}


def op(kinds: str, when: When = lambda b, x: True) -> Callable[[Write], Write]:
    """Register a row for operands of the kinds named in one string."""

    def register(write: Write) -> Write:
        name = write.__name__
        assert name not in TABLE, f"two rows for {name}"
        TABLE[name] = Op(name, tuple(kinds.split()), write, when)
        return write

    return register


def projection(b: Builder, x: Value, out: int, bias: bool = True) -> str:
    """A layer that makes `out` channels of a value like `x`."""
    if x.kind in CONVOLUTION:
        kernel = b.pick((1, 3))
        source = f"nn.Conv{CONVOLUTION[x.kind]}({x['C']}, {out}, {kernel}"
        return b.layer(f"{source}, padding={kernel // 2}, bias={bias})")
    return b.layer(f"nn.Linear({x['C']}, {out}, bias={bias})")


def project(b: Builder, x: Value, out: int, bias: bool = True) -> str:
    """An expression for `x` with `out` channels, by a layer of its own."""
    return f"{projection(b, x, out, bias)}({x})"


def activation(b: Builder) -> str:
    return str(b.pick(ACTIVATIONS))


def even(letter: str) -> When:
    """The operand's dimension of this letter has an even size."""
    return lambda b, x: x[letter] % 2 == 0


def several(letter: str, least: int = 2) -> When:
    """The operand's dimension of this letter has at least some size."""
    return lambda b, x: x[letter] >= least


def per_channel(x: Value, name: str) -> str:
    """A parameter with one entry per channel, shaped to broadcast against `x`."""
    behind = len(x.kind) - 1 - x.dim("C")
    return name + (f"[{', '.join([':'] + ['None'] * behind)}]" if behind else "")
