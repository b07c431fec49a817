"""Finding the input dimensions at which the captured graph holds for any size."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fxprune.capture.compare import input_size
from fxprune.capture.inputs import Inputs, Leaf
from fxprune.capture.records import Capture, Expr
from fxprune.capture.symbols import NEAR_BATCH, Symbol, is_channel, symbols
from fxprune.capture.trials import Trials
from fxprune.errors import TraceError


@dataclass(frozen=True)
class Place:
    """One dimension of one input."""

    leaf: Leaf
    dim: int

    @property
    def expr(self) -> Expr:
        """The expression for this size."""
        return input_size(self.leaf.place, self.leaf.path, self.dim)


@dataclass(frozen=True)
class Found:
    """The merged capture and what was decided about each input dimension.

    failed: what could not vary though it was tried, and why. in_both_modes: whether the capture
    also says what the model does in train mode; otherwise trained does, if a trial showed it.
    """

    capture: Capture
    dynamic: Mapping[str, tuple[int, ...]]
    specialised: Mapping[str, Mapping[int, tuple[int, str]]]
    shared: tuple[tuple[Place, tuple[Place, ...]], ...] = ()
    steps: tuple[tuple[Place, int, int], ...] = ()
    failed: Mapping[Symbol, str] = field(default_factory=dict)
    in_both_modes: bool = False
    trained: Capture | None = None

    @property
    def varying(self) -> int:
        """How many dimensions may have any size."""
        return sum(map(len, self.dynamic.values()))


_UNITS = (64, 32, 16, 8, 4, 2)
"""Images are first tried by steps of the second, which the strides of most networks divide."""


@dataclass(frozen=True)
class _Proven:
    """Symbols that vary together, with the sizes by which they do, and the capture that says so."""

    capture: Capture
    symbols: tuple[Symbol, ...]


@dataclass(frozen=True)
class _Search:
    """reasons: why what cannot vary cannot; the search adds to it."""

    trials: Trials
    reasons: dict[Symbol, str]

    def proven(self, chosen: Sequence[Symbol]) -> _Proven | str:
        """These symbols at these trial sizes, or why they cannot vary together."""
        result = self.trials.proof(chosen)
        return result if isinstance(result, str) else _Proven(result, tuple(chosen))

    def either(self, chosen: Sequence[Symbol]) -> _Proven | str:
        """`proven` at the wide trial sizes, otherwise at the others."""
        widely = self.proven([symbol.widely for symbol in chosen])
        return self.finest(chosen) if isinstance(widely, str) else widely

    def finest(self, chosen: Sequence[Symbol]) -> _Proven | str:
        """`proven`; where sizes vary by multiples of a unit only, by the smallest that is proven.

        A model that does not bear a unit bears none of its divisors.
        """
        if all(symbol.unit == 1 for symbol in chosen):
            return self.proven(chosen)
        ladder = [[symbol.with_unit(unit) for symbol in chosen] for unit in _UNITS]
        borne = list(itertools.takewhile(self.trials.bears, ladder[1:]))
        for step in (*reversed(borne), ladder[0]):
            result = self.proven(step)
            if isinstance(result, _Proven):
                return result
        return self.proven(chosen)  # by the usual unit: why not

    def best(self, candidates: Sequence[Symbol]) -> _Proven:
        """As many of the symbols as can be proven."""
        whole = self.either(candidates)
        if isinstance(whole, _Proven):
            return whole
        if len(candidates) == 1:
            self.reasons[candidates[0]] = whole
            return self._together([])
        alone: list[Symbol] = []
        for symbol in candidates:
            result = self.proven([symbol])
            if isinstance(result, _Proven):
                alone.append(symbol)
            else:
                self.reasons[symbol] = result
        self._merge_equal(candidates, alone)
        return self._together(alone)

    def multiples(self, proven: _Proven, batch: Symbol) -> _Proven:
        """Let a batch grow by a little where it cannot by much, or by several at a time.

        Kernels are chosen by the size of the batch, and frames of videos and parallel streams of
        tokens lie side by side in it.
        """
        if any(place in symbol.places for symbol in proven.symbols for place in batch.places):
            return proven
        far = (batch.trials[0] - batch.size, batch.trials[1] - batch.size)
        for unit in (n for n in range(1, batch.size + 1) if batch.size % n == 0):
            for first, second in (far, NEAR_BATCH):
                sizes = (batch.size + unit * first, batch.size + unit * second)
                stepped = replace(batch, trials=sizes, unit=unit)
                if stepped == batch:
                    continue
                result = self.proven([stepped, *proven.symbols])
                if isinstance(result, _Proven):
                    return result
        return proven

    def _merge_equal(self, candidates: Sequence[Symbol], alone: list[Symbol]) -> None:
        """Let dimensions of equal size that cannot vary alone vary together."""
        by_size: dict[int, list[Symbol]] = {}
        for symbol in candidates:
            if symbol not in alone and symbol.size > 1:
                by_size.setdefault(symbol.size, []).append(symbol)
        for same in by_size.values():
            places = tuple(place for symbol in same for place in symbol.places)
            merged = replace(same[0], places=places)
            if len(same) > 1 and isinstance(self.proven([merged]), _Proven):
                alone.append(merged)

    def _together(self, alone: Sequence[Symbol]) -> _Proven:
        whole = self.either(alone)
        if isinstance(whole, _Proven):
            return whole
        kept: list[Symbol] = []
        for symbol in alone:
            result = self.proven([*kept, symbol])
            if isinstance(result, _Proven):
                kept.append(symbol)
            else:
                self.reasons[symbol] = result
        found = self.finest(kept)
        assert isinstance(found, _Proven)  # the empty set and each step were proven
        return found


def _wanted(inputs: Inputs, dynamic: Mapping[str, Any] | None) -> dict[tuple[str, int], bool]:
    """(input, dim) -> whether it must be dynamic, where the caller says so."""
    labels = {leaf.label: leaf for leaf in inputs.leaves}
    wanted: dict[tuple[str, int], bool] = {}
    if dynamic is None:
        return wanted
    for label, entry in dynamic.items():
        if label not in labels:
            raise TraceError(
                f"dynamic= names {label!r}, but the tensor inputs are {', '.join(labels)}. "
                "Use one of these names."
            )
        rank = labels[label].tensor.dim()
        pairs = dict(entry) if isinstance(entry, Mapping) else dict.fromkeys(entry, True)
        for dim, flag in pairs.items():
            if not -rank <= dim < rank:
                raise TraceError(
                    f"dynamic= names dimension {dim} of {label!r}, which has {rank} dimensions "
                    f"(shape {tuple(labels[label].tensor.shape)})."
                )
            wanted[label, dim % rank] = bool(flag)
    if any(wanted.values()):
        # Demands are complete: what an input's set does not name stays as it is.
        for label, entry in dynamic.items():
            if not isinstance(entry, Mapping):
                for dim in range(labels[label].tensor.dim()):
                    wanted.setdefault((label, dim), False)
    return wanted


def search(inputs: Inputs, trials: Trials, dynamic: Mapping[str, Any] | None) -> Found:
    """Decide which input dimensions are dynamic."""
    leaves = trials.leaves
    wanted = _wanted(inputs, dynamic)
    reasons: dict[Symbol, str] = {}
    candidates: list[Symbol] = []
    everything = symbols(inputs.leaves)
    for symbol in everything:
        flags = [wanted.get(place) for place in symbol.places]
        label, dim = symbol.places[0]
        if True in flags:
            candidates.append(symbol)
        elif False in flags:
            reasons[symbol] = "the caller asked for a fixed size"
        elif is_channel(leaves[label], dim):
            reasons[symbol] = "taken for the channels of an image"
        elif symbol.size == 1 and dim > 0:
            reasons[symbol] = "a size of 1 may stand for broadcasting"
        else:
            candidates.append(symbol)
    searcher = _Search(trials, reasons)
    proven = searcher.best(candidates)
    if everything[0] in candidates:
        proven = searcher.multiples(proven, everything[0])
    varying = {place for symbol in proven.symbols for place in symbol.places}
    failed = {
        symbol: reasons[symbol]
        for symbol in candidates
        if any(place not in varying for place in symbol.places)
    }
    found = _found(leaves, proven, everything, reasons)
    both = proven.symbols in trials.in_both_modes
    return replace(found, failed=failed, in_both_modes=both, trained=trials.trained)


def varies(trials: Trials, chosen: Sequence[Symbol]) -> bool:
    """Whether dimensions can vary, all of them together and the others not at all."""
    return isinstance(_Search(trials, {}).either(chosen), _Proven)


def require(found: Found, inputs: Inputs, dynamic: Mapping[str, Any] | None) -> None:
    """Raise TraceError for a demand that is not met."""
    wanted = _wanted(inputs, dynamic)
    for symbol, reason in found.failed.items():
        if any(wanted.get(place) for place in symbol.places):
            raise TraceError(
                f"dynamic= demands {symbol.describe()} (traced size {symbol.size}), but it cannot "
                f"vary: {reason}. Leave it out of dynamic=, or change the model "
                "at that line so that it computes the size from its input."
            )


def _found(
    leaves: Mapping[str, Leaf],
    proven: _Proven,
    everything: Sequence[Symbol],
    reasons: Mapping[Symbol, str],
) -> Found:
    chosen = proven.symbols
    varying: dict[str, list[int]] = {label: [] for label in leaves}
    fixed: dict[str, dict[int, tuple[int, str]]] = {}
    shared: list[tuple[Place, tuple[Place, ...]]] = []
    for symbol in chosen:
        for label, dim in symbol.places:
            varying[label].append(dim)
    for symbol in everything:
        for label, dim in symbol.places:
            if dim not in varying[label]:
                fixed.setdefault(label, {})[dim] = (symbol.size, reasons[symbol])
    for symbol in chosen:
        if len(symbol.places) > 1:
            first, *others = (Place(leaves[label], dim) for label, dim in symbol.places)
            shared.append((first, tuple(others)))
    dynamic = {label: tuple(sorted(found)) for label, found in varying.items()}
    steps = tuple(
        (Place(leaves[s.places[0][0]], s.places[0][1]), s.size, s.unit)
        for s in chosen
        if s.unit > 1
    )
    return Found(proven.capture, dynamic, fixed, tuple(shared), steps)
