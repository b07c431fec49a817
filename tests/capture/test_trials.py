"""How often, at which sizes and in which mode a model is run to be captured."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.capture.inputs import bind
from fxprune.capture.symbols import symbols

Body = Callable[["Counted", Tensor], Tensor]
Run = tuple[bool, bool]  # whether in train mode, whether at the example's sizes


class Counted(nn.Module):
    """Runs `body` after a convolution, and notes every run of a copy in `runs`."""

    runs: list[Run] = []  # noqa: RUF012  (shared by the copies that capture makes)
    sizes: list[tuple[bool, int]] = []  # noqa: RUF012

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        size = x.untyped_storage().size()
        self.runs.append((self.training, size == SIZE))
        self.sizes.append((self.training, size))
        return self.body(self, self.conv(x))


X = torch.randn(2, 3, 10, 12, dtype=torch.float64)
SIZE = X.untyped_storage().size()


def mean(model: Counted, x: Tensor) -> Tensor:
    return model.drop(x).mean((2, 3))


def asks(model: Counted, x: Tensor) -> Tensor:
    return model.drop(x).sum((2, 3)) / (x.shape[2] * x.shape[3])


def other_literal(model: Counted, x: Tensor) -> Tensor:
    return x.mean((2, 3)) * (3.0 if model.training else 1.0) + F.relu(x).sum((2, 3))


def drops(model: Counted, x: Tensor) -> Tensor:
    x = F.dropout(x, 0.25, model.training).flatten(2)
    q = x.transpose(1, 2)
    mixed = F.scaled_dot_product_attention(q, q, q, dropout_p=0.5 * model.training)
    return mixed.reshape(x.shape[0], x.shape[2] * 6)


def asks_and_scales(model: Counted, x: Tensor) -> Tensor:
    return x.sum((2, 3)) / x.shape[2] * (0.25 if model.training else 0.5)


def asks_in_training(model: Counted, x: Tensor) -> Tensor:
    return x.mean((2, 3)) * (x.shape[0] if model.training else 1.0)


BASE, TRIAL, TRAIN, TRAIN_TRIAL = (False, True), (False, False), (True, True), (True, False)


@pytest.mark.parametrize(
    ("body", "runs"),
    [
        (mean, [BASE, TRAIN_TRIAL]),
        (asks, [BASE, TRIAL, TRAIN_TRIAL]),
        (other_literal, [BASE, TRAIN_TRIAL]),
        (drops, [BASE, TRIAL, TRAIN_TRIAL, TRAIN]),
        # A size may have made a number that eval mode has, too.
        (asks_and_scales, [BASE, TRIAL, TRAIN_TRIAL, TRIAL, TRAIN]),
    ],
    ids=["mean", "asks", "other_literal", "drops", "asks_and_scales"],
)
def test_a_run_shows_all_that_it_can(body: Body, runs: list[Run]) -> None:
    model = Counted(body).double().eval()
    Counted.runs.clear()
    traced = fxprune.trace(model, X)
    assert Counted.runs == runs
    assert traced.meta["fxprune"].dynamic == {"x": (0, 2, 3)}
    other = torch.randn(3, 3, 9, 17, dtype=torch.float64)
    for training in (False, True):
        model.train(training)
        traced.train(training)
        torch.manual_seed(0)
        expected = model(other)
        torch.manual_seed(0)
        torch.testing.assert_close(traced(other), expected)


def drops_more_of_more(model: Counted, x: Tensor) -> Tensor:
    rate = 0.1 * math.log(x.shape[2]) if model.training else 0.0  # does not remember the size
    return F.dropout(x, rate, model.training).sum((2, 3)) / x.shape[3]


def test_the_rate_of_dropout_is_that_at_the_examples_sizes() -> None:
    model = Counted(drops_more_of_more).double()
    traced = fxprune.trace(model.eval(), X)
    model.train()
    traced.train()
    torch.manual_seed(0)
    expected = model(X)
    torch.manual_seed(0)
    torch.testing.assert_close(traced(X), expected)


def odd_one_out(model: Counted, x: Tensor) -> Tensor:
    five = int(str(x.shape[0])) == 5  # a number that does not remember that it is a size
    return model.drop(x).sum((2, 3), keepdim=five).flatten(1) / x.shape[2]


def test_a_flag_that_one_size_has_is_not_that_of_a_mode() -> None:
    model = Counted(odd_one_out).double().eval()
    (batch,) = (s for s in symbols(bind(model, X).leaves) if ("x", 0) in s.places)
    assert batch.trials[0] == 5
    Counted.runs.clear()
    traced = fxprune.trace(model, X)
    assert Counted.runs[:4] == [BASE, TRIAL, TRAIN_TRIAL, TRIAL]
    with pytest.raises(fxprune.TraceError, match="dimension 0 of 'x'"):
        traced(torch.randn(5, 3, 10, 12, dtype=torch.float64))


def test_a_size_that_only_train_mode_asks_for_is_noted() -> None:
    model = Counted(asks_in_training).double().eval()
    Counted.runs.clear()
    traced = fxprune.trace(model, X)
    assert Counted.runs == [BASE, TRAIN_TRIAL, TRIAL, TRAIN]
    note = "the model: mul has 1.0 in eval mode and a size in train mode"
    assert traced.meta["fxprune"].mode_notes == (note,)


def strides(model: Counted, x: Tensor) -> Tensor:
    return x.flatten(1) / x.stride(0)


def counts(model: Counted, x: Tensor) -> Tensor:
    return x.flatten(1) / x.numel()


def lengths(model: Counted, x: Tensor) -> Tensor:
    return x.flatten(1) / len(x)


@pytest.mark.parametrize("body", [strides, counts, lengths])
def test_numbers_that_sizes_make_follow_them(body: Body) -> None:
    model = Counted(body).double().eval()
    traced = fxprune.trace(model, X)
    other = torch.randn(3, 3, 9, 17, dtype=torch.float64)
    torch.testing.assert_close(traced(other), model(other))


def one_at_a_time(model: Counted, x: Tensor) -> Tensor:
    return x if (x.shape[2] - 10) * (x.shape[3] - 12) == 0 else F.relu(x)


def test_only_the_first_other_path_is_run_again() -> None:
    # Trials end where they differ; one goes on, for what the model keeps from it.
    model = Counted(one_at_a_time).double().eval()
    Counted.sizes.clear()
    traced = fxprune.trace(model, X)
    assert traced.meta["fxprune"].dynamic == {"x": (0, 2)}
    again = [run for run in Counted.sizes if Counted.sizes.count(run) > 1]
    assert len(again) == 2


class Fixed(nn.Module):
    """Asks for no size, and bears one only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 5 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.avg_pool2d(x, 2).flatten(1))  # type: ignore[no-any-return]


