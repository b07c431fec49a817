"""Ops that reduce, normalise or scan over dimensions."""

from __future__ import annotations

from fxprune.axes import Axis
from fxprune.formulas import broadcast as broadcast_shape
from fxprune.rules.base import Call, Effect, Kind, Layout, Rule, broadcast, dims_of, rows

_MEAN = 1  # the number by which torch calls a mean of losses; 2 is their sum, 0 leaves them


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
        chosen = dims_of(call.arguments.get("dim"), len(axes))
        over: tuple[Axis, ...] = tuple(axes[d] for d in chosen)
        call.freeze(over, what)
        outputs: list[Layout] = []
        for out in call.outputs:
            if out.dim() != len(axes):
                outputs.append(tuple(axis for d, axis in enumerate(axes) if d not in chosen))
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
    """``linalg_vector_norm(ord, dim)`` and ``norm(p, dim)``: p ≥ 0 does not see zeros."""
    order = call.arguments.get("ord", call.arguments.get("p", 2))
    order = 2 if order is None else order
    kind = Kind.SUM if order >= 0 else Kind.STATISTIC
    return reduction(kind)(call)


def extremum(call: Call) -> Effect:
    """``max`` and ``min``: with `dim`, they also return positions, so the dimension is fixed."""
    if len(call.outputs) == 1:
        return reduction(Kind.STATISTIC)(call)
    return ordering("positions along this dimension are returned")(call)


def fourier(call: Call) -> Effect:
    """Fourier transforms mix the dimensions `dim`; they are linear."""
    axes = call.axes("self")
    dims = dims_of(call["dim"], len(axes))
    call.freeze([axes[d] for d in dims], "transformed dimensions")
    fresh = call.fresh(call.outputs[0], "frequencies")
    out = tuple(fresh[d] if d in dims else axis for d, axis in enumerate(axes))
    return Effect((out,), Kind.WINDOW)


def matrices(call: Call) -> Effect:
    """Decompositions and inverses of the matrices in the last two dimensions."""
    axes = _input(call)
    call.freeze(axes[-2:], "rows and columns of a matrix")
    batch = axes[:-2]
    outputs = (call.fresh(out, "rows and columns of a matrix") for out in call.outputs)
    return Effect(tuple((*batch, *out[len(batch) :]) for out in outputs), Kind.STATISTIC, axes[-2:])


def solve_triangular(call: Call) -> Effect:
    """``linalg_solve_triangular(A, B, left)``: each column of B (row, if not left) on its own."""
    matrix, values = call.axes("self"), list(call.axes("B"))
    solved = -2 if call["left"] else -1
    call.freeze((*matrix[-2:], values[solved]), "rows and columns of a matrix")
    result = call.outputs[0]
    batch = broadcast(call, [matrix[:-2], tuple(values[:-2])], result.shape[:-2])
    values[solved] = call.fresh(result, "rows and columns of a matrix")[solved]
    return Effect(((*batch, *values[-2:]),), Kind.WINDOW)


def distances(call: Call) -> Effect:
    """``cdist``: distances between rows; the features are summed over."""
    left, right = call.axes("x1"), call.axes("x2")
    inner = call.algebra.unify(left[-1], right[-1])
    batch = broadcast(call, [left[:-2], right[:-2]], call.outputs[0].shape[:-2])
    return Effect(((*batch, left[-2], right[-2]),), Kind.SUM, (inner,))


def difference(call: Call) -> Effect:
    """``mse_loss`` and its like: a function of differences, entry by entry, averaged or summed."""
    layouts, reduction = [call.axes("self"), call.axes("target")], call["reduction"]
    if not reduction:
        return Effect((broadcast(call, layouts, call.outputs[0].shape),), Kind.POINTWISE)
    left, right = ([axis.size for axis in layout] for layout in layouts)
    axes = broadcast(call, layouts, broadcast_shape(left, right) or ())
    return Effect(((),), Kind.STATISTIC if reduction == _MEAN else Kind.SUM, axes)


def cross(call: Call) -> Effect:
    """``linalg.cross``: the three components are fixed."""
    layouts = [call.axes("self"), call.axes("other")]
    axes = broadcast(call, layouts, call.outputs[0].shape)
    dim = call.dim("dim", len(axes))
    call.freeze((axes[dim],), "components of a vector")
    return Effect((axes,), Kind.WINDOW, (axes[dim],))


def renorm(call: Call) -> Effect:
    """``renorm(p, dim, maxnorm)``: scales each index of dim by a norm over the others."""
    axes = call.axes("self")
    dim = call.dim("dim", len(axes))
    over = tuple(axis for d, axis in enumerate(axes) if d != dim)
    return Effect((axes,), Kind.SUM, over)


def trace(call: Call) -> Effect:
    """``trace``: sums the diagonal."""
    axes = call.axes("self")
    if axes[0].size == axes[1].size:
        call.algebra.unify(*axes)
    else:
        call.freeze(axes, "positions on a diagonal")
    return Effect(((),), Kind.SUM, axes)


REDUCTIONS: dict[str, Rule] = {
    **rows(reduction(Kind.SUM), "sum nansum any count_nonzero"),
    **rows(
        reduction(Kind.STATISTIC),
        "mean var std var_mean std_mean amax amin aminmax prod logsumexp all",
    ),
    **rows(extremum, "max min"),
    **rows(vector_norm, "linalg_vector_norm norm"),
    **rows(softmax, "_softmax _log_softmax _safe_softmax"),
    **rows(
        ordering("positions along this dimension are compared"),
        "topk sort argmax argmin median nanmedian kthvalue mode",
    ),
    **rows(
        ordering("accumulated along this dimension"),
        "cumsum cumprod logcumsumexp cummax cummin",
    ),
    **rows(fourier, "_fft_c2c _fft_r2c _fft_c2r"),
    **rows(matrices, "linalg_inv_ex linalg_qr _linalg_svd _linalg_eigh linalg_matrix_exp"),
    "linalg_solve_triangular": solve_triangular,
    **rows(distances, "_cdist_forward _euclidean_dist"),
    **rows(difference, "mse_loss smooth_l1_loss huber_loss"),
    "linalg_cross": cross,
    "renorm": renorm,
    "trace": trace,
}
