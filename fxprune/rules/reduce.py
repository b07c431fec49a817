"""Ops that reduce, normalise or scan over dimensions."""

from __future__ import annotations

from collections.abc import Callable

from fxprune.axes import Axis
from fxprune.rules.base import Call, Effect, Kind, Layout, Rule, dims_of, rows


def _reduced(call: Call, axes: Layout, dims: tuple[int, ...]) -> Layout:
    if call.arguments.get("keepdim"):
        return tuple(call.algebra.one if d in dims else axis for d, axis in enumerate(axes))
    return tuple(axis for d, axis in enumerate(axes) if d not in dims)


def _input(call: Call) -> Layout:
    return call.layout_of(call.tensors()[0])


def reduction(kind: Kind) -> Rule:
    """A reduction over `dim` (all dimensions if absent)."""

    def rule(call: Call) -> Effect:
        axes = _input(call)
        dims = dims_of(call.arguments.get("dim"), len(axes))
        out = _reduced(call, axes, dims)
        return Effect(tuple(out for _ in call.outputs), kind, tuple(axes[d] for d in dims))

    return rule


def softmax(call: Call) -> Effect:
    """``softmax(dim)``: normalises over dim, keeps the shape."""
    axes = _input(call)
    dim = call.dim("dim", len(axes))
    return Effect((axes,), Kind.STATISTIC, (axes[dim],) if axes else ())


def ordering(what: str) -> Rule:
    """Ops whose result depends on positions along `dim`: the dimension is fixed."""

    def rule(call: Call) -> Effect:
        axes = list(_input(call))
        dim = call.arguments.get("dim")
        chosen = range(len(axes)) if dim is None else (call.dim(int(dim), len(axes)),)
        call.freeze([axes[d] for d in chosen], what)
        over: tuple[Axis, ...] = tuple(axes[d] for d in chosen)
        outputs: list[Layout] = []
        for out in call.outputs:
            if out.dim() != len(axes):
                left = [axis for d, axis in enumerate(axes) if d not in chosen]
                outputs.append(tuple(left) if len(left) == out.dim() else call.fresh(out, what))
                continue
            outputs.append(
                tuple(
                    axis if axis.size == size else call.constant(size, what)
                    for axis, size in zip(axes, out.shape, strict=True)
                )
            )
        return Effect(tuple(outputs), Kind.STATISTIC, over)

    return rule


def vector_norm(call: Call) -> Effect:
    """``linalg_vector_norm(ord, dim)`` and ``norm(p, dim)``: p-norms with p > 0 do not see zeros."""
    order = call.arguments.get("ord", call.arguments.get("p", 2))
    order = 2 if order is None else order
    kind = Kind.SUM if isinstance(order, (int, float)) and order > 0 else Kind.STATISTIC
    return reduction(kind)(call)


def freeze_all(what: str) -> Callable[[Call], Effect]:
    """Ops that no axis survives."""

    def rule(call: Call) -> Effect:
        for tensor in call.tensors():
            call.freeze(call.layout_of(tensor), what)
        return Effect(tuple(call.fresh(out, what) for out in call.outputs), Kind.STATISTIC)

    return rule


def as_strided(call: Call) -> Effect:
    """``as_strided``: followed only where nothing but the strides of size-1 dimensions changes."""
    x = call["self"]
    same_strides = all(
        size == 1 or old == new
        for size, old, new in zip(x.shape, x.stride(), call["stride"], strict=False)
    )
    offset = call["storage_offset"]
    if tuple(call["size"]) == tuple(x.shape) and same_strides and offset in (None, 0):
        return Effect((call.axes("self"),), Kind.MOVE)
    return freeze_all("no index of this tensor can be followed")(call)


REDUCTIONS: dict[str, Rule] = {
    "as_strided": as_strided,
    **rows(reduction(Kind.SUM), "sum nansum"),
    **rows(
        reduction(Kind.STATISTIC),
        """mean var std var_mean std_mean max min amax amin aminmax prod logsumexp any all
        nanmean count_nonzero""",
    ),
    **rows(vector_norm, "linalg_vector_norm norm"),
    **rows(softmax, "_softmax softmax _log_softmax log_softmax _safe_softmax"),
    **rows(
        ordering("positions along this dimension are compared"),
        "topk sort argsort argmax argmin median nanmedian kthvalue mode",
    ),
    **rows(
        ordering("accumulated along this dimension"),
        "cumsum cumprod logcumsumexp cummax cummin _cummax_helper _cummin_helper",
    ),
    **rows(
        freeze_all("no index of this tensor can be followed"),
        """nonzero masked_select unique _unique2 unique_dim unique_consecutive diagonal
        diag_embed tril_indices_of scatter scatter_add scatter_reduce index_put _index_put_impl
        index_add index_copy index_fill masked_scatter view_as_real view_as_complex _fft_c2c
        _fft_r2c _fft_c2r bucketize searchsorted histc bincount put take unfold_backward
        grid_sampler_2d grid_sampler_3d affine_grid_generator _cdist_forward cdist
        linalg_inv_ex linalg_qr _linalg_svd _linalg_eigh linalg_cross _embedding_bag trace
        multinomial renorm complex polar""",
    ),
}
