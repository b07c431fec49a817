"""Which groups can be masked: zeroing their parameters in the original equals removing them.

For each tensor and atom we track the *fill*: what stands at the positions of removed units when the
parameters' entries are zeroed. A fill is a known constant (a float, mostly 0.0), `ANY` (finite), or
NaN (not a number, or infinite, is possible). An op that would see the removed positions *flags* the
atom:

* a contraction or a sum over them, unless they hold zeros (in one operand, for a contraction),
* a statistic (mean, softmax, a normalisation) over them, always.

A group is maskable iff no op flags any of its atoms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxprune.axes import Atom, is_frozen, leaves
from fxprune.propagate import Propagation, Record
from fxprune.rules.base import Kind, Layout, tensors_in
from fxprune.schemas import schema_of

ANY = math.inf
"""The fill of positions that hold finite values nothing is known of."""

Fills: TypeAlias = dict[Atom, float]

_SAMPLES = 8
_ADDITIVE = dict.fromkeys(
    "aten::addmm aten::baddbmm aten::addbmm aten::addmv aten::addr".split(), "self"
)
_KEEPS_CONSTANTS = frozenset(
    "aten::mean aten::amax aten::amin aten::aminmax aten::max aten::min".split()
)
_KEEPS_ZEROS = frozenset(
    """aten::var aten::std aten::var_mean aten::std_mean aten::prod aten::cumsum aten::cumprod
    aten::cummax aten::cummin aten::topk aten::sort aten::median aten::nanmedian aten::kthvalue
    aten::mode""".split()
)
_NEEDS_RANK = frozenset({"aten::linalg_inv_ex"})
_DIVIDES_BY_NORM = frozenset({"aten::_weight_norm_interface"})
_DISTANCES = frozenset("aten::_cdist_forward aten::_euclidean_dist".split())
_AFFINE_STATISTICS = frozenset("aten::native_group_norm aten::native_layer_norm".split())


def flagged_atoms(propagation: Propagation) -> Mapping[Atom, str]:
    """Atoms whose groups are not maskable, each with the op that sees their removed units."""
    return _FillPass(propagation).run()


def _worst(fills: Iterable[float]) -> float:
    """The join of several fills."""
    distinct = set(fills)
    if any(math.isnan(fill) for fill in distinct):
        return math.nan
    return distinct.pop() if len(distinct) == 1 else ANY


class _FillPass:
    """Walks the executed ops in order; `fills` maps tensor key → atom → fill (absent means ANY)."""

    def __init__(self, propagation: Propagation) -> None:
        self.propagation = propagation
        self.flags: dict[Atom, str] = {}
        self.fills: dict[int, Fills] = {}
        self._by_storage: dict[int, list[int]] = {}
        self._leaves: dict[int, frozenset[Atom]] = {}
        self._free: dict[int, tuple[Layout, frozenset[Atom]]] = {}
        self._probes: dict[Any, float] = {}

    def run(self) -> Mapping[Atom, str]:
        for key, name in self.propagation.sources.items():
            self._set(key, dict.fromkeys(self.free(self.propagation.layouts[name]), 0.0))
        for record in self.propagation.records:
            self._visit(record)
        return self.flags

    def free(self, layout: Layout) -> frozenset[Atom]:
        """The atoms of a layout that may be pruned."""
        known = self._free.get(id(layout))
        return self._find_free(layout) if known is None else known[1]

    def _find_free(self, layout: Layout) -> frozenset[Atom]:
        found: frozenset[Atom] = frozenset()
        for axis in layout:
            if id(axis) not in self._leaves:
                atoms = () if is_frozen(axis) else leaves(axis)
                self._leaves[id(axis)] = frozenset(a for a in atoms if a.reason is None)
            found |= self._leaves[id(axis)]
        self._free[id(layout)] = layout, found
        return found

    def _set(self, key: int, fills: Fills) -> None:
        if key not in self.fills:
            self._by_storage.setdefault(self.propagation.storages.get(key, key), []).append(key)
        self.fills[key] = fills

    def _visit(self, record: Record) -> None:
        over = self.free(record.effect.over)
        outputs = [self.free(layout) for layout in record.effect.outputs]
        if not over and not any(outputs):
            return
        for atom in over:
            self._check(record, atom)
        results = [{a: self._fill(record, a, p) for a in atoms} for p, atoms in enumerate(outputs)]
        if record.mutated is not None:
            self._write(record.mutated, results[0])
        for key, fills in zip(record.outputs, results, strict=True):
            self._set(key, fills)

    def _write(self, storage: int, written: Fills) -> None:
        """An in-place op may write through a view: what shares the storage may hold either fill."""
        for key in self._by_storage.get(storage, ()):
            for atom, fill in self.fills[key].items():
                if atom in written:
                    self.fills[key][atom] = _worst((fill, written[atom]))

    def carried(self, record: Record, atom: Atom) -> list[float]:
        """The fills of the inputs that carry `atom`."""
        return [
            self.fills.get(key, {}).get(atom, ANY)
            for key, layout in record.inputs
            if atom in self.free(layout)
        ]

    def _check(self, record: Record, atom: Atom) -> None:
        """Flag `atom` if the op, which mixes over it, sees its removed positions."""
        kind, fills = record.effect.kind, self.carried(record, atom)
        exact = False
        if kind in (Kind.CONTRACT, Kind.RECURRENT):
            exact = not any(math.isnan(f) for f in fills) and 0.0 in fills
        elif kind is Kind.SUM:
            exact = all(f == 0.0 for f in fills)
        elif kind is Kind.WINDOW:
            exact = True
        if not exact and atom not in self.flags:
            self.flags[atom] = f"{record.call.name} at {record.site.name}"

    def _fill(self, record: Record, atom: Atom, position: int) -> float:
        """What stands at the removed positions of one output."""
        return _FILLS[record.effect.kind](self, record, atom, position)

    # -- one method per kind of op -----------------------------------------------------------------

    def pointwise(self, record: Record, atom: Atom, position: int) -> float:
        """Run the op on scalars: the fill where an input carries the atom, samples elsewhere."""
        fills = tuple(
            self.fills.get(key, {}).get(atom, ANY) if atom in self.free(layout) else None
            for key, layout in record.inputs
        )
        if any(f is not None and math.isnan(f) for f in fills):
            return math.nan
        key = (record.call.func, repr(_scalars(record.call.arguments.values())), fills, position)
        if key not in self._probes:
            self._probes[key] = _probe(record, fills, position)
        return self._probes[key]

    def values(self, record: Record, atom: Atom) -> list[float]:
        """`carried` without the tensors that only say where elements come from or go to."""
        index = id(record.call.arguments.get("index"))
        return [
            self.fills.get(key, {}).get(atom, ANY)
            for key, layout in record.inputs
            if key != index and atom in self.free(layout)
        ]

    def move(self, record: Record, atom: Atom, position: int) -> float:
        return _worst(self.values(record, atom))

    def window(self, record: Record, atom: Atom, position: int) -> float:
        worst = _worst(self.values(record, atom))
        return worst if worst == 0.0 or math.isnan(worst) else ANY

    def contract(self, record: Record, atom: Atom, position: int) -> float:
        """A product is zero where one of its operands is; an added bias must be zero too."""
        bias_name = _ADDITIVE.get(record.call.name, "bias")
        added = self._fill_of(record, bias_name, atom)
        skipped = id(record.call.arguments.get(bias_name))
        factors = [
            self.fills.get(key, {}).get(atom, ANY)
            for key, layout in record.inputs
            if key != skipped and atom in self.free(layout)
        ]
        if any(math.isnan(fill) for fill in (*factors, added or 0.0)):
            return math.nan
        both = atom in self.free(record.effect.over)
        zero = bool(factors) and (all if both else any)(f == 0.0 for f in factors)
        return 0.0 if zero and added in (None, 0.0) else ANY

    def sum(self, record: Record, atom: Atom, position: int) -> float:
        name, outputs = record.call.name, record.effect.outputs
        if name in _DIVIDES_BY_NORM and position == 0 and atom in self.free(outputs[1]):
            return math.nan  # zeros over a norm of zero; an atom that has no norm is summed over
        if name in _DISTANCES:
            return ANY  # the distance of zero from something
        return self.window(record, atom, position)

    def statistic(self, record: Record, atom: Atom, position: int) -> float:
        fills, name = self.carried(record, atom), record.call.name
        if any(math.isnan(f) for f in fills) or name in _NEEDS_RANK:
            return math.nan
        keeps = position == 0 or name in ("aten::aminmax", "aten::var_mean", "aten::std_mean")
        if name in _KEEPS_CONSTANTS and keeps:
            return _worst(fills)
        if name in _KEEPS_ZEROS and keeps and _worst(fills) == 0.0:
            return 0.0
        if name in _AFFINE_STATISTICS and position == 0:
            return self._affine(record, atom, self._fill_of(record, "input", atom) == 0.0)
        return ANY

    def _affine(self, record: Record, atom: Atom, zero: bool) -> float:
        """``norm(x) * weight + bias``, where norm(x) is `zero` unless it is normalised over."""
        zero = zero and atom not in self.free(record.effect.over)
        weight, bias = (self._fill_of(record, name, atom) for name in ("weight", "bias"))
        return 0.0 if (zero or weight == 0.0) and bias in (None, 0.0) else ANY

    def _fill_of(self, record: Record, name: str, atom: Atom) -> float | None:
        """The fill of one argument; ANY if it does not carry the atom, None if it is absent."""
        tensor = record.call.arguments.get(name)
        return self.fills.get(id(tensor), {}).get(atom, ANY) if isinstance(tensor, Tensor) else None

    def batch_norm(self, record: Record, atom: Atom, position: int) -> float:
        """Evaluation subtracts the running mean, which must be zero for zeros to stay."""
        fills = self.carried(record, atom)
        if any(math.isnan(f) for f in fills):
            return math.nan
        if position > 0:
            return ANY
        centred = self._fill_of(record, "running_mean", atom) in (None, 0.0)
        return self._affine(record, atom, centred and self._fill_of(record, "input", atom) == 0.0)

    def recurrent(self, record: Record, atom: Atom, position: int) -> float:
        """A unit without weights stays at its initial state, which is zero unless one is given."""
        if atom not in self.free(record.effect.over):
            return ANY
        states = tensors_in(record.call.arguments["state"])
        given = [self.fills.get(id(t), {}).get(atom, ANY) for t in states]
        return 0.0 if all(f == 0.0 for f in given) else ANY

    def fresh(self, record: Record, atom: Atom, position: int) -> float:
        name = record.call.name.removeprefix("aten::").removeprefix("new_").removesuffix("_like")
        if name in ("zeros", "ones"):
            return float(name == "ones")
        return float(record.call["fill_value"]) if name == "full" else ANY


_FILLS: Mapping[Kind, Callable[[_FillPass, Record, Atom, int], float]] = {
    Kind.POINTWISE: _FillPass.pointwise,
    Kind.MOVE: _FillPass.move,
    Kind.WINDOW: _FillPass.window,
    Kind.CONTRACT: _FillPass.contract,
    Kind.SUM: _FillPass.sum,
    Kind.STATISTIC: _FillPass.statistic,
    Kind.BATCH_NORM: _FillPass.batch_norm,
    Kind.RECURRENT: _FillPass.recurrent,
    Kind.FRESH: _FillPass.fresh,
}


def _scalars(arguments: Iterable[Any]) -> list[Any]:
    """The arguments with tensors reduced to their dtypes: all that a pointwise op can depend on."""
    return [
        a.dtype if isinstance(a, Tensor) else _scalars(a) if isinstance(a, (list, tuple)) else a
        for a in arguments
    ]


def _probe(record: Record, fills: tuple[float | None, ...], position: int) -> float:
    """The value of a pointwise op where its carrying inputs hold `fills`.

    Inputs that do not carry the atom, or hold anything, are sampled. A result that is never finite
    is NaN. In one more run they are zero, and what is not finite then does not count: to divide by
    zero is wrong with all units, too.
    """
    samples = _samples(len(fills)).clone()  # the op may write to it
    # At once, but for ops that take a tensor without dimensions: it may have to stay one.
    single = any(t.dim() == 0 for t in record.call.tensors())
    runs = samples.split(1) if single else (samples,)
    result = torch.cat([_run(record, fills, run)[position] for run in runs])
    finite = torch.isfinite(result)
    if not finite.any() or (not finite.all() and ANY not in fills):
        return math.nan
    try:
        zero = _run(record, fills, torch.zeros_like(samples[:1]))[position]
    except RuntimeError:  # integers have no result
        zero = result[:0]
    every = torch.cat([result, zero[torch.isfinite(zero)]])
    first = float(every[0])
    return first if bool((every == first).all()) else ANY


@cache
def _samples(operands: int) -> Tensor:
    """The same numbers for every op of so many operands: float64 [_SAMPLES, operands]."""
    generator = torch.Generator().manual_seed(0)
    shape = _SAMPLES, operands
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def _run(record: Record, fills: tuple[float | None, ...], samples: Tensor) -> list[Tensor]:
    """The results of a pointwise op, flat: of a row of samples each, or of the fills instead.

    samples  [n, number of the op's tensors]; n is 1 if one of those has no dimensions
    """
    remaining = zip(fills, samples.unbind(1), strict=True)

    def entries(argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        fill, values = next(remaining)
        if fill is not None and fill != ANY:
            values = torch.full_like(values, fill)
        elif argument.dtype == torch.bool:
            values = values > 0
        elif not argument.is_floating_point():
            values = values.sign() * (values.abs() * 4).ceil()
        return values.to(argument.dtype).reshape((-1,) if argument.dim() else ())

    arguments = {name: entries(a) for name, a in record.call.arguments.items()}
    args, kwargs = schema_of(record.call.func).unbind(arguments)
    kwargs |= {"device": "cpu"} if "device" in kwargs else {}
    results = tensors_in(record.call.func(*args, **kwargs))
    parts = (torch.view_as_real(r) if r.is_complex() else r for r in results)
    return [part.double().reshape(-1) for part in parts]
