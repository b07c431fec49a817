"""Samples of reductions, softmaxes, scans and sorts."""

from __future__ import annotations

import torch

from tests.rules.harness import Sample
from tests.rules.samples.inputs import boolean, negative, positive, real, sample

aten = torch.ops.aten

REDUCTIONS: tuple[Sample, ...] = (
    sample("sum", lambda x: x.sum(1), real(4, 3, 5)),
    sample("sum", lambda x: x.sum((0, -1), keepdim=True), real(4, 3, 5)),
    sample("sum", lambda x: x.sum(), real(4, 3)),
    sample("nansum", lambda x: x.nansum(1), real(4, 3)),
    sample("mean", lambda x: x.mean(1), real(4, 3, 5)),
    sample("mean", lambda x: x.mean((-2, -1), keepdim=True), real(2, 3, 4, 5)),
    sample("mean", lambda x: x.mean(), real(4, 3)),
    sample("var", lambda x: x.var(1), real(4, 5, 3)),
    sample("std", lambda x: x.std(1, keepdim=True), real(4, 5, 3)),
    sample("var_mean", lambda x: torch.var_mean(x, 1), real(4, 5, 3)),
    sample("std_mean", lambda x: torch.std_mean(x, 1), real(4, 5, 3)),
    sample("max", lambda x: x.max(), negative(4, 3)),
    sample("max", lambda x: x.max(1), real(4, 3, 5)),
    sample("min", lambda x: x.min(), positive(4, 3)),
    sample("min", lambda x: x.min(-1, keepdim=True), real(4, 3, 5)),
    sample("amax", lambda x: x.amax(1), negative(4, 3, 5)),
    sample("amin", lambda x: x.amin((0, 2), keepdim=True), positive(4, 3, 5)),
    sample("aminmax", lambda x: torch.aminmax(x, dim=1), real(4, 3)),
    sample("prod", lambda x: x.prod(1), real(4, 3)),
    sample("logsumexp", lambda x: x.logsumexp(1), real(4, 3)),
    sample("any", lambda x: x.any(1), boolean(4, 3)),
    sample("all", lambda x: x.all(1), boolean(4, 3)),
    sample("count_nonzero", lambda x: x.count_nonzero(1), real(4, 3)),
    sample("linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, dim=1), real(4, 3)),
    sample("linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, ord=0, dim=1), real(4, 3)),
    sample("linalg_vector_norm", lambda x: torch.nn.functional.normalize(x, dim=1), real(4, 3, 5)),
    sample("norm", lambda x: aten.norm.ScalarOpt_dim(x, 2, [1], True), real(4, 3)),
    sample("_softmax", lambda x: x.softmax(1), real(4, 3, 5)),
    sample("_log_softmax", lambda x: x.log_softmax(-1), real(4, 3, 5)),
    sample("_safe_softmax", lambda x: aten._safe_softmax(x, 1), real(4, 3)),
    sample("topk", lambda x: x.topk(2, dim=1), real(4, 3, 5)),
    sample("sort", lambda x: x.sort(1), real(4, 3, 5)),
    sample("sort", lambda x: x.argsort(1), real(4, 3, 5)),
    sample("argmax", lambda x: x.argmax(1), real(4, 3, 5)),
    sample("argmin", lambda x: x.argmin(1, keepdim=True), real(4, 3, 5)),
    sample("argmax", lambda x: x.argmax(), real(4, 3)),
    sample("median", lambda x: x.median(1), real(4, 3, 5)),
    sample("median", lambda x: x.median(), real(4, 3)),
    sample("nanmedian", lambda x: x.nanmedian(1), real(4, 3, 5)),
    sample("kthvalue", lambda x: x.kthvalue(2, 1), real(4, 3, 5)),
    sample("mode", lambda x: x.mode(1), real(4, 3, 5)),
    sample("cumsum", lambda x: x.cumsum(1), real(4, 3, 5)),
    sample("cumprod", lambda x: x.cumprod(1), real(4, 3, 5)),
    sample("logcumsumexp", lambda x: x.logcumsumexp(1), real(4, 3, 5)),
    sample("cummax", lambda x: x.cummax(1), real(4, 3, 5)),
    sample("cummin", lambda x: x.cummin(1), real(4, 3, 5)),
    sample(
        "_cdist_forward",
        lambda x, y: torch.cdist(x, y),
        real(2, 4, 3),
        real(2, 5, 3),
        over_flagged="the distances are exact by chance: both tensors are zero there",
    ),
    sample("_cdist_forward", lambda x, y: torch.cdist(x, y, p=1.0), real(4, 3), real(5, 3)),
    sample("_fft_r2c", lambda x: torch.fft.rfft(x, dim=1).abs(), real(4, 6, 3)),
    sample(
        "_fft_c2c",
        lambda x: torch.fft.fft2(torch.complex(x, x), dim=(1, 2)).abs(),
        real(2, 4, 5, 3),
    ),
    sample("_fft_c2r", lambda x: torch.fft.irfft(torch.complex(x, x), dim=1), real(2, 4, 3)),
    sample("linalg_inv_ex", lambda x: torch.linalg.inv(x), real(2, 3, 3)),
    sample(
        "linalg_solve_triangular",
        lambda x, y: torch.linalg.solve_triangular(x.tril() + 3 * torch.eye(3), y, upper=False),
        real(2, 3, 3),
        real(2, 3, 4),
        over_flagged="the result is zero where the right side is, whatever the matrix holds",
    ),
    sample(
        "linalg_solve_triangular",
        lambda x, y: torch.linalg.solve_triangular(
            x.triu() + 3 * torch.eye(3), y, upper=True, left=False
        ),
        real(3, 3),
        real(2, 4, 3),
    ),
    sample("linalg_matrix_exp", lambda x: torch.matrix_exp(x), real(2, 3, 3)),
    sample("linalg_qr", lambda x: torch.linalg.qr(x), real(2, 4, 3)),
    sample(
        "_linalg_svd",
        lambda x: torch.linalg.svdvals(x),
        real(2, 4, 3),
        over_flagged="singular values of a zero matrix are zero",
    ),
    sample(
        "_linalg_eigh",
        lambda x: torch.linalg.eigvalsh(x),
        real(2, 3, 3),
        over_flagged="eigenvalues of a zero matrix are zero",
    ),
    sample("linalg_cross", lambda x, y: torch.linalg.cross(x, y), real(4, 3), real(4, 3)),
    sample("trace", lambda x: x.trace(), real(3, 3)),
    sample("multinomial", lambda x: x.multinomial(2), positive(4, 3), random=True),
    sample("renorm", lambda x: x.renorm(2, 0, 0.5), real(4, 3)),
)
