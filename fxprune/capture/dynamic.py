"""Finding the input dimensions at which the captured graph holds for any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fxprune.capture.compare import Mismatch, check_structure, input_size, merge_captures
from fxprune.capture.inputs import NEAR_BATCH, Inputs, Leaf, Sizes, Symbol, is_channel, symbols
from fxprune.capture.records import Capture, Expr
from fxprune.errors import TraceError

Run = Callable[[Sizes], Capture]


_FINER_UNITS = (2, 4, 8, 16)


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

    failed: what could not vary though it was tried, and why. renews: whether a trial that differed
    gave other values to attributes of the model. modeless: whether `train` of `search` showed that
    the model does the same in train mode.
    """

    capture: Capture
    dynamic: Mapping[str, tuple[int, ...]]
    specialised: Mapping[str, Mapping[int, tuple[int, str]]]
    shared: tuple[tuple[Place, tuple[Place, ...]], ...] = ()
    steps: tuple[tuple[Place, int, int], ...] = ()
    failed: Mapping[Symbol, str] = field(default_factory=dict)
    renews: bool = False
    modeless: bool = False

    @property
    def varying(self) -> int:
        """How many dimensions may have any size."""
        return sum(map(len, self.dynamic.values()))


@dataclass
class _Search:
    run: Run
    base: Capture
    leaves: Mapping[str, Leaf]
    train: Run | None = None
    reasons: dict[Symbol, str] = field(default_factory=dict)
    careful: bool = False
    renews: bool = False
    modeless: bool = False
    known: dict[tuple[tuple[Symbol, ...], bool], Capture | str] = field(default_factory=dict)

    def attempt(self, chosen: Sequence[Symbol], careful: bool) -> Capture | str:
        """The merged capture if these symbols can vary together, otherwise why not."""
        key = (tuple(chosen), careful)
        if key not in self.known:
            self.known[key] = self._attempt(chosen, careful)
        return self.known[key]

    def _attempt(self, chosen: Sequence[Symbol], careful: bool) -> Capture | str:
        if not chosen:
            return merge_captures((self.base,), {})
        captures = [self.base]
        trials = {s: s.careful if careful else s.wide for s in chosen}
        # The larger sizes first: they are the ones that a model may not take. They suffice where
        # forward asks for no size: only shapes can differ then, not what it does.
        order = (1, 0) if careful or self.base.measures else (1,)
        for trial in order:
            sizes = {place: trials[s][trial] for s in chosen for place in s.places}
            try:
                captures.insert(1, self.run(sizes))
                check_structure(captures)
            except Mismatch as error:
                return self._differs(captures, error)
            except Exception as error:
                first = str(error).strip().split("\n")[0][:160]
                return f"the model fails at another size: {type(error).__name__}: {first}"
        known = {
            input_size(self.leaves[label].place, self.leaves[label].path, dim): (
                (s.size, *(trials[s][trial] for trial in reversed(order))),
                s.unit if careful else 1,
            )
            for s in chosen
            for label, dim in s.places[:1]
        }
        try:
            return merge_captures(captures, known)
        except Mismatch as error:
            return self._differs(captures, error)

    def _differs(self, captures: Sequence[Capture], error: Mismatch) -> str:
        self.renews |= any(capture.renews for capture in captures[1:])
        return str(error)

    def either(self, chosen: Sequence[Symbol]) -> Capture | str:
        """`attempt` at the wide trial sizes, then at the careful ones."""
        self.careful = False
        result = self.attempt(chosen, careful=False)
        if isinstance(result, str) and any(s.wide != s.careful for s in chosen):
            self.careful = True
            result = self.attempt(chosen, careful=True)
        return result

    def best(self, candidates: Sequence[Symbol]) -> tuple[Capture, list[Symbol]]:
        """The capture in which as many symbols vary as can be proven."""
        if self.train is not None and candidates:
            both = replace(self, run=self.train, known={}).attempt(candidates, careful=False)
            if isinstance(both, Capture):
                self.modeless = True
                return both, list(candidates)
        whole = self.either(candidates)
        if isinstance(whole, Capture):
            return whole, list(candidates)
        if len(candidates) == 1:
            self.reasons[candidates[0]] = whole
            return self._none()
        alone: list[Symbol] = []
        last: Capture | None = None
        for symbol in candidates:
            result = self.attempt([symbol], careful=True)
            if isinstance(result, Capture):
                alone.append(symbol)
                last = result
            else:
                self.reasons[symbol] = result
        self._merge_equal(candidates, alone)
        if last is not None and len(alone) == 1 and alone[0].wide == alone[0].careful:
            self.careful = False
            return last, alone
        return self._together(alone)

    def finer(self, capture: Capture, chosen: list[Symbol]) -> tuple[Capture, list[Symbol]]:
        """Where sizes may only differ by multiples of a unit: the smallest unit that is proven."""
        if self.careful:
            for unit in _FINER_UNITS:
                finer = [symbol.with_unit(unit) for symbol in chosen]
                result = self.attempt(finer, careful=True) if finer != chosen else None
                if isinstance(result, Capture):
                    return result, finer
        return capture, chosen

    def multiples(
        self, capture: Capture, chosen: list[Symbol], batch: Symbol
    ) -> tuple[Capture, list[Symbol]]:
        """Let a batch grow by a little where it cannot by much, or by several at a time.

        Kernels are chosen by the size of the batch, and frames of videos and parallel streams of
        tokens lie side by side in it.
        """
        if any(place in symbol.places for symbol in chosen for place in batch.places):
            return capture, chosen
        others = [s if self.careful else replace(s, careful=s.wide, unit=1) for s in chosen]
        far = (batch.careful[0] - batch.size, batch.careful[1] - batch.size)
        for unit in (n for n in range(1, batch.size + 1) if batch.size % n == 0):
            for first, second in (far, NEAR_BATCH):
                sizes = (batch.size + unit * first, batch.size + unit * second)
                stepped = replace(batch, careful=sizes, unit=unit)
                if stepped == batch:
                    continue
                result = self.attempt([stepped, *others], careful=True)
                if isinstance(result, Capture):
                    self.careful = True
                    return result, [stepped, *others]
        return capture, chosen

    def _merge_equal(self, candidates: Sequence[Symbol], alone: list[Symbol]) -> None:
        """Let dimensions of equal size that cannot vary alone vary together."""
        by_size: dict[int, list[Symbol]] = {}
        for symbol in candidates:
            if symbol not in alone and symbol.size > 1:
                by_size.setdefault(symbol.size, []).append(symbol)
        for same in by_size.values():
            places = tuple(place for symbol in same for place in symbol.places)
            merged = replace(same[0], places=places)
            if len(same) > 1 and isinstance(self.attempt([merged], careful=True), Capture):
                alone.append(merged)

    def _together(self, alone: list[Symbol]) -> tuple[Capture, list[Symbol]]:
        result = self.either(alone)
        if isinstance(result, Capture):
            return result, alone
        kept: list[Symbol] = []
        best: Capture | None = None
        self.careful = True
        for symbol in alone:
            result = self.attempt([*kept, symbol], careful=True)
            if isinstance(result, Capture):
                kept.append(symbol)
                best = result
            else:
                self.reasons[symbol] = result
        return (best, kept) if best is not None else self._none()

    def _none(self) -> tuple[Capture, list[Symbol]]:
        result = self.attempt([], careful=False)
        assert isinstance(result, Capture)
        return result, []


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


