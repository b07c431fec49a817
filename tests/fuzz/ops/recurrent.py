"""Recurrent layers and cells."""

from __future__ import annotations

from tests.fuzz.program import Builder, Value
from tests.fuzz.table import op


@op("BTC")
def recurrent(b: Builder, x: Value) -> None:
    name, sizes = b.pick(("LSTM", "GRU", "RNN")), f"{x['C']}, {b.width(high=5)}, {b.between(1, 2)}"
    layer = b.layer(f"nn.{name}({sizes}, batch_first=True, bidirectional={b.flag()})")
    b.emit("BTC", f"{layer}({x})[0]")


@op("BTC")
def recurrent_in_time(b: Builder, x: Value) -> None:
    """Time first."""
    name, hidden = b.pick(("LSTM", "GRU", "RNN")), b.width(high=5)
    layer = b.layer(f"nn.{name}({x['C']}, {hidden}, bidirectional={b.flag()})")
    b.emit("BTC", f"{layer}({x}.transpose(0, 1))[0].transpose(0, 1)")


@op("BTC")
def last_state(b: Builder, x: Value) -> None:
    name = b.pick(("GRU", "RNN"))
    layer = b.layer(f"nn.{name}({x['C']}, {b.width(high=5)}, batch_first=True)")
    b.emit("BC", f"{layer}({x})[1][-1]")


@op("BTC")
def states_of_both_directions(b: Builder, x: Value) -> None:
    layer = b.layer(f"nn.LSTM({x['C']}, {b.width(high=5)}, 2, True, True, bidirectional=True)")
    states = b.temp("BTC", f"{layer}({x})[1][0]")
    b.emit("BC", f"torch.cat([{states}[-2], {states}[-1]], dim=1)")


@op("BTC")
def projected_lstm(b: Builder, x: Value) -> None:
    layer = b.layer(f"nn.LSTM({x['C']}, 6, batch_first=True, proj_size={b.between(2, 4)})")
    b.emit("BTC", f"{layer}({x})[0]")


@op("BTC")
def initial_state(b: Builder, x: Value) -> None:
    """The state starts at what a layer makes of the first token."""
    hidden = b.width(high=5)
    first = b.layer(f"nn.Linear({x['C']}, {hidden})")
    start = b.temp("BTC", f"{first}({x}[:, 0]).unsqueeze(0)")
    layer = b.layer(f"nn.GRU({x['C']}, {hidden}, batch_first=True)")
    b.emit("BTC", f"{layer}({x}, {start})[0]")


@op("BTC")
def cells(b: Builder, x: Value) -> None:
    """A cell stepped twice by hand."""
    hidden = b.width(high=5)
    if b.flag():
        cell = b.layer(f"nn.LSTMCell({x['C']}, {hidden})")
        state, memory = b.temps(("BC", "BC"), f"{cell}({x}[:, 0])")
        b.emit("BC", f"{cell}({x}[:, -1], ({state}, {memory}))[0]")
    else:
        cell = b.layer(f"nn.GRUCell({x['C']}, {hidden})")
        state = b.temp("BC", f"{cell}({x}[:, 0])")
        b.emit("BC", f"{cell}({x}[:, -1], {state})")
