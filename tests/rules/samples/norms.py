"""Samples of normalisations, pooling and resampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.rules.harness import Sample
from tests.rules.samples.inputs import data, given, indices, positive, real, sample, stored

aten = torch.ops.aten


def _unpool(x: Tensor) -> Tensor:
    pooled, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(pooled, places, 2)


def _unpool_volume(x: Tensor) -> Tensor:
    pooled, places = F.max_pool3d(x, 2, return_indices=True)
    return F.max_unpool3d(pooled, places, 2)


NORMS: tuple[Sample, ...] = (
    sample(
        "native_batch_norm",
        lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b),
        real(2, 3, 4, 5),
        real(3),
        positive(3),
        real(3),
        real(3),
    ),
    sample(
        "native_batch_norm", lambda x, m, v: F.batch_norm(x, m, v), real(4, 3), real(3), positive(3)
    ),
    sample(
        "native_batch_norm",
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        real(4, 3, 5),
        real(3),
        real(3),
    ),
    sample(
        "view native_batch_norm",
        lambda x, y, w, b: F.instance_norm(x * y, weight=w, bias=b),
        real(2, 3, 4, 5),
        data(4, 5),
        real(3),
        real(3),
    ),
    sample(
        "_native_batch_norm_legit",
        lambda x, w, b: aten._native_batch_norm_legit.no_stats(x, w, b, True, 0.1, 1e-5),
        real(4, 3, 5),
        real(3),
        real(3),
    ),
    sample(
        "_batch_norm_with_update",
        lambda x, w, b, m, v: aten._batch_norm_with_update(
            x, w, b, m.clone(), v.clone(), 0.1, 1e-5
        )[0],
        real(4, 3, 5),
        real(3),
        real(3),
        real(3),
        positive(3),
    ),
    sample(
        "_batch_norm_no_update",
        lambda x, w, b, m, v: aten._batch_norm_no_update(x, w, b, m, v, 0.1, 1e-5)[0],
        real(4, 3, 5),
        real(3),
        real(3),
        real(3),
        positive(3),
    ),
    sample(
        "_native_batch_norm_legit_no_training",
        lambda x, w, b, m, v: aten._native_batch_norm_legit_no_training(x, w, b, m, v, 0.1, 1e-5)[
            0
        ],
        real(2, 3, 4),
        real(3),
        real(3),
        real(3),
        positive(3),
    ),
    sample(
        "native_layer_norm",
        lambda x, w, b: F.layer_norm(x, (5,), w, b),
        real(2, 3, 5),
        real(5),
        real(5),
    ),
    sample("native_layer_norm", lambda x: F.layer_norm(x, (3, 5)), real(2, 4, 3, 5)),
    sample("mean", lambda x, w: F.rms_norm(x, (5,), w), real(2, 3, 5), real(5)),
    sample(
        "native_group_norm",
        lambda x, w, b: F.group_norm(x, 3, w, b),
        real(2, 6, 4, 5),
        real(6),
        real(6),
    ),
    sample("native_group_norm", lambda x: F.group_norm(x, 2), real(2, 6, 4)),
    sample(
        "native_group_norm",
        lambda x, w, b: F.group_norm(x, 1, w, b),
        real(2, 6, 4),
        real(6),
        real(6),
    ),
    sample(
        "avg_pool3d",
        lambda x: F.local_response_norm(x, 3),
        real(2, 5, 4, 3),
        over_frozen="windows of one position do not mix height and width",
    ),
    sample(
        "_weight_norm_interface",
        lambda v, g: torch._weight_norm(v, g, 0),
        real(4, 3, 5),
        real(4, 1, 1),
    ),
    sample(  # the second result, the norms, is zero where the first is not a number
        "_weight_norm_interface",
        lambda v, g: torch._weight_norm_interface(v, g, 0)[1],
        real(4, 3, 5),
        real(4, 1, 1),
    ),
)

POOLS: tuple[Sample, ...] = (
    sample("avg_pool2d", lambda x: F.avg_pool1d(x, 2), real(2, 3, 6)),
    sample("avg_pool2d", lambda x: F.avg_pool2d(x, 2), real(2, 3, 6, 5)),
    sample("avg_pool2d", lambda x: F.lp_pool2d(x, 2.0, 2), positive(2, 3, 6, 5)),
    sample("avg_pool3d", lambda x: F.avg_pool3d(x, 2), real(2, 3, 4, 6, 5)),
    sample("max_pool2d_with_indices", lambda x: F.max_pool1d(x, 2), real(2, 3, 6)),
    sample("max_pool2d_with_indices", lambda x: F.max_pool2d(x, 2, padding=1), real(2, 3, 6, 5)),
    sample("max_pool3d_with_indices", lambda x: F.max_pool3d(x, 2), real(2, 3, 4, 6, 5)),
    sample("_adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool1d(x, 2), real(2, 3, 7)),
    sample("_adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, (2, 3)), real(2, 3, 7, 5)),
    sample("mean", lambda x: F.adaptive_avg_pool2d(x, 1), real(2, 3, 7, 5)),
    sample("_adaptive_avg_pool3d", lambda x: F.adaptive_avg_pool3d(x, 2), real(2, 3, 4, 7, 5)),
    sample("adaptive_max_pool2d", lambda x: F.adaptive_max_pool1d(x, 2), real(2, 3, 7)),
    sample("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, (2, 3)), real(2, 3, 7, 5)),
    sample("adaptive_max_pool3d", lambda x: F.adaptive_max_pool3d(x, 2), real(2, 3, 4, 7, 5)),
    sample(
        "fractional_max_pool2d",
        lambda x, s: aten.fractional_max_pool2d(x, [2, 2], [3, 3], s),
        real(2, 3, 7, 6),
        positive(2, 3, 2),
    ),
    sample(
        "fractional_max_pool3d",
        lambda x, s: aten.fractional_max_pool3d(x, [2, 2, 2], [3, 3, 3], s),
        real(2, 3, 7, 6, 6),
        positive(2, 3, 3),
    ),
    sample("max_unpool2d", _unpool, real(2, 3, 6, 4)),
    sample("max_unpool3d", _unpool_volume, real(2, 3, 4, 6, 2)),
    sample("upsample_nearest1d", lambda x: F.interpolate(x, scale_factor=2), real(2, 3, 5)),
    sample("upsample_linear1d", lambda x: F.interpolate(x, size=7, mode="linear"), real(2, 3, 5)),
    sample(
        "_upsample_nearest_exact1d",
        lambda x: F.interpolate(x, size=7, mode="nearest-exact"),
        real(2, 3, 5),
    ),
    sample("upsample_nearest2d", lambda x: F.interpolate(x, scale_factor=2), real(2, 3, 5, 4)),
    sample(
        "upsample_bilinear2d",
        lambda x: F.interpolate(x, scale_factor=(2, 1.5), mode="bilinear", align_corners=False),
        real(2, 3, 6, 4),
    ),
    sample(
        "upsample_bicubic2d",
        lambda x: F.interpolate(x, size=(7, 6), mode="bicubic"),
        real(2, 3, 5, 4),
    ),
    sample(
        "_upsample_nearest_exact2d",
        lambda x: F.interpolate(x, size=(7, 6), mode="nearest-exact"),
        real(2, 3, 5, 4),
    ),
    sample(
        "_upsample_bilinear2d_aa",
        lambda x: F.interpolate(x, size=(7, 6), mode="bilinear", antialias=True),
        real(2, 3, 5, 4),
    ),
    sample(
        "_upsample_bicubic2d_aa",
        lambda x: F.interpolate(x, size=(7, 6), mode="bicubic", antialias=True),
        real(2, 3, 5, 4),
    ),
    sample("upsample_nearest3d", lambda x: F.interpolate(x, scale_factor=2), real(2, 3, 5, 4, 2)),
    sample(
        "upsample_trilinear3d",
        lambda x: F.interpolate(x, size=(6, 5, 3), mode="trilinear"),
        real(2, 3, 5, 4, 2),
    ),
    sample(
        "_upsample_nearest_exact3d",
        lambda x: F.interpolate(x, size=(6, 5, 3), mode="nearest-exact"),
        real(2, 3, 5, 4, 2),
    ),
    sample("im2col", lambda x: F.unfold(x, (2, 3)), real(2, 3, 5, 4)),
    sample("col2im", lambda x: F.fold(x, (4, 5), (2, 2)), real(2, 12, 12)),
    sample(
        "grid_sampler_2d",
        lambda x, g: F.grid_sample(x, g, align_corners=False),
        real(2, 3, 5, 4),
        data(2, 6, 7, 2),
    ),
    sample(
        "grid_sampler_2d",
        lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False),
        real(2, 3, 5, 4),
        real(2, 1, 1, 2),
    ),
    sample(
        "grid_sampler_3d",
        lambda x, g: F.grid_sample(x, g, align_corners=False),
        real(2, 3, 5, 4, 3),
        data(2, 6, 7, 2, 3),
    ),
    sample(
        "affine_grid_generator",
        lambda t: F.affine_grid(t, [2, 3, 4, 5], align_corners=False),
        real(2, 2, 3),
    ),
    sample(
        "_embedding_bag_forward_only",
        lambda i, w: F.embedding_bag(i, w, mode="sum"),
        indices(7, 2, 3),
        real(7, 5),
    ),
    sample(
        "_embedding_bag_forward_only",
        lambda i, w: F.embedding_bag(i, w, mode="max"),
        stored(7, 2, 3),
        real(7, 5),
        over_frozen="bags are positions; they come from data",
    ),
    sample(
        "_embedding_bag",
        lambda w, i, o: aten._embedding_bag(w, i, o)[0],
        real(7, 5),
        indices(7, 6),
        given([0, 2, 4]),
    ),
)
