"""Embeddings of token ids."""

from __future__ import annotations

from tests.fuzz.program import VOCABULARY, Builder, Value
from tests.fuzz.table import activation, op, project


@op("BT")
def embedding(b: Builder, x: Value) -> None:
    padding = b.pick(("", ", padding_idx=0"))
    b.emit("BTC", b.call(f"nn.Embedding({VOCABULARY}, {b.width()}{padding})", x))


@op("BT")
def functional_embedding(b: Builder, x: Value) -> None:
    b.emit("BTC", f"F.embedding({x}, {b.parameter(VOCABULARY, b.width())})")


@op("BT")
def embedding_and_positions(b: Builder, x: Value) -> None:
    """A table of positions is sliced to the length, or looked up by a range."""
    width, places = b.width(), x["T"] + b.between(0, 2)
    tokens = b.call(f"nn.Embedding({VOCABULARY}, {width})", x)
    if b.flag():
        table = f"{b.parameter(places, width, stem='table')}[: {b.size(x, 'T')}]"
    else:
        table = b.call(f"nn.Embedding({places}, {width})", f"torch.arange({b.size(x, 'T')})")
    b.emit("BTC", f"{tokens} + {table}")


@op("BT")
def factored_embedding(b: Builder, x: Value) -> None:
    """A narrow table and a layer that widens it."""
    tokens = b.temp("BTC", b.call(f"nn.Embedding({VOCABULARY}, {b.width(high=4)})", x))
    b.emit("BTC", project(b, tokens, b.width()))


@op("BT")
def tied_embedding(b: Builder, x: Value) -> None:
    """The table also reads the scores off; its rows are fixed."""
    width = b.width()
    table = b.layer(f"nn.Embedding({VOCABULARY}, {width})")
    tokens = b.emit("BTC", f"{table}({x})")
    hidden = b.temp("BTC", project(b, b.temp("BTC", f"{activation(b)}({tokens})"), width))
    b.emit("BTC", f"F.linear({hidden}, {table}.weight)")
    b.use(tokens)


@op("BT")
def one_hot(b: Builder, x: Value) -> None:
    weight = b.parameter(VOCABULARY, b.width())
    b.emit("BTC", f"F.one_hot({x}, {VOCABULARY}).to({weight}.dtype) @ {weight}")
