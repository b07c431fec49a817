"""Splits, slices, views, permutations and gathers."""

from __future__ import annotations

from tests.fuzz.program import Builder, Value
from tests.fuzz.table import even, op, several

ANY = "BCHW BCT BTC BC BHWC"


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


@op("BCHW BCT")
def flatten(b: Builder, x: Value) -> None:
    b.emit("BC", f"{x}.flatten(1)")


@op("BCHW")
def to_tokens(b: Builder, x: Value) -> None:
    b.emit("BTC", f"{x}.flatten(2).transpose(1, 2)")


@op("BCT BTC")
def transpose(b: Builder, x: Value) -> None:
    b.emit("BTC" if x.kind == "BCT" else "BCT", f"{x}.transpose(1, 2)")
