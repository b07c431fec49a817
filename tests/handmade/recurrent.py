"""Networks for sequences: recurrent cells, causal and gated convolutions in one dimension."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.handmade.table import VOCABULARY, Handmade, floats, joined, tokens

CELLS: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class LastState(nn.Module):
    """Classifies by the last layer's final state, in both directions if there are two."""

    def __init__(self, cell: str, layers: int, both: bool, batch_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 10)
        self.rnn = CELLS[cell](10, 8, layers, batch_first=batch_first, bidirectional=both)
        self.head = nn.Linear(16 if both else 8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        _, state = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        state = state[0] if isinstance(state, tuple) else state
        both = self.rnn.bidirectional
        return self.head(torch.cat([state[-2], state[-1]], 1) if both else state[-1])


class LastOutput(nn.Module):
    """Classifies by the output at the last step; in a stack, by that of the upper module."""

    def __init__(self, cell: str, both: bool) -> None:
        super().__init__()
        self.lower = CELLS[cell](5, 6, 2, batch_first=True, bidirectional=both)
        self.upper = CELLS[cell](12 if both else 6, 7, batch_first=True, bidirectional=both)
        self.head = nn.Linear(14 if both else 7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upper(self.lower(x)[0])[0][:, -1])


class SplitDirections(nn.Module):
    """The directions of the output, taken apart: the last forward and the first backward step."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(x)
        forward, backward = y[:, -1, :8], y[:, 0, 8:]
        return self.head(forward + backward)


class AttentionOverStates(nn.Module):
    """Embedding, bidirectional LSTM, additive attention over its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 10, padding_idx=0)
        self.lstm = nn.LSTM(10, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.attend, self.score = nn.Linear(16, 9), nn.Linear(9, 1, bias=False)
        self.head = nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        y, _ = self.lstm(self.embed(ids))
        weights = self.score(torch.tanh(self.attend(y))).softmax(dim=1)
        return self.head((weights * y).sum(1))


class Translator(nn.Module):
    """Encoder and decoder; the decoder starts at the encoder's final state."""

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(VOCABULARY, 6)
        self.target = nn.Embedding(VOCABULARY, 7)
        self.encoder = nn.LSTM(6, 8, batch_first=True)
        self.decoder = nn.LSTM(7, 8, batch_first=True)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        _, (hidden, cell) = self.encoder(self.source(source))
        y, _ = self.decoder(self.target(target), (hidden, cell))
        return self.head(y)


class Captioner(nn.Module):
    """A vector, projected, is the initial state of a GRU; all layers' states are flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(5, 8)
        self.gru = nn.GRU(6, 8, num_layers=1)
        self.stack = nn.GRU(8, 9, num_layers=2)
        self.head = nn.Linear(18, 4)

    def forward(self, image: Tensor, words: Tensor) -> Tensor:
        start = torch.tanh(self.start(image)).unsqueeze(0)
        y, _ = self.gru(words.transpose(0, 1), start)
        _, last = self.stack(y)
        return self.head(last.transpose(0, 1).reshape(image.shape[0], -1))


class Cells(nn.Module):
    """Cells stepped by hand over a fixed number of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(5, 8), nn.GRUCell(8, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = x.new_zeros(x.shape[0], 8)
        state = x.new_zeros(x.shape[0], 7)
        for step in range(3):
            hidden, cell = self.lstm(x[:, step], (hidden, cell))
            state = self.gru(hidden, state)
        return self.head(state)


class Causal(nn.Module):
    """A dilated causal convolution: padded on both sides, the right one chomped."""

    def __init__(self, source: int, target: int, dilation: int) -> None:
        super().__init__()
        self.chomp = 2 * dilation
        self.conv = nn.Conv1d(source, target, 3, padding=self.chomp, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :, : -self.chomp].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, source: int, inner: int, target: int, dilation: int) -> None:
        super().__init__()
        self.first = Causal(source, inner, dilation)
        self.second = Causal(inner, target, dilation)
        self.shortcut = nn.Conv1d(source, target, 1) if source != target else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.second(torch.relu(self.first(x))))
        return torch.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class TemporalNetwork(nn.Module):
    """A TCN: dilations 1, 2, 4 and residual sums; the last step is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            TemporalBlock(4, 6, 8, 1), TemporalBlock(8, 7, 8, 2), TemporalBlock(8, 9, 10, 4)
        )
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x)[:, :, -1])


class WaveNet(nn.Module):
    """Gates by split, residual sums and skip sums, left padding, a local condition."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(2, 8, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(8, 12, 2, dilation=2**i) for i in range(3))
        self.condition = nn.ModuleList(nn.Conv1d(3, 12, 1) for _ in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(6, 8, 1) for _ in range(3))
        self.skip = nn.ModuleList(nn.Conv1d(6, 10, 1) for _ in range(3))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(10, 7, 1), nn.ReLU(), nn.Conv1d(7, 4, 1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x, skips = self.start(x), 0
        layers = zip(self.dilated, self.condition, self.residual, self.skip, strict=True)
        for depth, (dilated, local, residual, skip) in enumerate(layers):
            y = dilated(F.pad(x, (2**depth, 0))) + local(condition)
            a, b = torch.split(y, 6, dim=1)
            y = torch.tanh(a) * torch.sigmoid(b)
            skips = skips + skip(y)
            x = x + residual(y)
        return self.end(skips)


class Speech(nn.Module):
    """Conv1d with gated linear units, a Conformer's convolution module, a BatchNorm1d."""

    def __init__(self) -> None:
        super().__init__()
        self.subsample = nn.Conv1d(4, 16, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(8)
        self.point = nn.Conv1d(8, 20, 1)
        self.depthwise = nn.Conv1d(10, 10, 5, padding=2, groups=10)
        self.batch_norm, self.back = nn.BatchNorm1d(10), nn.Conv1d(10, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.subsample(x), dim=1).transpose(1, 2)
        y = F.glu(self.point(self.norm(x).transpose(1, 2)), dim=1)
        y = self.back(F.silu(self.batch_norm(self.depthwise(y))))
        return self.head(x + y.transpose(1, 2)).log_softmax(-1)


IDS = tokens(ids=(2, 9)), tokens(ids=(3, 13))
STEPS = floats(x=(2, 9, 5)), floats(x=(3, 13, 5))


def last_state(cell: str, layers: int, both: bool, batch_first: bool) -> Handmade:
    return Handmade(
        functools.partial(LastState, cell, layers, both, batch_first),
        *IDS,
        "8 10",
        {"rnn.weight_hh_l0:1": "8", "head.weight:1": "8", "embed.weight:1": "10"},
    )


def last_output(cell: str, both: bool) -> Handmade:
    return Handmade(functools.partial(LastOutput, cell, both), *STEPS, "6 7")


MODELS = {
    "lstm_last_state": last_state("lstm", 1, False, True),
    "lstm_last_state_stacked_both": last_state("lstm", 2, True, True),
    "gru_last_state_stacked": last_state("gru", 3, False, False),
    "gru_last_state_both": last_state("gru", 1, True, False),
    "rnn_last_state_stacked_both": last_state("rnn", 2, True, False),
    "lstm_last_output": last_output("lstm", False),
    "gru_last_output_both": last_output("gru", True),
    "rnn_last_output_both": last_output("rnn", True),
    "split_directions": Handmade(SplitDirections, *STEPS, "8"),
    "attention_over_states": Handmade(AttentionOverStates, *IDS, "8 9 10"),
    "translator": Handmade(
        Translator,
        tokens(source=(2, 9), target=(2, 7)),
        tokens(source=(3, 13), target=(3, 5)),
        "6 7 8",
    ),
    "captioner": Handmade(
        Captioner,
        joined(floats(image=(2, 5)), floats(words=(2, 9, 6))),
        joined(floats(image=(3, 5)), floats(words=(3, 13, 6))),
        "8 9",
    ),
    "cells": Handmade(Cells, floats(x=(2, 3, 5)), floats(x=(3, 3, 5)), "7 8"),
    "temporal_network": Handmade(
        TemporalNetwork, floats(x=(2, 4, 20)), floats(x=(3, 4, 31)), "6 7 8 9 10"
    ),
    "wavenet": Handmade(
        WaveNet,
        floats(x=(2, 2, 16), condition=(2, 3, 16)),
        floats(x=(3, 2, 21), condition=(3, 3, 21)),
        "6 6 6 7 8 10",
    ),
    "speech": Handmade(Speech, floats(x=(2, 4, 16)), floats(x=(3, 4, 22)), "8 10"),
}