def test_sizes_that_a_layer_fixes_stay_fixed_without_being_asked_for() -> None:
    traced = fxprune.trace(Fixed().double().eval(), X)
    info = traced.meta["fxprune"]
    assert info.dynamic == {"x": (0,)}
    assert {2, 3} <= set(info.specialised["x"])


def crop(model: Counted, x: Tensor) -> Tensor:
    return x[:, :, : 3 if model.training else 5].mean((2, 3))


def optional(model: Counted, x: Tensor) -> Tensor:
    return x.flatten(1).softmax(1, dtype=torch.float32 if model.training else None)


def another_operand(model: Counted, x: Tensor) -> Tensor:
    one, two = x.relu(), x.sigmoid()
    return (one * x).sum((2, 3)) + (one if model.training else two).sum((2, 3))


def number_for_tensor(model: Counted, x: Tensor) -> Tensor:
    gate = x.sigmoid()
    return x * (2.0 if model.training else gate) + gate


@pytest.mark.parametrize(
    ("body", "note"),
    [
        (crop, "getitem has slice(None, 5, None) in eval mode and slice(None, 3, None) in train"),
        (optional, "softmax has None in eval mode and torch.float32 in train mode"),
        (another_operand, "sum takes other values in train mode"),
        (number_for_tensor, "mul takes other values in train mode"),
    ],
)
def test_what_a_graph_cannot_follow_in_train_mode_is_noted(body: Body, note: str) -> None:
    # Only numbers of their own were compared: the rest differed without a word.
    traced = fxprune.trace(Counted(body).double().eval(), X)
    (found,) = traced.meta["fxprune"].mode_notes
    assert note in found
