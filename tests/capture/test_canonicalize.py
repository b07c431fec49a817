"""The canonical forms compute the same, and apply exactly where they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from fxprune.capture import trace
from fxprune.capture.chains import Group, groups


class Fn(nn.Module):
    def __init__(self, fn: Any, width: int = 0) -> None:
        super().__init__()
        self.fn = fn
        self.fc = nn.Linear(width, width) if width else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.fn(self.fc(x))


def count(gm: fx.GraphModule, *wanted: Any) -> int:
    return sum(n.target in wanted for n in gm.graph.nodes)


def equal(got: Any, want: Any) -> bool:
    if isinstance(want, Tensor):
        return torch.equal(got, want)
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


K, H, D = 3, 2, 5
QKV: dict[str, tuple[Any, bool]] = {
    # name -> (what is done with (batch, tokens, channels), whether it is taken apart)
    "timm": (
        lambda x: x.reshape(x.shape[0], x.shape[1], K, H, D).permute(2, 0, 3, 1, 4).unbind(0),
        True,
    ),
    "swin": (
        lambda x: (lambda y: (y[0], y[1], y[2]))(
            x.reshape(x.shape[0], -1, K, H, D).permute(2, 0, 3, 1, 4)
        ),
        True,
    ),
    "unflatten": (lambda x: x.unflatten(-1, (K, H, D)).unbind(2), True),
    "two": (lambda x: x.unflatten(-1, (K, H * D)).unbind(-2), True),
    "heads first": (lambda x: x.view(*x.shape[:2], H, K, D).transpose(1, 2).unbind(3), True),
    "select": (
        lambda x: (lambda y: (y.select(2, 0), y.select(2, -1)))(x.unflatten(2, (K, -1))),
        True,
    ),
    "index": (
        lambda x: (lambda y: (y[:, :, 2], y[..., 1, :, :]))(x.view(*x.shape[:2], K, H, D)),
        True,
    ),
    "twice the same": (
        lambda x: (lambda y: y[0] + y[0])(x.view(-1, K, H, D).transpose(0, 1)),
        True,
    ),
    "contiguous": (
        lambda x: x.view(*x.shape[:2], K, H, D).permute(2, 0, 3, 1, 4).contiguous().unbind(0),
        True,
    ),
    "last": (lambda x: x.unflatten(-1, (H * D, K)).unbind(-1), False),
    "multi-query": (
        lambda x: (lambda y: (y[..., :-2, :], y[..., [-2], :], y[..., -1, :]))(
            x.view(*x.shape[:2], H * K, D)
        ),
        True,
    ),
    "runs": (
        lambda x: (lambda y: (y[:, :1], y[:, 3:4], y[:, 1:3]))(
            x.unflatten(-1, (H * K, D)).transpose(1, 2)
        ),
        True,
    ),
    "overlapping runs": (
        lambda x: (lambda y: (y[:, :, :4], y[:, :, 3:]))(x.unflatten(-1, (H * K, D))),
        False,
    ),
    "strided": (lambda x: (lambda y: (y[:, :, ::2],))(x.unflatten(-1, (H * K, D))), False),
    "runs by size": (
        lambda x: (lambda y: (y[:, :, : len(x)],))(x.unflatten(-1, (H * K, D))),
        False,
    ),
    "moved": (lambda x: (lambda y: (y[0], y[1:]))(x.unflatten(-1, (K, -1)).movedim(2, 0)), False),
    "other user": (
        lambda x: (lambda y: (y.sum(), y.unbind(2)[0]))(x.unflatten(-1, (K, -1))),
        False,
    ),
    "tokens": (lambda x: x.unflatten(1, (-1, 1)).unbind(2), False),
}  # fmt: skip


@pytest.mark.parametrize("name", QKV)
def test_fused_projections(name: str) -> None:
    fn, applies = QKV[name]
    model = Fn(fn, K * H * D)
    gm = trace(model, torch.randn(2, 4, K * H * D))
    gm.graph.lint()
    assert (count(gm, "split") == 1) is applies
    x = torch.randn(3, 7, K * H * D)
    assert equal(gm(x), model(x))


def test_a_view_may_split_the_tokens_as_well() -> None:
    def windows(x: Tensor) -> Any:
        return x.reshape(x.shape[0], 2, 3, K, H, D).permute(3, 0, 4, 1, 2, 5).unbind(0)

    model = Fn(windows, K * H * D)
    gm = trace(model, torch.randn(2, 6, K * H * D))
    assert count(gm, "split") == 1
    x = torch.randn(3, 6, K * H * D)
    assert equal(gm(x), model(x))


def test_the_parts_have_axes_of_their_own() -> None:
    gm = trace(Fn(QKV["timm"][0], K * H * D), torch.randn(2, 4, K * H * D))
    (split,) = [n for n in gm.graph.nodes if n.target == "split"]
    assert split.args[1:] == (H * D,)
    assert split.kwargs == {"dim": 2}
    reshapes = [n for n in gm.graph.nodes if n.target == "reshape"]
    assert [n.args[3:] for n in reshapes] == [(H, D)] * 3
    assert all(isinstance(n.args[1], fx.Node) for n in reshapes)


SHUFFLES: dict[str, tuple[Any, bool]] = {
    "torchvision": (
        lambda x: x.view(x.shape[0], 3, 4, *x.shape[2:]).transpose(1, 2).contiguous().view(x.shape),
        True,
    ),
    "flatten": (lambda x: x.unflatten(1, (2, 6)).transpose(1, 2).flatten(1, 2), True),
    "three": (
        lambda x: (
            x.reshape(len(x), 2, 3, 2, *x.shape[2:]).permute(0, 3, 1, 2, 4, 5).reshape(x.shape)
        ),
        True,
    ),
    "function": (lambda x: F.channel_shuffle(x, 4), True),
    "module": (nn.ChannelShuffle(2), True),
    "other size": (lambda x: x.unflatten(1, (3, 4)).transpose(1, 2).flatten(1), False),
    "other axis": (lambda x: x.unflatten(1, (3, 4)).transpose(0, 1).reshape(x.shape), False),
    "used between": (
        lambda x: (lambda y: y.reshape(x.shape) + y.sum())(x.unflatten(1, (3, 4)).transpose(1, 2)),
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHUFFLES)
def test_channel_shuffles(name: str) -> None:
    fn, applies = SHUFFLES[name]
    model = Fn(fn)
    gm = trace(model, torch.randn(2, 12, 5, 6))
    assert count(gm, torch.index_select) == applies
    assert [n for n, _ in gm.named_buffers()] == ["_permutation0"] * applies
    x = torch.randn(3, 12, 7, 4)
    assert equal(gm(x), model(x))


def test_equal_permutations_share_a_buffer() -> None:
    gm = trace(Fn(lambda x: F.channel_shuffle(F.channel_shuffle(x, 2), 2)), torch.randn(1, 6, 2, 2))
    assert count(gm, torch.index_select) == 2
    assert len(dict(gm.named_buffers())) == 1


factors = st.lists(st.integers(1, 4), min_size=2, max_size=4)


@given(factors, st.data())
def test_random_views_and_permutations_mean_the_same(sizes: list[int], data: st.DataObject) -> None:
    rank = len(sizes) + 2
    order = data.draw(st.permutations(range(rank)))
    taken = data.draw(st.integers(0, rank - 1))
    back = data.draw(st.booleans())
    width = int(torch.tensor(sizes).prod())

    def fn(x: Tensor) -> Any:
        y = x.reshape(x.shape[0], *sizes, x.shape[2]).permute(order)
        return y.reshape(x.shape) if back else y.unbind(taken)

    model = Fn(fn)
    gm = trace(model, torch.randn(2, width, 3), dynamic={"x": {0: None, 1: False}})
    x = torch.randn(2, width, 3)
    assert equal(gm(x), model(x))


@given(factors, factors)
def test_groups_are_a_correspondence(before: list[int], after: list[int]) -> None:
    a, b = tuple((s,) for s in before), tuple((s,) for s in after)
    found = groups(a, b)
    x = torch.arange(int(torch.tensor(before).prod()))
    assert (found is not None) == (x.numel() == int(torch.tensor(after).prod()))
    for group in found or ():
        left = int(torch.tensor([before[i] for i in group.inputs]).prod())
        assert left == int(torch.tensor([after[j] for j in group.outputs]).prod())
    if found is not None:
        assert [i for g in found for i in g.inputs] == list(range(len(a)))
        assert [j for g in found for j in g.outputs] == list(range(len(b)))


def test_groups_are_the_finest() -> None:
    shape = ((2, 3), (4, 5), (30, 30))
    other = ((8, 15), (3, 3), (2, 2), (5, 5))
    assert groups(shape, other) == [Group((0, 1), (0,)), Group((2,), (1, 2, 3))]
