"""Running a model at other sizes of its inputs, and what such trials prove together."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxprune.capture.compare import Known, Mismatch, input_size, merge_captures
from fxprune.capture.inputs import Leaf, Sizes
from fxprune.capture.modes import merge_modes, without_dropout
from fxprune.capture.records import Capture
from fxprune.capture.symbols import Symbol

Run = Callable[[Sizes], Capture]


@dataclass
class Trials:
    """The captures of a model at other sizes than the example's; none is made twice.

    run      a capture at such sizes; raises Mismatch where it differs from `base`
    train    the same in train mode; None where the modes cannot differ, or were found to differ
    trained  what the model did in train mode, if sizes can have made none of its numbers
    in_both_modes  the symbols whose proof covers train mode
    differs  the sizes at which the model took another path than `base`
    """

    base: Capture
    leaves: Mapping[str, Leaf]
    run: Run
    train: Run | None = None
    trained: Capture | None = None
    in_both_modes: set[tuple[Symbol, ...]] = field(default_factory=set)
    differs: list[Sizes] = field(default_factory=list)
    _runs: dict[frozenset[Any], Capture | str] = field(default_factory=dict)
    _proofs: dict[tuple[Symbol, ...], Capture | str] = field(default_factory=dict)

    def proof(self, chosen: Sequence[Symbol]) -> Capture | str:
        """The merged capture if these symbols can vary together, otherwise why not."""
        key = tuple(chosen)
        if key not in self._proofs:
            self._proofs[key] = self._proof(key)
        return self._proofs[key]

    def bears(self, chosen: Sequence[Symbol]) -> bool:
        """Whether the model takes the same path at the larger sizes: less than a proof."""
        return isinstance(self._at(_sizes(chosen, 1)), Capture)

    def _proof(self, chosen: tuple[Symbol, ...]) -> Capture | str:
        if not chosen:
            return merge_captures((self.base,), {})
        # The larger sizes first: they are the ones that a model may not take. They suffice where
        # forward asks for no size: only shapes can differ then, not what it does.
        first, last = ((1,), 0) if self.base.measures else ((), 1)
        captures: list[Capture] = []
        for trial in first:
            capture = self._at(_sizes(chosen, trial))
            if isinstance(capture, str):
                return capture
            captures.append(capture)
        merged = self._in_train_mode(chosen, last, captures)
        if merged is not None:
            return merged
        capture = self._at(_sizes(chosen, last))
        if isinstance(capture, str):
            return capture
        try:
            return self._merged(chosen, last, capture, captures)
        except Mismatch as error:
            self.differs.append(_sizes(chosen, last))
            return str(error)

    def _at(self, sizes: Sizes) -> Capture | str:
        """The capture at these sizes, or why there is none."""
        key = frozenset(sizes.items())
        if key not in self._runs:
            self._runs[key] = self._run(sizes)
        return self._runs[key]

    def _run(self, sizes: Sizes) -> Capture | str:
        try:
            return self.run(sizes)
        except Mismatch as error:
            self.differs.append(sizes)
            return str(error)
        except Exception as error:
            first = str(error).strip().split("\n")[0][:160]
            return f"the model fails at another size: {type(error).__name__}: {first}"

    def _in_train_mode(
        self, chosen: tuple[Symbol, ...], trial: int, others: Sequence[Capture]
    ) -> Capture | None:
        """The merged capture if a trial in train mode shows as much as one in eval mode would.

        It does where nothing differs but dropout, of whose rates a run at the example's sizes is to
        tell. Where forward asks for no size, sizes can have made none of the numbers, and all may
        differ.
        """
        sizes = _sizes(chosen, trial)
        if self.train is None or frozenset(sizes.items()) in self._runs:
            return None
        try:
            capture = self.train(sizes)
            if len(capture.log) != len(self.base.log) or capture.measures != self.base.measures:
                raise Mismatch("train mode asks for other sizes")
            if self.base.measures:
                alike = without_dropout(self.base, capture)
                merged = self._merged(chosen, trial, alike, others)
                same = all(map(operator.is_, alike.records, capture.records))
            else:
                self.trained = capture
                merged, same = merge_modes(self.base, capture), True
        except Exception:  # whatever a model raises in train mode: the trial in eval mode tells
            self.train = None
            return None
        if same:
            self.in_both_modes.add(chosen)
        return merged

    def _merged(
        self, chosen: Sequence[Symbol], trial: int, capture: Capture, others: Sequence[Capture]
    ) -> Capture:
        order = (trial, *range(1, 1 + len(others)))
        known: Known = {
            input_size(self.leaves[label].place, self.leaves[label].path, dim): (
                (s.size, *(s.trials[t] for t in order)),
                s.unit,
            )
            for s in chosen
            for label, dim in s.places[:1]
        }
        return merge_captures((self.base, capture, *others), known)


def _sizes(chosen: Sequence[Symbol], trial: int) -> Sizes:
    return {place: s.trials[trial] for s in chosen for place in s.places}
