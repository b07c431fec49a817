"""Samples of the ops that sum products."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
import transformers.integrations.moe  # noqa: F401  (registers its op)

from tests.rules.harness import Sample
from tests.rules.samples.inputs import boolean, data, real, sample

aten = torch.ops.aten
grouped_mm = torch.ops.transformers.grouped_mm_fallback

CONTRACTIONS: tuple[Sample, ...] = (
    sample("mm", torch.mm, real(4, 3), real(3, 5)),
    sample("mm", lambda x: torch.mm(x.t(), x), real(4, 3)),
    sample("matmul", lambda x, w, v: torch.relu(x @ w) @ v, data(2, 4), real(4, 6), real(6, 3)),
    sample("bmm", torch.bmm, real(2, 4, 3), real(2, 3, 5)),
    sample("matmul", torch.matmul, real(4, 3), real(3, 5)),
    sample("matmul", torch.matmul, real(6, 4, 3), real(6, 3, 5)),
    sample("matmul", operator.matmul, real(2, 4, 3), real(3, 5)),
    sample("matmul", aten.matmul.default, real(1, 4, 3), real(1, 3, 5)),
    sample("bmm", torch.matmul, real(2, 6, 4, 3), real(6, 3, 5)),
    sample("bmm", aten.matmul.default, real(4, 3), real(2, 3, 5)),
    sample("bmm", torch.matmul, real(2, 1, 4, 3), real(6, 3, 5)),
    sample("mv", torch.matmul, real(4, 3), real(3)),
    sample("bmm", lambda x, y: x.matmul(y), real(2, 4, 3), real(2, 3, 5)),
    sample(
        "transformers::grouped_mm_fallback",
        lambda x, w: grouped_mm(x, w, torch.tensor([1, 4, 4])),
        real(4, 5),
        real(3, 5, 6),
    ),
    sample("mv", torch.mv, real(4, 3), real(3)),
    sample("dot", torch.dot, real(4), real(4)),
    sample("vdot", aten.vdot, real(4), real(4)),
    sample("addmm", torch.addmm, real(5), real(4, 3), real(3, 5)),
    sample("addmm", torch.addmm, real(4, 1), real(4, 3), real(3, 5)),
    sample("baddbmm", torch.baddbmm, real(2, 4, 5), real(2, 4, 3), real(2, 3, 5)),
    sample("addbmm", torch.addbmm, real(4, 5), real(2, 4, 3), real(2, 3, 5)),
    sample("addmv", torch.addmv, real(4), real(4, 3), real(3)),
    sample("addr", torch.addr, real(4, 3), real(4), real(3)),
    sample("linear", F.linear, real(4, 3), real(5, 3), real(5)),
    sample("linear", F.linear, real(4, 3), real(5, 3)),
    sample("linear", F.linear, real(2, 4, 3), real(5, 3), real(5)),
    sample("linear", F.linear, real(3), real(5, 3)),
    sample("linear", aten.linear.default, real(2, 4, 3), real(5, 3), real(5)),
    sample("addmm", F.linear, real(4, 3), real(5, 3), real(1)),
    sample("mv", F.linear, real(4, 3), real(3)),
    sample("_trilinear", F.bilinear, real(4, 3), real(4, 5), real(6, 3, 5), real(6)),
    sample("bmm", lambda x, y: torch.einsum("bij,bjk->bik", x, y), real(2, 4, 3), real(2, 3, 5)),
    sample(
        "bmm",
        lambda x, y: torch.einsum("bhid,bhjd->bhij", x, y),
        real(2, 3, 4, 6),
        real(2, 3, 5, 6),
    ),
    sample(
        "bmm", lambda x, y: torch.einsum("nctv,kvw->nkctw", x, y), real(2, 3, 4, 5), real(6, 5, 7)
    ),
    sample("", lambda x, y: torch.einsum("i,j->ij", x, y), real(4), real(3)),
    sample("sum", lambda x: torch.einsum("ij->i", x), real(4, 3)),
    sample(
        "bmm",
        lambda x, y: torch.tensordot(x, y, dims=([1], [0])).unsqueeze(0).bmm(x.unsqueeze(0)),
        real(4, 3),
        real(3, 4),
    ),
    sample("mm", lambda x, y: torch.kron(x, y).mm(torch.kron(x, y).t()), real(2, 3), real(4, 5)),
    sample(
        "matmul _safe_softmax",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
        real(2, 3, 4, 6),
        real(2, 3, 5, 6),
        real(2, 3, 5, 7),
    ),
    sample(
        "matmul",
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m),
        real(2, 3, 4, 6),
        real(2, 3, 5, 6),
        real(2, 3, 5, 7),
        boolean(4, 5),
        over_flagged="zeroing the mask, too, excludes removed keys from the softmax",
    ),
    sample(
        "bmm",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        real(2, 3, 4, 6),
        real(2, 3, 4, 6),
        real(2, 3, 4, 7),
    ),
    sample(
        "bmm",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        real(2, 6, 4, 5),
        real(2, 3, 4, 5),
        real(2, 3, 4, 7),
    ),
)

CONVOLUTIONS: tuple[Sample, ...] = (
    sample(
        "convolution",
        lambda x, w, b, v: F.conv1d(x, w, b) @ v,
        real(2, 3, 4),
        real(5, 3, 1),
        real(5),
        real(4, 6),
    ),
    sample(
        "convolution",
        lambda x, w, v: F.conv_transpose2d(x, w) @ v,
        real(2, 3, 4, 4),
        real(3, 5, 2, 1),
        real(4, 6),
    ),
    sample("convolution", F.conv1d, real(2, 3, 7), real(5, 3, 2), real(5)),
    sample("convolution", lambda x, w: F.conv1d(x, w, padding=1), real(2, 3, 7), real(5, 3, 1)),
    sample("convolution", lambda x, w: F.conv1d(x, w, stride=2), real(2, 3, 7), real(5, 3, 1)),
    sample("convolution", F.conv2d, real(2, 3, 5, 4), real(6, 3, 3, 2), real(6)),
    sample("convolution", F.conv2d, real(3, 5, 4), real(6, 3, 3, 2)),
    sample("convolution", F.conv3d, real(2, 3, 4, 5, 3), real(4, 3, 2, 3, 2)),
    sample(
        "convolution",
        lambda x, w, b: F.conv2d(x, w, b, groups=2),
        real(2, 6, 5, 4),
        real(8, 3, 3, 2),
        real(8),
    ),
    sample(
        "convolution", lambda x, w: F.conv2d(x, w, groups=3), real(2, 6, 5, 4), real(6, 2, 3, 2)
    ),
    sample(
        "convolution", lambda x, w: F.conv2d(x, w, groups=4), real(2, 4, 5, 3), real(4, 1, 3, 2)
    ),
    sample(
        "convolution", lambda x, w: F.conv2d(x, w, groups=4), real(2, 4, 5, 3), real(8, 1, 3, 2)
    ),
    sample("convolution", F.conv_transpose1d, real(2, 3, 7), real(3, 5, 2), real(5)),
    sample("convolution", F.conv_transpose2d, real(2, 3, 5, 4), real(3, 6, 3, 2), real(6)),
    sample("convolution", F.conv_transpose3d, real(2, 3, 4, 3, 2), real(3, 4, 2, 3, 2)),
    sample(
        "convolution",
        lambda x, w, b: F.conv_transpose2d(x, w, b, groups=2),
        real(2, 6, 5, 4),
        real(6, 4, 3, 2),
        real(8),
    ),
    sample(
        "convolution",
        lambda x, w: F.conv2d(x, w, padding="same"),
        real(2, 3, 5, 4),
        real(6, 3, 3, 3),
    ),
)
