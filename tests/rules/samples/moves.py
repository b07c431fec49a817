"""Samples of the ops that move elements."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tests.rules.harness import Sample, write
from tests.rules.samples.inputs import boolean, data, given, indices, real, sample, stored

aten = torch.ops.aten
fx.wrap("write")


def _put(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    write(x, (slice(None), torch.tensor([2, 0])), y)
    return x


def _put_stored(x: Tensor, index: Tensor, y: Tensor) -> Tensor:
    return x.clone().index_put_((index,), y)


def _halves(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=1)
    return left + right


def _put_at_mask(x: Tensor, mask: Tensor, y: Tensor) -> Tensor:
    return aten._unsafe_index_put(x, [None, mask], y)


POSITIONS = "what lists positions is a table, not channels"
MASKS = "beside a mask, nothing is followed"

VIEWS: tuple[Sample, ...] = (
    sample("view", lambda x: x.view(4, 2, 3), real(4, 6)),
    sample("view", lambda x: x.view(20, 3), real(4, 5, 3)),
    sample("view", lambda x: x.view(-1, 2, 6), real(3, 4)),
    sample("view", lambda x: x.reshape(4, 2, 5, 3).transpose(1, 2).reshape(4, 30), real(4, 30)),
    sample("view", lambda x: x.view(6, 4), real(4, 6)),
    sample("view", lambda x: x.view(4, 1, 3).squeeze(1), real(4, 3)),
    sample("_unsafe_view", lambda x, y: x.matmul(y), real(2, 4, 3), real(3, 5)),
    sample("view", lambda x: x.flatten(1), real(4, 3, 5)),
    sample("view", lambda x: x.unflatten(1, (2, 3)), real(4, 6)),
    sample("view", lambda x: x.view(x.dtype), real(4, 6)),
    *(
        sample("view", lambda x, d=dtype: x.view(d), real(4, 6), over_frozen="bits may be anything")
        for dtype in (torch.int64, torch.int32)
    ),
    sample("permute", lambda x: x.permute(2, 0, 1), real(4, 3, 5)),
    sample("permute", lambda x: x.permute(0, -1, 1), real(4, 3, 5)),
    sample("transpose", lambda x: x.transpose(-1, 0), real(4, 3, 5)),
    sample("t", lambda x: aten.t(x), real(4, 3)),
    sample("squeeze", lambda x: x.squeeze(1), real(4, 1, 3)),
    sample("squeeze", lambda x: x.squeeze(), real(4, 1, 3, 1)),
    sample("squeeze", lambda x: x.squeeze((1, 2)), real(4, 1, 3)),
    sample("squeeze", lambda x: x.squeeze(0), real(4, 3)),
    sample("squeeze", lambda x: x.squeeze(()), real(4, 1, 3)),
    sample("sum squeeze", lambda x: x.sum().squeeze(-1), real(4)),
    sample("unsqueeze", lambda x: x.unsqueeze(1), real(4, 3)),
    sample("unsqueeze", lambda x: x.unsqueeze(-1), real(4, 3)),
    sample("expand", lambda x: x.expand(5, 4, 3), real(4, 1)),
    sample("expand", lambda x: x.unsqueeze(1).expand(-1, 2, -1), real(4, 3)),
    sample("expand", lambda x, y: x.expand(4, 3) * y, real(4, 1), real(4, 3)),
    sample("repeat", lambda x: x.repeat(2, 1, 3), real(4, 5)),
    sample("repeat", lambda x: x.repeat(1, 2) * 2, real(4, 3)),
    sample("expand", lambda x: x.repeat_interleave(2, dim=1), real(4, 3)),
    sample("expand", lambda x: x.repeat_interleave(3, dim=0), real(4, 3)),
    sample(
        "repeat_interleave index_select",
        lambda x, n: x.repeat_interleave(n, dim=0, output_size=4),
        real(4, 3),
        given([1, 0, 2, 1]),
    ),
    sample("cat", lambda x, y: torch.cat([x, y], 1), real(4, 3), real(4, 5)),
    sample("cat", lambda x, y: torch.cat([x, y, x], 0), real(4, 3), real(2, 3)),
    sample("cat", lambda x, y: torch.cat([x[:0], y[:0]]), real(4), real(2)),
    sample("stack", lambda x, y: torch.stack([x, y], 1), real(4, 3), real(4, 3)),
    sample("slice", lambda x: x[:, 1:4], real(4, 6)),
    sample("slice", lambda x: x[:, ::2], real(4, 6)),
    sample("slice", lambda x: x[..., -2:], real(4, 6)),
    sample("slice", lambda x: x.narrow(1, 2, 3), real(4, 6)),
    sample("slice", lambda x: x[:, 2:4] + x[:, 0:2], real(4, 6)),
    sample("select", lambda x: x[:, 2], real(4, 5, 3)),
    sample("select", lambda x: x.select(-1, -1), real(4, 5, 3)),
    sample("unbind", lambda x: x.unbind(1), real(4, 2, 3)),
    sample("split", lambda x: x.split(2, 1), real(4, 5)),
    sample("split", lambda x: x.chunk(3, dim=-1), real(4, 6)),
    sample("split_with_sizes", lambda x: x.split([1, 4], 1), real(4, 5)),
    sample("split", _halves, real(4, 6)),
    sample("unsafe_split", lambda x: x.unsafe_split(2, 1), real(4, 5)),
    sample(
        "unsafe_split_with_sizes", lambda x: aten.unsafe_split_with_sizes(x, [2, 3], 1), real(4, 5)
    ),
    sample("slice", lambda x: x.tensor_split(3, dim=1), real(4, 5)),
    sample("flip", lambda x: x.flip(1), real(4, 3)),
    sample("flip", lambda x: x.flip((0, -1)), real(4, 3)),
    sample("flip", lambda x: x.flip(()), real(4, 3)),
    sample("flip", lambda x: x.flip(1) + x, real(4, 6)),
    sample("roll", lambda x: x.roll(2, 1), real(4, 5)),
    sample("roll", lambda x: x.roll((1, -2), (0, 1)), real(4, 5)),
    sample("roll", lambda x: x.roll(2, 1) + x, real(4, 6)),
    sample("roll", lambda x: x.roll(3), real(4, 5)),
    sample("constant_pad_nd", lambda x: F.pad(x, (0, 0, 1, 2)), real(4, 3, 5)),
    sample(
        "constant_pad_nd",
        lambda x: F.pad(x, (1, 1), value=2.0),
        real(4, 3),
        over_flagged="the padded dimension itself is filled with zeros where it was zero",
    ),
    sample("constant_pad_nd", lambda x: F.pad(x, (-1, 1)), real(4, 3)),
    sample("constant_pad_nd", lambda x: F.pad(x, ()), real(4, 3)),
    sample("reflection_pad1d", lambda x: F.pad(x, (1, 2), mode="reflect"), real(2, 3, 5)),
    sample("reflection_pad2d", lambda x: F.pad(x, (1, 2, 3, 1), mode="reflect"), real(2, 3, 5, 4)),
    sample("reflection_pad3d", lambda x: F.pad(x, (1,) * 6, mode="reflect"), real(2, 3, 5, 4, 6)),
    sample("replication_pad1d", lambda x: F.pad(x, (1, 2), mode="replicate"), real(2, 3, 5)),
    sample(
        "replication_pad2d", lambda x: F.pad(x, (1, 2, 3, 1), mode="replicate"), real(2, 3, 5, 4)
    ),
    sample(
        "replication_pad3d", lambda x: F.pad(x, (1,) * 6, mode="replicate"), real(2, 3, 5, 4, 6)
    ),
    sample(
        "copy slice",
        lambda x, y: F.pad(x * y, (1, 2), mode="circular"),
        real(2, 3, 5),
        data(5),
        over_flagged="nothing is known of empty memory that is written later",
    ),
    sample("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), real(2, 12, 3, 5)),
    sample("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), real(2, 3, 4, 6)),
    sample("channel_shuffle", lambda x: F.channel_shuffle(x, 3), real(2, 6, 3, 5)),
    sample("view_as_complex", lambda x: torch.view_as_complex(x).abs(), real(4, 3, 2)),
    sample(
        "view_as_complex view_as_real",
        lambda x, y: torch.view_as_real(torch.view_as_complex(x) * torch.view_as_complex(y)),
        real(5, 4, 3, 2),
        real(4, 3, 2),
    ),
    sample("complex", lambda x, y: torch.view_as_real(torch.complex(x, y)), real(4, 3), real(3)),
    sample("polar", lambda x, y: torch.view_as_real(torch.polar(x, y)), real(4, 3), real(4, 3)),
    sample(
        "_conj", lambda x: torch.view_as_real(torch.view_as_complex(x).conj() * 1), real(4, 3, 2)
    ),
    sample("tril", lambda x: x.tril(), real(2, 4, 3)),
    sample("triu", lambda x: x.triu(1), real(2, 4, 3)),
    sample("diagonal", lambda x: x.diagonal(dim1=-2, dim2=-1), real(4, 3, 3)),
    sample("diagonal", lambda x: x.diagonal(dim1=-2, dim2=-1), real(4, 3, 5)),
    sample("diagonal", lambda x: x.diagonal(1, -2, -1), real(4, 3, 3)),
    sample("diag_embed", lambda x: torch.diag_embed(x), real(4, 3)),
    sample(  # pooling a tensor whose channels move fastest restores its strides
        "mean as_strided",
        lambda x: F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1),
        real(2, 4, 5, 3),
    ),
    sample("as_strided", lambda x: x.as_strided((2, 3), (6, 1)), real(4, 3)),
    sample("as_strided", lambda x: x[:2].as_strided((2, 3), (3, 1), 3), real(4, 3)),
    sample("as_strided", lambda x: x[1:].as_strided((3, 3), (3, 1), 0), real(4, 3)),
    sample("as_strided", lambda x: (x * 1).as_strided_((3, 3), (1, 3)), real(3, 3)),
    sample("as_strided", lambda x: x.as_strided((4, 3), (1, 4)), real(4, 3)),
    sample("as_strided", lambda x: x.as_strided((3, 4), (1, 3)), real(4, 3)),
    sample("as_strided", lambda x: x.as_strided((3, 3), (1, 1)), real(4, 3)),
    sample("as_strided", lambda x: x.as_strided((2, 4, 2, 2, 3), (48, 6, 3, 0, 1)), real(2, 16, 3)),
    sample("as_strided", lambda x: x.as_strided((5, 2, 3, 4), (12, 60, 4, 1)), real(2, 5, 3, 4)),
    sample("as_strided", lambda x: x.as_strided((2, 7, 3, 2), (20, 2, 2, 1)), real(2, 10, 2)),
    sample("as_strided", lambda x: x.as_strided((2, 8, 3, 2), (20, 2, 2, 1)), real(2, 11, 2)),
    sample("as_strided", lambda x: x.t().as_strided((5, 2, 2), (1, 5, 5)), real(3, 5)),
    sample("as_strided", lambda x: x[:, :2].as_strided((4, 2), (3, 1)), real(4, 3)),
    sample("unfold", lambda x: x.unfold(1, 2, 1), real(4, 5, 3)),
)

INDEXING: tuple[Sample, ...] = (
    sample(
        "index_select",
        lambda x, i: x.index_select(1, i),
        real(4, 5),
        given([3, 0, 1]),
        over_frozen=POSITIONS,
    ),
    sample(
        "index_select",
        lambda x, i: x.index_select(1, i),
        real(4, 3),
        given([0, 0, 2, 1, 2, 2]),
        over_frozen=POSITIONS,
    ),
    sample("index_select", lambda x, i: x.index_select(1, i), real(4, 5), indices(5, 3)),
    sample("index", lambda x, i: x[:, i], real(4, 5), given([3, 0, 1]), over_frozen=POSITIONS),
    sample("index", lambda x, i: x[i], real(4, 5), indices(4, 2, 3)),
    sample("index", lambda x, i: x[:, i], real(4, 5, 2), indices(5, 3)),
    sample(
        "_unsafe_index", lambda x, i: aten._unsafe_index(x, [None, i]), real(4, 5, 2), indices(5, 3)
    ),
    sample(
        "index",
        lambda x, i, j: x[i, :, j],
        real(4, 5, 3),
        stored(4, 2, 1),
        stored(3, 6),
        over_frozen=POSITIONS,
    ),
    sample(
        "index",
        lambda x, i, j: x[:, i, j],
        real(4, 5, 3),
        stored(5, 6),
        stored(3, 6),
        over_frozen=POSITIONS,
    ),
    sample("index", lambda x: x[:, [2, 0, 1]], real(4, 5)),
    sample("index", lambda x, i: x[i.view(-1)].view(2, 3, 5), real(4, 5), stored(4, 2, 3)),
    sample("gather", lambda x, i: x.gather(1, i), real(4, 5), indices(5, 4, 3)),
    sample("gather", lambda x, i: x.gather(0, i), real(4), indices(4)),
    sample(
        "gather",
        lambda x, i: x.gather(1, i.unsqueeze(-1).expand(-1, -1, 6)),
        real(4, 5, 6),
        indices(5, 4, 3),
    ),
    sample(
        "gather", lambda x, i: x.gather(1, i), real(4, 5), stored(5, 2, 3), over_frozen=POSITIONS
    ),
    sample(
        "gather",
        lambda x, i: torch.take_along_dim(x, i, 1),
        real(4, 5),
        stored(5, 4, 3),
        over_frozen=POSITIONS,
    ),
    sample("embedding", lambda i, w: F.embedding(i, w), indices(7, 2, 3), real(7, 5)),
    sample(
        "embedding",
        lambda i, w: F.embedding(i, w),
        stored(7, 2, 3),
        real(7, 5),
        over_frozen=POSITIONS,
    ),
    sample("index_put", _put, real(4, 5), real(4, 2)),
    sample(
        "_unsafe_index_put",
        lambda x, i, y: aten._unsafe_index_put(x, [None, i], y),
        real(4, 5),
        indices(5, 2),
        real(4, 2),
    ),
    sample("index_put", _put_stored, real(4, 5), indices(4, 2), real(2, 5)),
    sample("index_put", _put_stored, real(4, 5), indices(4, 2), real(5)),
    sample(
        "index_put",
        _put_stored,
        real(4, 5),
        given([True, False, True, False]),
        real(2, 5),
    ),
    sample("index_put", _put_stored, real(4, 5), boolean(4), real(5)),
    sample("index_put", _put_stored, real(4, 5, 3), boolean(4, 5), real(1, 3)),
    sample("_unsafe_index_put", _put_at_mask, real(4, 5), boolean(5), real(4, 1)),
    sample(
        "_unsafe_index_put",
        _put_at_mask,
        real(4, 5, 3),
        boolean(5, 3),
        real(1),
        over_flagged="the value is written at removed rows, and one kind is said of all dimensions",
    ),
    sample(
        "index_put",
        lambda x, m, i, y: x.clone().index_put_((m, i), y),
        real(4, 5, 3),
        given([True, False, True, False]),
        indices(5, 2),
        real(2, 3),
        over_frozen=MASKS,
    ),
    sample(
        "index_add", lambda x, i, y: x.index_add(1, i, y), real(4, 5), indices(5, 3), real(4, 3)
    ),
    sample(
        "index_copy", lambda x, y: x.index_copy(1, torch.tensor([2, 0]), y), real(4, 5), real(4, 2)
    ),
    sample("index_fill", lambda x, i: x.index_fill(1, i, 0.5), real(4, 5), given([3, 1])),
    sample(
        "scatter",
        lambda x, i, y: x.scatter(1, i, y),
        real(4, 5),
        given([[0, 2, 1]] * 4),
        real(4, 3),
    ),
    sample("scatter", lambda x, i: x.scatter(1, i, 0.5), real(4, 5), stored(5, 4, 3)),
    sample(
        "scatter",
        lambda x, i, y: x.scatter(1, i.unsqueeze(-1).expand(-1, -1, 6), y),
        real(4, 5, 6),
        given([[0, 2, 1]] * 4),
        real(4, 3, 6),
    ),
    sample(
        "scatter_add",
        lambda x, i, y: x.scatter_add(1, i, y),
        real(4, 5),
        stored(5, 4, 3),
        real(4, 3),
        over_frozen=POSITIONS,
    ),
    sample(
        "scatter_reduce",
        lambda x, i, y: x.scatter_reduce(1, i, y, "amax"),
        real(4, 5),
        stored(5, 4, 3),
        real(4, 3),
    ),
    sample(
        "masked_scatter",
        lambda x, m, y: x.masked_scatter(m, y),
        real(4, 3),
        boolean(4, 3),
        real(12),
    ),
    sample("put", lambda x, i, y: x.put(i, y), real(4, 3), given([5, 1]), real(2)),
    sample("take", lambda x, i: x.take(i), real(4, 3), given([5, 1]), over_frozen=POSITIONS),
    sample("bucketize", lambda x, b: torch.bucketize(x, b), real(4, 3), given([0.0, 0.5])),
    sample("searchsorted", lambda b, x: torch.searchsorted(b, x), given([0.0, 0.5]), real(4, 3)),
    sample(
        "searchsorted",
        lambda b, x: torch.searchsorted(b, x),
        given([[-1.0, 0.5], [0.0, 1.0], [-0.5, 0.5], [0.5, 2.0]]),
        real(4, 3),
        over_frozen="each row has boundaries of its own",
    ),
    sample("histc", lambda x: x.histc(5), real(4, 3)),
)
