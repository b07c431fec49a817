"""Attention with positions in the queries and keys, in the scores, or without a softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.handmade.attention import HEADS, INNER, PLAIN, SEPARATE, SEQUENCES, Attention, separate
from tests.handmade.table import Handmade, floats


class Rotary(Attention):
    """Llama's rotation by halves, with angles made from the length on the way."""

    def __init__(self) -> None:
        super().__init__()
        frequencies = 10000 ** -(torch.arange(0, INNER, 2, dtype=torch.float64) / INNER)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def angles(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[-2], device=x.device, dtype=x.dtype)
        return torch.outer(steps, self.frequencies)

    def rotate(self, x: Tensor) -> Tensor:
        angles = self.angles(x)
        angles = torch.cat((angles, angles), dim=-1)
        first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(self.rotate(q), self.rotate(k), v)


class RotaryPairs(Rotary):
    """GPT-J: neighbouring features are pairs, taken by strided slices and stacked back."""

    def rotate(self, x: Tensor) -> Tensor:
        angles = self.angles(x).repeat_interleave(2, dim=-1)
        even, odd = x[..., ::2], x[..., 1::2]
        turned = torch.stack((-odd, even), dim=-1).flatten(-2)
        return x * angles.cos() + turned * angles.sin()


class RotaryViews(Rotary):
    """The same pairs by a view as (…, D/2, 2), each half rotated by itself."""

    def rotate(self, x: Tensor) -> Tensor:
        angles = self.angles(x)
        cos, sin = angles.cos(), angles.sin()
        a, b = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(3)


class RotaryComplex(Rotary):
    """Meta's Llama: pairs are complex numbers."""

    def rotate(self, x: Tensor) -> Tensor:
        angles = self.angles(x)
        turns = torch.polar(torch.ones_like(angles), angles)
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns).flatten(3).type_as(x)


class RotaryPartly(Rotary):
    """GPT-NeoX: only the first four features of a head rotate, the others pass."""

    def angles(self, x: Tensor) -> Tensor:
        return super().angles(x)[:, :2]

    def rotate(self, x: Tensor) -> Tensor:
        return torch.cat((super().rotate(x[..., :4]), x[..., 4:]), dim=-1)


class Alibi(Attention):
    """Distances, times a slope per head, are added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        slopes = 2.0 ** -torch.arange(1, HEADS + 1, dtype=torch.float64)
        self.register_buffer("slopes", slopes.view(HEADS, 1, 1))

    def bias(self, count: int) -> Tensor:
        steps = torch.arange(count)
        return (steps[None, :] - steps[:, None]).abs() * -self.slopes

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * INNER**-0.5 + self.bias(q.shape[2])
        return scores.softmax(-1) @ v


class Buckets(Alibi):
    """T5: a table (buckets, heads), looked up by clipped distances made from the length."""

    def __init__(self) -> None:
        super().__init__()
        del self.slopes
        self.table = nn.Embedding(7, HEADS)

    def bias(self, count: int) -> Tensor:
        steps = torch.arange(count)
        distances = (steps[None, :] - steps[:, None]).clamp(-3, 3) + 3
        return self.table(distances).permute(2, 0, 1).unsqueeze(0)


class Relative(Attention):
    """Swin: a table of relative positions per head, read by an index buffer; a fixed length."""

    count = 9

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * self.count - 1, HEADS))
        steps = torch.arange(self.count)
        self.register_buffer("index", steps[None, :] - steps[:, None] + self.count - 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = self.table[self.index.view(-1)].view(self.count, self.count, -1)
        mask = bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class RelativeKeys(Attention):
    """Shaw: an embedding per distance, in the space of a head's features, is a second key."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, INNER)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        steps = torch.arange(q.shape[2])
        keys = self.table((steps[None, :] - steps[:, None]).clamp(-3, 3) + 3)
        scores = q @ k.transpose(-2, -1) + torch.einsum("bhid,ijd->bhij", q, keys)
        return (scores * INNER**-0.5).softmax(-1) @ v


