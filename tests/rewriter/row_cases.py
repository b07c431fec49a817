"""For each rewrite row, small functions whose graphs hit it with sizes that change.

A function gets x of shape (batch, 4, 12), the parameters p of shape (12,), one of shape (1,), and
w, which the cases shape as they need, and returns (batch, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 12
Function = Callable[["Middle", Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """What to compute, the width that comes out, and the shape of the parameter w."""

    run: Function
    width: int = WIDTH
    weight: tuple[int, ...] = (1,)


class Middle(nn.Module):
    """Linear(5, 12), the case, Linear(width, 3)."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.first = nn.Linear(5, WIDTH)
        self.p = nn.Parameter(torch.randn(WIDTH))
        self.one = nn.Parameter(torch.randn(1))
        self.w = nn.Parameter(torch.randn(case.weight))
        self.register_buffer("order", torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 11, 0, 7]))
        self.last = nn.Linear(case.width, 3)
        self.run = case.run

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.run(self, self.first(x)))


def rejoined(parts: Sequence[Tensor]) -> Tensor:
    """The parts in another order, each changed in its own way."""
    return torch.cat([part * (i + 2) for i, part in enumerate(parts)][::-1], -1)


def written(x: Tensor, key: object, value: object) -> Tensor:
    y = x.clone()
    y[key] = value
    return y


def convolved(rank: int, transposed: bool = False) -> Function:
    name = f"conv{'_transpose' if transposed else ''}{rank}d"

    def run(m: Middle, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).unflatten(2, (2, 2, 1)[:rank] if rank > 1 else (4,))
        y = getattr(F, name)(x, m.w, groups=4)
        return y.flatten(2).transpose(1, 2)

    return run


def grouped_only(weight: int, rank: int) -> tuple[int, ...]:
    return (WIDTH, weight, *(1,) * rank)


def heads(x: Tensor, scale: float = 1.0) -> Tensor:
    return (x * scale).view(x.shape[0], 4, 3, 4).transpose(1, 2)


def attended(**options: object) -> Function:
    def run(m: Middle, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, m.w).chunk(3, -1)
        y = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), **options)
        return y.transpose(1, 2).reshape(x.shape[0], 4, WIDTH)

    return run


def attended_by_name(m: Middle, x: Tensor) -> Tensor:
    q, k, v = F.linear(x, m.w).chunk(3, -1)
    y = F.scaled_dot_product_attention(heads(q), key=heads(k), value=heads(v))
    return y.transpose(1, 2).reshape(x.shape[0], 4, WIDTH)


def attended_by_position(m: Middle, x: Tensor) -> Tensor:
    q, k, v = F.linear(x, m.w).chunk(3, -1)
    y = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), None, 0.0, True)
    return y.transpose(1, 2).reshape(x.shape[0], 4, WIDTH)


QKV = (3 * WIDTH, WIDTH)


