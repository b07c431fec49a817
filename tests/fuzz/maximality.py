"""Brute force on tiny programs: is any coupling of the analyzer's not needed?

A *removal* is a set of slices (parameter, dimension, index) that leaves at least one index of each
dimension. It is *exact* if the program runs on the parameters without those slices and returns, for
random weights and inputs, what it returns with the slices set to zero. Every inclusion-minimal
exact removal is found by trying all of them, and must be what some plan over the analyzer's groups
removes. The share that no plan can express is the *gap*: every group keeps a unit, so a unit that
is the only one of its kind stays although others are left in its dimension; nothing else may be
in it.

``python -m tests.fuzz.maximality --examples 200`` prints the gap and what it consists of.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

import fxprune
from fxprune import Analysis, Group, Member
from fxprune.axes import leaves
from fxprune.grouping import make_members
from fxprune.unit_maps import UnitMaps
from tests.fuzz import reference
from tests.fuzz.case import trace
from tests.fuzz.program import Program
from tests.fuzz.sliceable import ROWS, sliceable_program

Place = tuple[str, int]
Removal = frozenset[tuple[str, int, int]]

TOLERANCE = 1e-9
MOST_COUNTS = 20_000
MOST_REMOVALS = 3_000


class TooLarge(Exception):
    """Too many removals to try."""


@dataclass
class BruteForce:
    """All minimal exact removals of a program."""

    program: Program

    def __post_init__(self) -> None:
        self.models = [self.program.build(seed) for seed in (0, 1)]
        self.inputs = [self.program.example(3, seed) for seed in (0, 1)]
        self.states = [reference.tensors_of(model) for model in self.models]
        self.sizes: dict[Place, int] = {
            (name, dim): size
            for name, tensor in self.states[0].items()
            for dim, size in enumerate(tensor.shape)
            if size > 1
        }

    def minimal(self) -> list[Removal]:
        """The minimal exact removals. Raises TooLarge if there are too many to try."""
        found: list[Removal] = []
        for counts in self._runnable():
            for removal in self._removals(counts):
                if not any(known <= removal for known in found) and self.exact(removal):
                    found.append(removal)
        return found

    def _runnable(self) -> list[Mapping[Place, int]]:
        """How many indices may go from each dimension for the program to run, fewest first."""
        if math.prod(self.sizes.values()) > MOST_COUNTS:
            raise TooLarge(f"{math.prod(self.sizes.values())} ways to take indices away")
        shape = self._output(0, self.states[0]).shape
        runnable: list[Mapping[Place, int]] = []
        for counts in itertools.product(*(range(size) for size in self.sizes.values())):
            taken = {place: n for place, n in zip(self.sizes, counts, strict=True) if n}
            if taken and self._runs(taken, shape):
                runnable.append(taken)
        return sorted(runnable, key=lambda taken: sum(taken.values()))

    def _runs(self, taken: Mapping[Place, int], shape: torch.Size) -> bool:
        state = dict(self.states[0])
        for (name, dim), count in taken.items():
            state[name] = state[name].narrow(dim, 0, state[name].shape[dim] - count)
        try:
            return self._output(0, state).shape == shape
        except (RuntimeError, ValueError, IndexError):
            return False

    def _removals(self, counts: Mapping[Place, int]) -> Iterator[Removal]:
        choices = [itertools.combinations(range(self.sizes[p]), n) for p, n in counts.items()]
        number = math.prod(math.comb(self.sizes[place], n) for place, n in counts.items())
        if number > MOST_REMOVALS:
            raise TooLarge(f"{number} removals of the same numbers of indices")
        for chosen in itertools.product(*choices):
            yield frozenset(
                (*place, i) for place, some in zip(counts, chosen, strict=True) for i in some
            )

    def exact(self, removal: Removal) -> bool:
        """True if slicing gives what zeroing gives, for two sets of weights and inputs."""
        gone: dict[Place, list[int]] = {}
        for name, dim, index in removal:
            gone.setdefault((name, dim), []).append(index)
        for which, state in enumerate(self.states):
            sliced, zeroed = dict(state), dict(state)
            for (name, dim), indices in gone.items():
                kept = [i for i in range(self.sizes[name, dim]) if i not in indices]
                sliced[name] = sliced[name].index_select(dim, torch.tensor(kept))
                zeroed[name] = zeroed[name].index_fill(dim, torch.tensor(indices), 0)
            try:
                actual = self._output(which, sliced)
            except (RuntimeError, ValueError, IndexError):
                return False
            expected = self._output(which, zeroed)
            if actual.shape != expected.shape:
                return False
            if reference.relative_error([actual], [expected]) > TOLERANCE:
                return False
        return True

    def _output(self, which: int, state: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            result = functional_call(self.models[which], dict(state), self.inputs[which])
        assert isinstance(result, Tensor)
        return result


def expressible(
    groups: Sequence[Group], shapes: Mapping[str, Sequence[int]], removal: Removal
) -> bool:
    """True if taking whole units out of groups removes exactly these slices."""
    gone: dict[Place, set[int]] = {}
    for name, dim, index in removal:
        gone.setdefault((name, dim), set()).add(index)
    kept: dict[str, list[list[int]]] = {}
    for group in groups:
        rows = [
            {unit for unit in range(group.size) if not _loses(group, unit, context, gone)}
            for context in range(group.contexts)
        ]
        if len({len(row) for row in rows}) > 1:
            return False
        kept[group.name] = [sorted(row) for row in rows]
    planned, wanted = reference.masks(groups, kept, shapes), _masks(removal, shapes)
    return planned.keys() == wanted.keys() and all(
        np.array_equal(planned[name], wanted[name]) for name in wanted
    )


def _loses(group: Group, unit: int, context: int, gone: Mapping[Place, set[int]]) -> bool:
    """True if all indices that belong to a unit are gone."""
    for member in group.members:
        owned = member.unit == unit
        if member.context is not None and member.context_dim == member.dim:
            owned = owned & (member.context == context)
        if not set(owned.nonzero()[:, 0].tolist()) <= gone.get(
            (member.parameter, member.dim), set()
        ):
            return False
    return True


def lone_units(analysis: Analysis) -> list[Group]:
    """A group for each unit that is the only one of its kind, which the analyzer leaves out."""
    named = {group.name for group in (*analysis.groups, *analysis.grouped.frozen)}
    found: dict[str, list[Member]] = {}
    for name, layout in analysis.propagation.layouts.items():
        for dim, axis in enumerate(layout or ()):
            for atom in set(leaves(axis)):
                unit = analysis.grouped.units.get(atom.key, ("",))[0]
                if unit and unit not in named and atom.reason is None:
                    offsets = {atom.key: 0}
                    members = make_members(UnitMaps(), name, layout, dim, "producer", offsets, None)
                    found.setdefault(unit, []).extend(members)
    return [Group(name, 1, 1, tuple(members), True) for name, members in found.items()]


def _masks(removal: Removal, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    masks: dict[str, np.ndarray] = {}
    for name, dim, index in removal:
        mask = masks.setdefault(name, np.ones(shapes[name], dtype=bool))
        np.moveaxis(mask, dim, 0)[index] = False
    return masks


@dataclass
class Outcome:
    """A program's minimal exact removals, and those of them that no plan expresses.

    lone     they would take a unit that is the only one of its kind, so that its group is empty
    coupled  the others: the analyzer couples them with something else, or freezes them
    """

    program: Program
    analysis: Analysis
    minimal: list[Removal]
    lone: list[Removal]
    coupled: list[Removal]


def compare(program: Program) -> Outcome:
    """Brute force against the analyzer. Raises TooLarge."""
    minimal = BruteForce(program).minimal()
    model = program.build()
    analysis = fxprune.analyze(trace(model, program), strict=True)
    shapes = {name: tuple(t.shape) for name, t in reference.tensors_of(model).items()}
    missed = [r for r in minimal if not expressible(analysis.groups, shapes, r)]
    every = [*analysis.groups, *lone_units(analysis)]
    lone = [removal for removal in missed if expressible(every, shapes, removal)]
    coupled = [removal for removal in missed if removal not in lone]
    return Outcome(program, analysis, minimal, lone, coupled)


@dataclass
class Gap:
    """What brute force found over several programs."""

    rows: Counter[str] = field(default_factory=Counter)
    programs: int = 0
    large: int = 0
    minimal: int = 0
    lone: int = 0
    coupled: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        missed = self.lone + len(self.coupled)
        return (
            f"{self.programs} programs ({self.large} more are too large to try)\n"
            f"rows: {', '.join(f'{name} {n}' for name, n in self.rows.most_common())}\n"
            f"{self.minimal} minimal exact removals; no plan expresses {missed} of them: "
            f"{missed / max(self.minimal, 1):.1%}\n"
            f"  {self.lone} take the only unit of its kind, which would leave its group empty\n"
            f"  {len(self.coupled)} are coupled with something else, or frozen"
        )


def measure(seeds: Iterable[int], steps: int) -> Gap:
    """The gap over the programs of these seeds."""
    gap = Gap()
    for seed in seeds:
        try:
            outcome = compare(sliceable_program(seed, steps))
        except TooLarge:
            gap.large += 1
            continue
        gap.programs += 1
        gap.minimal += len(outcome.minimal)
        gap.lone += len(outcome.lone)
        gap.rows.update(set(outcome.program.ops))
        gap.coupled += [
            f"seed {seed} misses {sorted(removal)}\n{outcome.program!r}{outcome.analysis}"
            for removal in outcome.coupled
        ]
    return gap


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.maximality")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    gap = measure(range(given.seed, given.seed + given.examples), given.steps)
    print("\n\n".join(gap.coupled))
    print(gap)
    absent = sorted(ROWS.keys() - gap.rows.keys())
    print(f"rows that never occur: {', '.join(absent) or 'none'}")
    print(f"{time.process_time():.0f} s of processor time")


if __name__ == "__main__":
    main()