class RelativeShift(Attention):
    """Transformer-XL: content and position biases per head; scores shifted by pad and view."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Linear(10, HEADS * INNER, bias=False)
        self.u, self.w = (nn.Parameter(torch.randn(HEADS, INNER)) for _ in range(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, count, inner = q.shape
        steps = torch.arange(count, 0.0, -1.0, dtype=q.dtype)[:, None] / torch.arange(1, 11)
        r = self.position(torch.sin(steps)).view(count, heads, inner)
        content = torch.einsum("bhid,bhjd->bhij", q + self.u[:, None], k)
        position = torch.einsum("bhid,jhd->bhij", q + self.w[:, None], r)
        position = F.pad(position, (1, 0)).view(batch, heads, count + 1, count)
        scores = content + position[:, :, 1:].view_as(content)
        return (scores * INNER**-0.5).softmax(-1) @ v


class TalkingHeads(Attention):
    """Heads are mixed before and behind the softmax, to fewer and back."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = nn.Linear(HEADS, 3), nn.Conv2d(3, HEADS, 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * INNER**-0.5
        scores = self.before(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        return self.behind(scores) @ v


class Linear(Attention):
    """Kernel features elu + 1, keys times values first, a normaliser."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        memory = torch.einsum("bhnd,bhne->bhde", k, v)
        total = torch.einsum("bhnd,bhd->bhn", q, k.sum(2))
        return torch.einsum("bhnd,bhde->bhne", q, memory) / (total.unsqueeze(-1) + 1e-6)


class Efficient(Attention):
    """Softmax of queries over features and of keys over tokens, then both products."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v)


class Gated(Attention):
    """A sigmoid gate per head from the input, and an affine map per head by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(14, HEADS)
        self.maps = nn.Parameter(torch.randn(HEADS, INNER, 5))
        self.out = nn.Linear(HEADS * 5, 14)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.attend(*self.heads(x)) * self.gate(x).sigmoid().transpose(1, 2).unsqueeze(-1)
        y = torch.einsum("bhte,hef->bhtf", y, self.maps)
        return self.head(x + self.out(self.join(y)))


TIED = {"q.weight:0": "3 4", "k.weight:0": "3 4", "v.weight:0": "4 4x6"}
ROTARY = "3 4 14 4x6"

MODELS = {
    "rotary": Handmade(Rotary, *SEQUENCES, ROTARY, TIED),
    "rotary_pairs": Handmade(RotaryPairs, *SEQUENCES, ROTARY, TIED),
    "rotary_views": Handmade(RotaryViews, *SEQUENCES, ROTARY, TIED),
    "rotary_complex": Handmade(RotaryComplex, *SEQUENCES, ROTARY, TIED),
    "rotary_partly": Handmade(
        RotaryPartly, *SEQUENCES, "2 4 14 4x2 4x6", {"q.weight:0": "2 4 4x2", "v.weight:0": "4 4x6"}
    ),
    "alibi": separate(Alibi),
    "buckets": separate(Buckets),
    "relative": Handmade(
        Relative, floats(x=(2, 9, 5)), floats(x=(3, 9, 5)), PLAIN, {**SEPARATE, "table:1": "4"}
    ),
    "relative_keys": Handmade(
        RelativeKeys, *SEQUENCES, "4 6 14 4x6", {"q.weight:0": "4 6", "table.weight:1": "6"}
    ),
    "relative_shift": Handmade(
        RelativeShift,
        *SEQUENCES,
        "4 10 14 4x6 4x6",
        {**SEPARATE, "position.weight:0": "4 4x6", "position.weight:1": "10"},
    ),
    "talking_heads": Handmade(
        TalkingHeads,
        *SEQUENCES,
        "3 4 4 14 4x6 4x6",
        {"q.weight:0": "4 4x6", "v.weight:0": "4 4x6", "before.weight:0": "3"},
    ),
    "linear": separate(Linear),
    "efficient": separate(Efficient),
    "gated": Handmade(Gated, *SEQUENCES, "4 14 4x5 4x6 4x6", SEPARATE),
}
