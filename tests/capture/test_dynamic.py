"""Which sizes a graph accepts: proven by captures at other sizes, guarded where it is not."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.capture import TraceInfo, trace
from fxprune.errors import TraceError


def info(gm: fx.GraphModule) -> TraceInfo:
    found = gm.meta["fxprune"]
    assert isinstance(found, TraceInfo)
    return found


def agrees(gm: fx.GraphModule, model: nn.Module, *shape: int) -> bool:
    x = torch.randn(shape)
    return torch.equal(gm(x), model(x))


class Fn(nn.Module):
    def __init__(self, fn: Any) -> None:
        super().__init__()
        self.fn = fn
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


def test_channel_sizes_are_literals_and_other_sizes_are_nodes() -> None:
    def heads(x: Tensor) -> Tensor:
        b, t, c = x.shape
        return x.view(b, t, 2, c // 2).transpose(1, 2).reshape(b, 2 * t, c // 2)

    class Tokens(Fn):
        def forward(self, x: Tensor) -> Tensor:
            return self.fn(self.fc(x))

    model = Tokens(heads)
    gm = trace(model, torch.randn(2, 5, 8))
    assert info(gm).dynamic == {"x": (0, 1)}
    (view,) = [n for n in gm.graph.nodes if n.target == "view"]
    sizes = view.args[1:]
    assert [isinstance(s, fx.Node) for s in sizes] == [True, True, False, False]
    assert sizes[2:] == (2, 4)
    assert agrees(gm, model, 3, 9, 8)
    assert agrees(gm, model, 1, 1, 8)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: F.pad(x, (0, -x.shape[-1] % 7)),
        lambda x: x[..., : math.ceil(x.shape[-1] / 3)],
        lambda x: x.new_zeros(x.size(0), x.numel() // x.size(0)),
        lambda x: x * x.shape[-1] ** -0.5,
        lambda x: x.reshape(len(x), math.prod(x.shape[1:])),
        lambda x: x[:, : min(x.shape[1], 100)],
        lambda x: x.expand(2, *x.shape).reshape(2 * x.shape[0], -1),
        lambda x: x + torch.arange(x.shape[-1]) / float(1),
        lambda x: x.split([x.shape[1] - 1, 1], 1)[0],
        lambda x: x.view(int(x.shape[0]), -1),
        lambda x: torch.zeros(int(x.shape[1]) * 2 + 3),
        lambda x: torch.cat([x, torch.full((x.shape[0], 2), round(x.shape[1] / 2))], 1),
    ],
    ids="pad slice numel power prod minimum expand arange split int factory round".split(),
)
def test_sizes_computed_in_python_follow_the_input(fn: Any) -> None:
    model = Fn(fn)
    gm = trace(model, torch.randn(2, 12))
    assert info(gm).dynamic == {"x": (0, 1)}
    for shape in ((3, 12), (2, 13), (5, 14), (1, 33)):
        assert agrees(gm, model, *shape)


def test_what_only_seems_constant_is_still_computed() -> None:
    # The padding is 0 at multiples of 32, where careful trials are made.
    def windows(x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        x = F.pad(x, (0, (8 - w % 8) % 8, 0, (8 - h % 8) % 8))
        return x.reshape(x.shape[0], 3, x.shape[2] // 8, 8, -1)

    model = Fn(windows)
    gm = trace(model, torch.randn(2, 3, 64, 64))
    assert info(gm).dynamic == {"x": (0, 2, 3)}
    assert agrees(gm, model, 1, 3, 61, 90)
    assert agrees(gm, model, 1, 3, 8, 65)


def test_a_model_of_multiples_is_guarded_by_its_step() -> None:
    def halves(x: Tensor) -> Tensor:
        assert x.shape[-1] % 32 == 0, "multiples of 32 only"
        return F.avg_pool2d(x, 32) + torch.ones(int(x.shape[2]) // 32, int(x.shape[3]) // 32)

    model = Fn(halves)
    gm = trace(model, torch.randn(2, 3, 64, 96))
    assert info(gm).dynamic == {"x": (0, 2, 3)}
    assert info(gm).steps == {"x": {2: 32, 3: 32}}
    assert agrees(gm, model, 1, 3, 96, 32)
    with pytest.raises(TraceError, match=r"dimension 3 of 'x' has size 100, .* multiples of 32"):
        gm(torch.randn(1, 3, 64, 100))


@pytest.mark.parametrize(("unit", "sizes"), [(4, (12, 20)), (16, (48, 80)), (64, (64, 192))])
def test_steps_are_as_small_as_the_model_bears(unit: int, sizes: tuple[int, int]) -> None:
    def padded(x: Tensor) -> Tensor:
        rest = [-n % unit for n in (x.shape[3], x.shape[2])]
        if any(rest):
            x = F.pad(x, [0, rest[0], 0, rest[1]])
        return F.avg_pool2d(x, unit)

    model = Fn(padded)
    gm = trace(model, torch.randn(2, 3, *sizes))
    assert info(gm).dynamic == {"x": (0, 2, 3)}
    assert info(gm).steps == {"x": {2: unit, 3: unit}}
    assert agrees(gm, model, 1, 3, 5 * unit, 2 * unit)


def test_an_error_that_the_model_handles_does_not_hide_where_a_trial_differs() -> None:
    def handled(x: Tensor) -> Tensor:
        with contextlib.suppress(Exception):
            if x.shape[1] > 10:
                x.sin()
        return x.cos()

    gm = trace(Fn(handled), torch.randn(2, 6))
    assert info(gm).dynamic == {"x": (0,)}


def test_a_size_that_cannot_vary_is_listed_and_guarded() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(6, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table

    gm = trace(Positions(), torch.randn(2, 6, 8))
    assert info(gm).dynamic == {"x": (0,)}
    assert {d: size for d, (size, _) in info(gm).specialised["x"].items()} == {1: 6, 2: 8}
    assert "fails at another size" in info(gm).specialised["x"][1][1]
    with pytest.raises(TraceError, match=r"input 'x' has size 7 in dimension 1 .* traced for 6"):
        gm(torch.randn(2, 7, 8))
    with pytest.raises(TraceError, match=r"has 2 dimensions .* traced with 3"):
        gm(torch.randn(6, 8))


def test_a_branch_on_a_size_that_trials_did_not_take_is_guarded() -> None:
    def pooled(x: Tensor) -> Tensor:
        return x * 2 if x.shape[1] > 4 else x

    model = Fn(pooled)
    gm = trace(model, torch.randn(2, 6))
    assert agrees(gm, model, 3, 5)
    with pytest.raises(TraceError, match=r"takes a path that was not traced .*gt\(.*, 4\)"):
        gm(torch.randn(3, 4))


def test_a_branch_that_trials_take_specialises() -> None:
    gm = trace(Fn(lambda x: x * 2 if x.shape[1] > 10 else x + 2), torch.randn(2, 6))
    assert info(gm).dynamic == {"x": (0,)}
    assert "takes different paths (add and mul at" in info(gm).specialised["x"][1][1]
    gm = trace(Fn(lambda x: x * 2 if x.shape[1] > 10 else x), torch.randn(2, 6))
    assert "runs more operations (mul at" in info(gm).specialised["x"][1][1]
    gm = trace(Fn(lambda x: (x * 2) if x.shape[1] < 10 else x), torch.randn(2, 6))
    assert "runs fewer operations" in info(gm).specialised["x"][1][1]


def test_trials_of_a_loop_end_where_they_differ() -> None:
    # Each trial ran to its end, for thousands of steps where a model loops over a dimension.
    turns = 0

    def looped(x: Tensor) -> Tensor:
        nonlocal turns
        for frame in x.unbind(1):
            turns += 1
            for step in range(100):
                x = x + step * frame[:, None]
        return x

    gm = trace(Fn(looped), torch.randn(2, 6))
    assert info(gm).dynamic == {"x": (0,)}
    assert turns < 100


def test_a_branch_that_only_wide_trials_take_is_guarded() -> None:
    gm = trace(Fn(lambda x: x * 2 if x.shape[1] > 30 else x), torch.randn(2, 6))
    assert info(gm).dynamic == {"x": (0, 1)}
    with pytest.raises(TraceError, match="takes a path that was not traced"):
        gm(torch.randn(2, 31))


def test_a_value_that_is_neither_linear_in_the_size_nor_a_product_specialises() -> None:
    gm = trace(Fn(lambda x: x * (int(x.shape[1]) ** 2 + 1)), torch.randn(2, 6))
    assert info(gm).dynamic == {"x": (0,)}
    assert "37 and" in info(gm).specialised["x"][1][1]


@pytest.mark.parametrize("power", [2, 3])
def test_products_of_sizes_are_found_where_their_computation_is_not(power: int) -> None:
    model = Fn(lambda x: x * int(x.shape[1]) ** power * 5)
    gm = trace(model, torch.randn(2, 6))
    assert info(gm).dynamic == {"x": (0, 1)}
    assert agrees(gm, model, 3, 11)


@pytest.mark.parametrize("number", [lambda n: n, lambda n: 3 * n - 2, lambda n: n * n])
def test_whole_floats_follow_the_size_that_they_were_made_of(number: Any) -> None:
    # `float(size)` is a float without a memory; rotary tables divide their positions by it.
    model = Fn(lambda x: x / float(number(x.shape[1])))
    gm = trace(model, torch.randn(2, 6))
    assert info(gm).dynamic == {"x": (0, 1)}
    assert agrees(gm, model, 3, 11)


class Pair(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x.masked_fill(mask, 0.0)


def test_dimensions_of_equal_size_that_belong_together_vary_together() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x @ x.transpose(1, 2) + mask

    model = Square()
    gm = trace(model, (torch.randn(2, 5, 3), torch.randn(5, 5)))
    assert info(gm).dynamic == {"x": (0, 1, 2), "mask": (0, 1)}
    x, mask = torch.randn(4, 7, 2), torch.randn(7, 7)
    assert torch.equal(gm(x, mask), model(x, mask))
    with pytest.raises(TraceError, match="were equal when the model was traced"):
        gm(x, torch.randn(1, 7))


def test_dynamic_restricts() -> None:
    gm = trace(Fn(torch.relu), torch.randn(2, 6), dynamic={"x": {0}})
    assert info(gm).dynamic == {"x": (0,)}
    assert info(gm).specialised["x"][1] == (6, "the caller asked for a fixed size")
    with pytest.raises(TraceError, match="size 7 in dimension 1"):
        gm(torch.randn(2, 7))
    gm = trace(Fn(torch.relu), torch.randn(2, 6), dynamic={"x": {-1: False}})
    assert info(gm).dynamic == {"x": (0,)}


def test_dynamic_demands() -> None:
    with pytest.raises(
        TraceError, match=r"demands dimension 1 of .x. \(traced size 6\), but it cannot"
    ):
        trace(Fn(lambda x: x + torch.ones(6)), torch.randn(2, 6), dynamic={"x": {1}})
    with pytest.raises(TraceError, match=r"names 'y', but the tensor inputs are x"):
        trace(Fn(torch.relu), torch.randn(2, 6), dynamic={"y": {0}})
    with pytest.raises(TraceError, match="names dimension 2 of 'x', which has 2 dimensions"):
        trace(Fn(torch.relu), torch.randn(2, 6), dynamic={"x": {2}})


def test_channels_of_images_are_not_tried_but_may_be_demanded() -> None:
    gm = trace(Fn(torch.relu), torch.randn(2, 3, 8, 8))
    assert info(gm).dynamic == {"x": (0, 2, 3)}
    gm = trace(Fn(torch.relu), torch.randn(2, 3, 8, 8), dynamic={"x": {0, 1, 2, 3}})
    assert info(gm).dynamic == {"x": (0, 1, 2, 3)}


class Skip(nn.Module):
    """Two levels of a U-Net: the halves only match where the size divides by 4."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 3, 3, padding=1)
        self.up = nn.ConvTranspose2d(3, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        half = self.down(F.max_pool2d(x, 2))
        half = half + self.up(F.max_pool2d(half, 2))
        return x + self.up(half)


def test_a_batch_that_only_near_trials_bear_is_free_up_to_the_guard() -> None:
    def frames(x: Tensor) -> Tensor:
        still = x.flatten(0, 1)
        still = still.sin() if still.shape[0] < 64 else still.contiguous().sin()
        return still.unflatten(0, x.shape[:2]).mean(1)

    model = Fn(frames)
    gm = trace(model, torch.randn(2, 4, 3, 8, 8))
    assert info(gm).dynamic == {"x": (0, 2, 3, 4)}
    assert not info(gm).steps
    assert agrees(gm, model, 15, 4, 3, 5, 6)
    with pytest.raises(TraceError, match="takes a path that was not traced"):
        gm(torch.randn(16, 4, 3, 8, 8))


def test_the_unit_of_image_sizes_is_as_small_as_can_be_proven() -> None:
    model = Skip()
    gm = trace(model, torch.randn(1, 3, 64, 64))
    assert info(gm).steps == {"x": {2: 4, 3: 4}}
    assert agrees(gm, model, 2, 3, 68, 20)
    with pytest.raises(TraceError, match="multiples of 4"):
        gm(torch.randn(1, 3, 66, 64))


def test_a_batch_of_frames_grows_by_whole_videos() -> None:
    model = Fn(lambda x: x.reshape(x.shape[0] // 3, 3, -1).mean(1))
    gm = trace(model, torch.randn(6, 5))
    assert info(gm).steps == {"x": {0: 3}}
    assert info(gm).dynamic == {"x": (0, 1)}
    assert agrees(gm, model, 9, 7)
    with pytest.raises(TraceError, match="multiples of 3"):
        gm(torch.randn(7, 5))