def merged_with_batch(m: Middle, x: Tensor) -> Tensor:
    """Three heads side by side with the batch, as attention on 3-d tensors has them."""
    y = x.view(x.shape[0], 4, 3, 4).transpose(1, 2).reshape(x.shape[0] * 3, 4, 4).sin()
    return y.view(y.shape[0] // 3, 3, 4, 4).transpose(1, 2).flatten(2)


def merged_by_inference(m: Middle, x: Tensor) -> Tensor:
    y = x.view(x.shape[0], 4, 3, 4).transpose(1, 2).reshape(-1, 4, 4).sin()
    assert y.shape[0] == 3 * x.shape[0]
    return (y * y.shape[0]).view(y.shape[0] // 3, 3, 4, 4).transpose(1, 2).flatten(2)


def in_halves(m: Middle, x: Tensor) -> Tensor:
    """Windows of two positions inside, heads with the batch outside: each stride has factors."""
    y = x.view(x.shape[0], 4, 3, 4).transpose(1, 2).reshape(x.shape[0] * 3, 4, 4)
    y = y.as_strided((y.size(0), 3, 2, y.size(2)), (y.stride(0), y.stride(1), *y.stride()[1:]))
    return y.view(x.shape[0], 3, 3, 2, 4).permute(3, 0, 2, 1, 4).flatten(3).sum(0)


CASES: dict[str, Sequence[Case]] = {
    "view": [
        Case(lambda m, x: x.view(x.shape[0], 4, 3, 4).sum(2), 4),
        Case(lambda m, x: x.view(-1, 12).view(-1, 4, 12)),
        Case(lambda m, x: x.view(x.shape[0], 4, 3, 4).transpose(2, 3).sin().flatten(2)),
    ],
    "reshape": [
        Case(lambda m, x: torch.reshape(x, (x.shape[0], 4, 3, 4)).amax(3).sin(), 3),
        Case(lambda m, x: x.reshape(-1, 48).reshape(-1, 4, 12)),
    ],
    "expand": [Case(lambda m, x: x * m.p.expand(4, 12)), Case(lambda m, x: x * m.one.expand(12))],
    "broadcast_to": [
        Case(lambda m, x: x * torch.broadcast_to(m.p, (4, 12))),
        Case(lambda m, x: x * m.one.broadcast_to(4, 12)),
    ],
    "new_zeros": [Case(lambda m, x: torch.cat([x, x + x.new_zeros(12)], -1), 24)],
    "new_ones": [Case(lambda m, x: x * (x.new_ones((4, 12)) + m.p))],
    "new_empty": [Case(lambda m, x: x * (x.new_empty(12).fill_(1.5) + m.p))],
    "new_full": [Case(lambda m, x: x * (x.new_full((12,), 2.0) + m.p))],
    "zeros": [Case(lambda m, x: x * (torch.zeros(12, dtype=x.dtype) + m.p))],
    "ones": [Case(lambda m, x: x * (torch.ones((4, 12), dtype=x.dtype) + m.p))],
    "empty": [Case(lambda m, x: x * (torch.empty(12, dtype=x.dtype).fill_(1.5) + m.p))],
    "full": [Case(lambda m, x: x * (torch.full((12,), 2.0, dtype=x.dtype) + m.p))],
    "arange": [
        Case(lambda m, x: x * (torch.arange(12, dtype=x.dtype) + 1)),
        Case(lambda m, x: x + torch.pow(0.5, torch.arange(1, 13, dtype=x.dtype)) * m.p),
    ],
    "linspace": [Case(lambda m, x: x * torch.linspace(1, 2, 12, dtype=x.dtype))],
    "logspace": [Case(lambda m, x: x * torch.logspace(0, 1, 12, dtype=x.dtype))],
    "size": [Case(merged_with_batch), Case(merged_by_inference)],
    "numel": [
        Case(lambda m, x: x.view(x.numel() // 48, 4, 12)),
        Case(lambda m, x: x.sum(0, keepdim=True) / x.numel() + x),
    ],
    "repeat": [
        Case(lambda m, x: x * m.one.repeat(12)),
        Case(lambda m, x: x * (m.p + m.one.repeat(4, 12))),
        Case(lambda m, x: x * m.one.repeat(12) + x.repeat(1, 1, 2)[..., 12:]),
        Case(lambda m, x: x + x[:, :0].repeat(1, 2, 1).sum(1, keepdim=True)),
    ],
    "tile": [
        Case(lambda m, x: x * torch.tile(m.one, (12,))),
        Case(lambda m, x: x * m.one.tile(4, 12)),
    ],
    "repeat_interleave": [
        Case(lambda m, x: x * m.one.repeat_interleave(12, 0)),
        Case(lambda m, x: x * torch.repeat_interleave(m.one, 12, dim=0)),
        Case(lambda m, x: x * m.one.repeat_interleave(12)),
        Case(lambda m, x: x.repeat_interleave(2, dim=2, output_size=24), 24),
    ],
    "unflatten": [
        Case(lambda m, x: x.unflatten(2, (3, 4)).sum(2), 4),
        Case(lambda m, x: torch.unflatten(x, -1, (-1, 4)).sum(3), 3),
    ],
    "as_strided": [
        Case(lambda m, x: (x * 1).as_strided((x.shape[0], 3, 2, 12), (48, 12, 12, 1)).sum(2)),
        Case(
            lambda m, x: (
                torch.as_strided(m.w, stride=(1, 3, 12), size=(3, 4, 4)).transpose(0, 2).flatten(1)
                + x
            ),
            12,
            (4, 4, 3),
        ),
        Case(in_halves),
    ],
    "split": [
        Case(lambda m, x: rejoined(x.split(5, 2))),
        Case(lambda m, x: rejoined(torch.split(x, [2, 7, 3], dim=-1))),
    ],
    "split_with_sizes": [Case(lambda m, x: rejoined(x.split_with_sizes([5, 7], 2)))],
    "chunk": [
        Case(lambda m, x: rejoined(x.chunk(3, 2))),
        Case(lambda m, x: rejoined(torch.chunk(x, chunks=2, dim=-1))),
    ],
    "tensor_split": [
        Case(lambda m, x: rejoined(x.tensor_split(5, 2))),
        Case(lambda m, x: rejoined(torch.tensor_split(x, (2, 7), dim=-1))),
    ],
    "hsplit": [
        Case(lambda m, x: rejoined(x.sum(1).hsplit((2, 7)))),
        Case(lambda m, x: rejoined([p.mT for p in x.mT.hsplit((2, 7))])),
        Case(lambda m, x: x * torch.cat(torch.hsplit(m.p, 3)[::-1])),
    ],
    "vsplit": [Case(lambda m, x: rejoined([p.mT for p in x.mean(1).mT.vsplit(3)]))],
    "dsplit": [Case(lambda m, x: rejoined(torch.dsplit(x, (2, 7))))],
    "unsafe_split": [Case(lambda m, x: rejoined(torch.unsafe_split(x, 5, 2)))],
    "unsafe_split_with_sizes": [
        Case(lambda m, x: rejoined(torch.unsafe_split_with_sizes(x, [5, 7], 2)))
    ],
    "unsafe_chunk": [Case(lambda m, x: rejoined(torch.unsafe_chunk(x, 3, 2)))],
    "narrow": [
        Case(lambda m, x: x.narrow(2, 3, 6) + x.narrow(-1, 6, 6), 6),
        Case(lambda m, x: torch.narrow(x, 2, -5, 4), 4),
    ],
    "squeeze": [
        Case(lambda m, x: x.unsqueeze(1).squeeze(1)),
        Case(lambda m, x: x.unsqueeze(1).squeeze()),
        Case(lambda m, x: x.view(x.shape[0], 4, 3, 1, 4).sum(2).squeeze(), 4),
    ],
    "select": [
        Case(lambda m, x: x * x.select(2, 7).unsqueeze(2)),
        Case(lambda m, x: x * torch.select(x, -1, -2).unsqueeze(2)),
    ],
    "getitem": [
        Case(lambda m, x: x[..., 3:9] + x[:, :, 6:], 6),
        Case(lambda m, x: x[:, :, -7:-1], 6),
        Case(lambda m, x: x[:, None, :, ::2].squeeze(1), 6),
        Case(lambda m, x: x * x[..., 7:8]),
        Case(lambda m, x: x * x[..., -2].unsqueeze(2)),
        Case(lambda m, x: x[..., [3, 1, 11]], 3),
        Case(lambda m, x: x[..., m.order]),
        Case(lambda m, x: x[:, :, torch.arange(11, -1, -1)] * x),
        Case(lambda m, x: x + m.p[3:9].repeat(2)),
        Case(lambda m, x: x.unbind(1)[2] + x[:, 1]),
    ],
    "setitem": [
        Case(lambda m, x: written(x, (..., slice(3, 6)), 0.0)),
        Case(lambda m, x: written(x, (slice(None), slice(None), slice(2, 6)), x[..., 6:10])),
        Case(lambda m, x: written(x, (..., 5), 0.0)),
    ],
    "index_select": [
        Case(lambda m, x: x.index_select(2, m.order)),
        Case(lambda m, x: torch.index_select(x, dim=-1, index=m.order)),
    ],
    "roll": [
        Case(lambda m, x: x.roll(5, 2)),
        Case(lambda m, x: x + torch.roll(x, shifts=(1, -4), dims=(1, 2))),
        Case(lambda m, x: x + x.roll(4, -1)),
        Case(lambda m, x: x + x.roll((1, x.shape[0], 4), (1, 0, 2))),
    ],
    "channel_shuffle": [
        Case(lambda m, x: torch.channel_shuffle(x.transpose(1, 2), 3).transpose(1, 2)),
    ],
    "layer_norm": [
        Case(lambda m, x: F.layer_norm(x, (12,))),
        Case(lambda m, x: F.layer_norm(x, [12], weight=m.p, bias=m.p, eps=1e-3)),
        Case(lambda m, x: F.layer_norm(x, normalized_shape=(4, 12))),
    ],
    "rms_norm": [
        Case(lambda m, x: F.rms_norm(x, (12,), m.p)),
        Case(lambda m, x: F.rms_norm(x, normalized_shape=(12,), eps=1e-3)),
    ],
    "group_norm": [
        Case(lambda m, x: F.group_norm(x.transpose(1, 2), 4, m.p, m.p).transpose(1, 2)),
        Case(lambda m, x: F.group_norm(x.transpose(1, 2), num_groups=6).transpose(1, 2)),
    ],
    **{
        f"conv{rank}d": [
            Case(convolved(rank), 8, (8, 3, *(1,) * rank)),
            Case(convolved(rank), 12, (12, 3, *(1,) * rank)),
        ]
        for rank in (1, 2, 3)
    },
    **{
        f"conv_transpose{rank}d": [Case(convolved(rank, True), 8, (12, 2, *(1,) * rank))]
        for rank in (1, 2, 3)
    },
    "scaled_dot_product_attention": [
        Case(attended(), 12, QKV),
        Case(attended(is_causal=True), 12, QKV),
        Case(attended(scale=0.3), 12, QKV),
        Case(attended_by_name, 12, QKV),
        Case(attended_by_position, 12, QKV),
        Case(attended(attn_mask=torch.zeros(4, 4).double(), dropout_p=0.0), 12, QKV),
    ],
}
"""Name of the row → cases."""