def search(
    inputs: Inputs,
    base: Capture,
    run: Run,
    dynamic: Mapping[str, Any] | None,
    train: Run | None = None,
) -> Found:
    """Decide which input dimensions are dynamic.

    train: runs in train mode, for a model that asks for no sizes. If one at other sizes does the
    same as `base`, neither the sizes nor the mode change what the model does.
    """
    leaves = {leaf.label: leaf for leaf in inputs.leaves}
    wanted = _wanted(inputs, dynamic)
    searcher = _Search(run, base, leaves, train)
    candidates: list[Symbol] = []
    everything = symbols(inputs.leaves)
    for symbol in everything:
        flags = [wanted.get(place) for place in symbol.places]
        label, dim = symbol.places[0]
        if True in flags:
            candidates.append(symbol)
        elif False in flags:
            searcher.reasons[symbol] = "the caller asked for a fixed size"
        elif is_channel(leaves[label], dim):
            searcher.reasons[symbol] = "taken for the channels of an image"
        elif symbol.size == 1 and dim > 0:
            searcher.reasons[symbol] = "a size of 1 may stand for broadcasting"
        else:
            candidates.append(symbol)
    capture, chosen = searcher.finer(*searcher.best(candidates))
    if everything[0] in candidates:
        capture, chosen = searcher.multiples(capture, chosen, everything[0])
    varying = {place for symbol in chosen for place in symbol.places}
    failed = {
        symbol: searcher.reasons[symbol]
        for symbol in candidates
        if any(place not in varying for place in symbol.places)
    }
    found = _found(inputs, capture, chosen, everything, searcher.reasons)
    steps = tuple(
        (Place(leaves[s.places[0][0]], s.places[0][1]), s.size, s.unit)
        for s in chosen
        if searcher.careful and s.unit > 1
    )
    return replace(
        found, steps=steps, failed=failed, renews=searcher.renews, modeless=searcher.modeless
    )


def varies(inputs: Inputs, base: Capture, run: Run, chosen: Sequence[Symbol]) -> bool:
    """Whether dimensions can vary, all of them together and the others not at all."""
    leaves = {leaf.label: leaf for leaf in inputs.leaves}
    return isinstance(_Search(run, base, leaves).either(chosen), Capture)


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
    inputs: Inputs,
    capture: Capture,
    chosen: Sequence[Symbol],
    everything: Sequence[Symbol],
    reasons: Mapping[Symbol, str],
) -> Found:
    leaves = {leaf.label: leaf for leaf in inputs.leaves}
    varying: dict[str, list[int]] = {leaf.label: [] for leaf in inputs.leaves}
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
    return Found(capture, dynamic, fixed, tuple(shared))
