"""Which atoms may choose different units per head or per convolution group.

Atom D may choose its units separately for each index of atom H (its *context*) iff every tensor
entry that depends on D also depends on exactly one index of H, and no op mixes different indices of
H while D stands by. Expanding each tensor's axes into monomials (one factor list per combination of
segments):

(a) in every monomial that contains D, both D and H occur exactly once, and
(b) no op contracts, reduces, normalises or scans over H while D is a spectator, and none contracts
    D for all pairs of indices of H.

Rows that data assigns to the indices of H (see `fxprune.lookups`) stand for H.

Contexts only shrink, so one pass over parameters and ops intersects sets.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence, Set
from typing import TypeAlias

from torch.utils._pytree import tree_leaves

from fxprune.axes import Atom, Axis, Concat, Product, factors_of, find, leaves, segments_of
from fxprune.lookups import followed
from fxprune.propagate import Propagation, Record, TensorAxes
from fxprune.rules.base import Kind, Layout

Path: TypeAlias = tuple[Atom, tuple[Atom, ...]]
"""An occurrence of an atom in a dimension, with the atoms that always stand beside it."""

_RENUMBERED = frozenset({"aten::roll", "aten::index", "aten::index_select"})
"""Ops with an index of their own, which can be renumbered only if it does not depend on a context
in another dimension."""


def contexts(propagation: Propagation) -> Mapping[Atom, frozenset[Atom]]:
    """For each free atom of the parameters and buffers, the others of them it may depend on."""
    narrowing = _Narrowing(propagation)
    for node, value in propagation.nodes.items():
        for leaf in tree_leaves(value) if narrowing.found else ():
            if isinstance(leaf, TensorAxes):  # nobody could tell what stays of an output by data
                axes = leaf.axes if node.op == "output" else narrowing.standing(leaf.axes)
                narrowing.by_layout(axes, True)
    for record in propagation.records if narrowing.found else ():
        narrowing.by_record(record)
    return narrowing.found


def _beside(layouts: Iterable[Layout], nesting: _Nesting) -> dict[Atom, frozenset[Atom]]:
    """The atoms that are companions of an atom in all of these tensors, where there are any."""
    found: dict[Atom, frozenset[Atom]] = {}
    for layout in {tuple(id(find(axis)) for axis in layout): layout for layout in layouts}.values():
        for atom, companions in nesting.companions(layout, True).items():
            found[atom] = found.get(atom, companions) & companions
    return {atom: companions for atom, companions in found.items() if companions}


class _Narrowing:
    """Takes away, layout by layout and op by op, what an atom may not depend on.

    found   the atoms that may still depend on something, and on what
    """

    def __init__(self, propagation: Propagation) -> None:
        self._nesting = _Nesting()
        self.found = _beside(propagation.layouts.values(), self._nesting)
        self._tables: Mapping[Axis, Axis] = dict(followed(propagation.records))
        self._known: dict[tuple[bool, int], Layout] = {}  # holds them, so that ids stay theirs
        self._seen: set[tuple[bool, tuple[int, ...]]] = set()

    def standing(self, layout: Layout) -> Layout:
        """The layout with the axes that tables stand for, where a lookup reads one."""
        if not self._tables:
            return layout
        return tuple(self._tables.get(find(axis), axis) for axis in layout)

    def atoms(self, layout: Iterable[Axis]) -> set[Atom]:
        """The atoms of some dimensions."""
        return {atom for axis in layout for atom in self._nesting.parts(axis)}

    def narrow(self, atom: Atom, companions: Set[Atom]) -> None:
        """Leave an atom only these companions."""
        left = self.found[atom] & companions
        if left:
            self.found[atom] = left
        else:
            del self.found[atom]

    def by_layout(self, layout: Layout, ordered: bool) -> None:
        """By how the dimensions of one tensor nest; with `ordered` by their order, too."""
        if (ordered, id(layout)) in self._known:
            return
        self._known[ordered, id(layout)] = layout
        parts = map(self._nesting.parts, layout)
        if all(self.found.keys().isdisjoint(atoms) for atoms in parts):
            return
        key = ordered, tuple(id(find(axis)) for axis in layout)
        if key not in self._seen:
            self._seen.add(key)
            for atom, companions in self._nesting.companions(layout, ordered, self.found).items():
                self.narrow(atom, companions)

    def by_record(self, record: Record) -> None:
        """By what an op reads and makes, and what it sums over or renumbers.

        Masked interpretation slices the operands of a statistic as parameters are sliced, which
        keeps their order. A batch norm's may come in any: no channel meets another in it.
        """
        renumbers = record.call.name in _RENUMBERED
        ordered = record.effect.kind is Kind.STATISTIC or renumbers
        layouts = [*(layout for _, layout in record.inputs), *record.effect.outputs]
        for layout in layouts:
            self.by_layout(self.standing(layout), ordered)
        over = self.atoms(self.standing(record.effect.over))
        if over:
            around = self.atoms(axis for layout in layouts for axis in layout)
            for atom in (around - over) & self.found.keys():
                self.narrow(atom, self.found[atom] - over)
            summed = over & self.found.keys()
            paired = self._repeated(record.effect.outputs) if summed else frozenset()
            for atom in summed:
                self.narrow(atom, self.found[atom] - paired)
        if renumbers:
            for axis in record.moved:
                atoms = self.atoms([axis])
                for atom in atoms & self.found.keys():
                    self.narrow(atom, atoms)

    def _repeated(self, layouts: Iterable[Layout]) -> set[Atom]:
        """Atoms in two dimensions of a result: it pairs their indices, each with its own choice."""
        repeated: set[Atom] = set()
        for layout in layouts:
            seen: set[Atom] = set()
            for axis in self.standing(layout):
                atoms = self.atoms([axis])
                repeated |= atoms & seen
                seen |= atoms
        return repeated


class _Nesting:
    """How the atoms of dimensions nest, worked out once for each axis.

    It holds the axes, so that their identities stay theirs.
    """

    def __init__(self) -> None:
        self._parts: dict[int, tuple[Axis, Mapping[Atom, int]]] = {}
        self._paths: dict[tuple[bool, int], tuple[Axis, Sequence[Path]]] = {}

    def parts(self, axis: Axis) -> Mapping[Atom, int]:
        """A dimension's atoms: 1 where each index has exactly one of the atom's, otherwise 2."""
        axis = find(axis)
        known = self._parts.get(id(axis))
        if known is None:
            always = _always(axis)
            parts = {atom: 1 if atom in always else 2 for atom in leaves(axis)}
            known = self._parts[id(axis)] = axis, parts
        return known[1]

    def paths(self, axis: Axis, ordered: bool) -> Sequence[Path]:
        """`_paths`, of the free atoms with a choice."""
        axis = find(axis)
        known = self._paths.get((ordered, id(axis)))
        if known is None:
            paths = [
                (atom, path)
                for atom, path in _paths(axis, ordered)
                if atom.reason is None and atom.size > 1
            ]
            known = self._paths[ordered, id(axis)] = axis, paths
        return known[1]

    def companions(
        self, layout: Layout, ordered: bool, wanted: Container[Atom] | None = None
    ) -> dict[Atom, frozenset[Atom]]:
        """For the wanted free atoms of a tensor, the atoms that are once in every monomial with it.

        In a tensor that is sliced, or whose indices are numbered (`ordered`), they must also stand
        before it where both share a dimension. What an op of several steps makes on the way, as
        einsum does when it merges ``d, h``, is neither.
        """
        result: dict[Atom, frozenset[Atom]] = {}
        for position, axis in enumerate(layout):
            paths = self.paths(axis, ordered)
            paths = paths if wanted is None else [p for p in paths if p[0] in wanted]
            if not paths:
                continue
            around: dict[Atom, int] = {}
            for p, other in enumerate(layout):
                if p != position:
                    for companion, count in self.parts(other).items():
                        around[companion] = around.get(companion, 0) + count
            for atom, path in paths:
                counts = dict(around)
                for companion in path:
                    counts[companion] = counts.get(companion, 0) + 1
                # An atom that occurs twice itself has no companion.
                single = [] if atom in counts else [c for c, n in counts.items() if n == 1]
                once = frozenset(c for c in single if c.size > 1)
                result[atom] = result.get(atom, once) & once
        return result


def _always(axis: Axis) -> frozenset[Atom]:
    """Atoms that occur exactly once in every segment of one dimension."""
    axis = find(axis)
    if isinstance(axis, Concat):
        parts = [_always(segment) for segment in segments_of(axis)]
        return frozenset.intersection(*parts) if parts else frozenset()
    if isinstance(axis, Product):
        parts = [_always(factor) for factor in factors_of(axis)]
        everything = [atom for part in parts for atom in part]
        return frozenset(a for a in everything if everything.count(a) == 1)
    return frozenset(leaves(axis))


def _paths(axis: Axis, ordered: bool) -> list[Path]:
    """Each occurrence of an atom in a resolved dimension, with the atoms always beside it."""
    if isinstance(axis, Concat):
        return [entry for segment in segments_of(axis) for entry in _paths(segment, ordered)]
    if isinstance(axis, Product):
        factors = factors_of(axis)
        always = [tuple(_always(factor)) for factor in factors]
        anywhere = [set(leaves(factor)) for factor in factors]
        entries: list[Path] = []
        for position, factor in enumerate(factors):
            beside: list[Atom] = []
            for p in range(len(factors)):
                if p != position:
                    # Behind what depends on it, a context is as bad as twice.
                    beside.extend(always[p] * (2 if ordered and p > position else 1))
                    partial = anywhere[p] - set(always[p])
                    beside.extend(a for a in partial for _ in range(2))
            entries += [(atom, path + tuple(beside)) for atom, path in _paths(factor, ordered)]
        return entries
    return [(atom, ()) for atom in leaves(axis)]
