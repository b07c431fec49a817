"""The rules of calculation on axes: refine, take apart, put together, unify.

`Algebra.unify` says that two axes keep the same indices; `Algebra.factor` and `Algebra.segment`
refine an atom where a program takes it apart. All operations are sound: whatever sets of units are
removed from the atoms, axes that were unified lose the same indices. Where two expressions have no
common refinement, both are taken apart into single units and unified index by index.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fxprune.alignment import aligned_blocks, cuts_of, equal_ends, lengths_of
from fxprune.axes import (
    Atom,
    Axis,
    Concat,
    Product,
    contains,
    factors_of,
    find,
    is_frozen,
    leaves,
    segments_of,
)

EXPLODE_LIMIT = 1 << 15
"""Axes longer than this are frozen rather than taken apart into single units."""


def _one_of(factors: Sequence[Axis]) -> Axis | None:
    return factors[0] if len(factors) == 1 else None


class Algebra:
    """Creates axes and relates them.

    `site` is what the relations are attributed to; `log` holds ``(site, atom, axis)``: at that site
    the atom was found to stand for the axis.
    """

    def __init__(self) -> None:
        self.site: Any = None
        self.log: list[tuple[Any, Atom, Axis]] = []
        self._atoms = 0
        self.one = self.constant(1, "size 1: nothing to remove")

    # -- making axes -------------------------------------------------------------------------------

    def atom(self, size: int, reason: str | None = None) -> Atom:
        """A fresh atom, frozen if a reason is given."""
        self._atoms += 1
        return Atom(size, self._atoms, reason)

    def constant(self, size: int, reason: str) -> Atom:
        """A fresh frozen atom."""
        return self.atom(size, reason)

    def product(self, factors: Sequence[Axis]) -> Axis:
        """The row-major product of `factors`; without any, the axis of size 1."""
        flat = [f for axis in factors for f in factors_of(axis)]
        if not flat:
            return self.one
        return _one_of(flat) or Product(flat)

    def concat(self, segments: Sequence[Axis]) -> Axis:
        """The concatenation of `segments`."""
        flat = [s for axis in segments for s in segments_of(axis)]
        single = _one_of(flat)
        if single is not None:
            return single
        if flat and all(is_frozen(s) for s in flat):
            return self.constant(sum(s.size for s in flat), next(leaves(flat[0])).reason or "")
        return Concat(flat)

    # -- freezing ----------------------------------------------------------------------------------

    def freeze(self, axis: Axis, reason: str) -> None:
        """Freeze every atom of `axis` that is not frozen yet."""
        if not is_frozen(axis):
            for atom in leaves(axis):
                if atom.reason is None:
                    atom.reason = reason

    # -- refining ----------------------------------------------------------------------------------

    def _bind(self, atom: Atom, axis: Axis) -> None:
        self.log.append((self.site, atom, axis))
        atom.bound = axis

    def _refine(self, atom: Atom, sizes: Sequence[int]) -> list[Axis]:
        return [self.atom(size, atom.reason) for size in sizes]

    def segment(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """Take `axis` apart into neighbouring runs of the given sizes. Couples nothing."""
        if sum(sizes) != axis.size:
            raise ValueError(f"sizes {list(sizes)} do not add up to {axis.size}")
        axis = find(axis)
        if sum(size > 0 for size in sizes) <= 1:
            return [axis if size else Concat(()) for size in sizes]
        if isinstance(axis, Atom):
            if axis.reason is not None:
                return self._refine(axis, sizes)
            parts = self._refine(axis, [size for size in sizes if size])
            self._bind(axis, Concat(parts))
            rest = iter(parts)
            return [next(rest) if size else Concat(()) for size in sizes]
        if isinstance(axis, Product):
            return self._gather_runs(self._cut_product(axis, cuts_of(sizes)), sizes)
        return self._gather_runs(self._cut_segments(segments_of(axis), cuts_of(sizes)), sizes)

    def _gather_runs(self, pieces: Iterable[Axis], sizes: Sequence[int]) -> list[Axis]:
        """Collect pieces, which end wherever a size ends, into one axis per size."""
        queue = iter(pieces)
        runs: list[Axis] = []
        for size in sizes:
            run: list[Axis] = []
            missing = size
            while missing:
                run.append(next(queue))
                missing -= run[-1].size
            runs.append(self.concat(run))
        return runs

    def _cut_segments(self, segments: Sequence[Axis], cuts: Sequence[int]) -> Iterator[Axis]:
        """Cut a concatenation at the given positions (ascending)."""
        start, position = 0, 0
        for segment in segments:
            end = start + segment.size
            inside: list[int] = []
            while position < len(cuts) and cuts[position] < end:
                if cuts[position] > start:
                    inside.append(cuts[position] - start)
                position += 1
            if inside:
                yield from self.segment(segment, lengths_of(inside, segment.size))
            else:
                yield segment
            start = end

    def _cut_product(self, axis: Product, cuts: Sequence[int]) -> Iterator[Axis]:
        """Cut ``f*rest``: ``f`` between rows; inside a row, ``u*rest`` is ``u*(r1 + r2)``."""
        major, *minor = factors_of(axis)
        rest = self.product(minor)
        row_cuts = sorted(
            {r for c in cuts for r in (c // rest.size, -(-c // rest.size))} - {0, major.size}
        )
        inside: dict[int, list[int]] = {}
        for cut in cuts:
            if cut % rest.size:
                inside.setdefault(cut // rest.size, []).append(cut % rest.size)
        row = 0
        for rows in self.segment(major, lengths_of(row_cuts, major.size)):
            if row in inside:
                for part in self.segment(rest, lengths_of(inside[row], rest.size)):
                    yield self.product([rows, part])
            else:
                yield self.product([rows, rest])
            row += rows.size

    def factor(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """The factors of the given sizes that `axis` is a product of; explodes where need be."""
        if math.prod(sizes) != axis.size:
            raise ValueError(f"sizes {list(sizes)} do not multiply to {axis.size}")
        return self._factor_run([axis], sizes)

    def _factor_run(self, axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
        """The product of `axes`, as axes of the given sizes."""
        wanted = [size for size in sizes if size != 1]
        found = self._regroup([f for axis in axes for f in factors_of(axis)], wanted)
        if found is None:
            whole = self.product(axes)
            frozen = is_frozen(whole)
            reason = next(leaves(whole)).reason if frozen else None
            found = [self.atom(size, reason) for size in wanted]
            if not frozen:
                self.unify(whole, self.product(found))
        rest = iter(found)
        return [self.one if size == 1 else next(rest) for size in sizes]

    def _regroup(self, factors: Sequence[Axis], sizes: Sequence[int]) -> list[Axis] | None:
        """Group `factors` into products of the given sizes, splitting atoms; None on conflict."""
        queue = list(reversed(factors))
        groups: list[list[Axis]] = []
        for size in sizes:
            group: list[Axis] = []
            missing = size
            while missing > 1:
                factor = find(queue.pop())
                if factor.size > missing:
                    parts = self._split_factor(factor, missing)
                    if parts is None:
                        return None
                    factor, rest = parts
                    queue.append(rest)
                elif missing % factor.size:
                    common = math.gcd(missing, factor.size)
                    parts = self._split_factor(factor, common) if common > 1 else None
                    if parts is None:
                        return None
                    factor, rest = parts
                    queue.append(rest)
                group.append(factor)
                missing //= factor.size
            groups.append(group)
        if groups:
            groups[-1].extend(reversed(queue))  # only units are left: they condition the last group
        elif queue:
            return None
        return [self.product(group) for group in groups]

    def _split_factor(self, factor: Axis, major: int) -> tuple[Axis, Axis] | None:
        if factor.size % major or not isinstance(factor, Atom):
            return None
        parts = self._refine(factor, [major, factor.size // major])
        if factor.reason is None:
            self._bind(factor, Product(parts))
        return parts[0], parts[1]

    def view(self, axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
        """The axes of ``tensor.view(sizes)`` for a tensor with the given axes."""
        for axis in axes:
            if axis.size == 1:  # a single unit that becomes invisible conditions the whole tensor
                self.freeze(axis, "a view drops this dimension of size 1")
        if math.prod(sizes) == 0:
            return self._view_of_nothing(axes, sizes)
        sources = [axis for axis in axes if axis.size != 1]
        targets = [size for size in sizes if size != 1]
        result: list[Axis] = []
        for i, j in aligned_blocks([axis.size for axis in sources], targets):
            block, wanted = sources[i[0] : i[1]], targets[j[0] : j[1]]
            same = len(block) == len(wanted) == 1
            result.extend(block if same else self._factor_run(block, wanted))
        rest = iter(result)
        return [self.one if size == 1 else next(rest) for size in sizes]

    def _view_of_nothing(self, axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
        """`view` of a tensor without entries, which could tell what becomes of a dimension.

        Dimensions at either end that keep their sizes stay, unless others could be meant.
        """
        first, last = equal_ends([axis.size for axis in axes], sizes)
        old, new = axes[first : len(axes) - last], sizes[first : len(sizes) - last]
        if math.prod(new) and math.prod(axis.size for axis in old) == math.prod(new):
            between = self.view(old, new)
        else:
            for axis in old:
                self.freeze(axis, "a view of an empty tensor")
            between = [self.constant(size, "empty tensor") for size in new]
        return [*axes[:first], *between, *axes[len(axes) - last :]]

    def units(self, axis: Axis) -> list[Axis]:
        """`axis` index by index: each an atom of size 1 or a product of such atoms."""
        axis = find(axis)
        if isinstance(axis, Atom):
            return self.segment(axis, [1] * axis.size) if axis.size > 1 else [axis]
        if isinstance(axis, Concat):
            return [unit for segment in segments_of(axis) for unit in self.units(segment)]
        result: list[Axis] = [self.one]
        for factor in factors_of(axis):
            minor = self.units(factor)
            result = [self.product([major, unit]) for major in result for unit in minor]
        return result

    def gather(self, axis: Axis, indices: Sequence[int]) -> Axis:
        """The axis of ``index_select(dim, indices)``; neighbouring indices stay together."""
        if is_frozen(axis) or not indices:
            reason = next((atom.reason for atom in leaves(axis)), None)
            return self.constant(len(indices), reason or "empty selection")
        runs: list[list[int]] = []
        for index in indices:
            if runs and runs[-1][1] == index:
                runs[-1][1] = index + 1
            else:
                runs.append([index, index + 1])
        cuts = sorted({end for run in runs for end in run} - {0, axis.size})
        starts = [0, *cuts]
        at = dict(zip(starts, self.segment(axis, lengths_of(cuts, axis.size)), strict=True))
        following = dict(zip(starts, [*cuts, axis.size], strict=True))
        pieces: list[Axis] = []
        for start, end in runs:
            while start < end:
                pieces.append(at[start])
                start = following[start]
        return self.concat(pieces)

    # -- unifying ----------------------------------------------------------------------------------

    def unify(self, left: Axis, right: Axis) -> Axis:
        """Let two axes of one size keep the same indices; returns what both stand for."""
        work = [(left, right)]
        while work:
            x, y = work.pop()
            x, y = find(x), find(y)
            if x.size != y.size:
                raise ValueError(f"cannot unify axes of sizes {x.size} and {y.size}")
            if x is y or x.size == 0:
                continue
            if isinstance(y, Atom):
                x, y = y, x
            if isinstance(x, Atom):
                self._unify_atom(x, y)
            else:
                work.extend(self._unify_compounds(x, y))
        return find(left)

    def _unify_atom(self, atom: Atom, axis: Axis) -> None:
        if isinstance(axis, Atom):
            older, newer = (atom, axis) if atom.key < axis.key else (axis, atom)
            older.reason = older.reason or newer.reason
            self._bind(newer, older)
            return
        if atom.reason is not None:
            self.freeze(axis, atom.reason)
        if contains(axis, atom):  # x = u*x: the unit u conditions itself; x may be a unit, too
            for leaf in leaves(axis):
                if leaf.size == 1 and leaf is not atom:
                    self.freeze(leaf, "this unit would condition itself")
        else:
            self._bind(atom, axis)

    def _unify_compounds(self, x: Axis, y: Axis) -> list[tuple[Axis, Axis]]:
        """Pairs whose unification makes `x` and `y` equal."""
        if is_frozen(x) or is_frozen(y):
            frozen, other = (x, y) if is_frozen(x) else (y, x)
            self.freeze(other, next(leaves(frozen)).reason or "")
            if [f.size for f in factors_of(x)] != [f.size for f in factors_of(y)]:
                return []
        if isinstance(x, Concat) or isinstance(y, Concat):
            whole, other = (x, y) if isinstance(x, Concat) else (y, x)
            segments = segments_of(whole)
            parts = self.segment(other, [s.size for s in segments])
            return list(zip(segments, parts, strict=True))
        pairs = self._match_factors(list(factors_of(x)), list(factors_of(y)))
        if pairs is not None:
            return pairs
        if x.size > EXPLODE_LIMIT:
            reason = f"two views of {x.size} indices have no common refinement"
            self.freeze(x, reason)
            self.freeze(y, reason)
            return []
        return list(zip(self.units(x), self.units(y), strict=True))

    def _match_factors(self, xs: list[Axis], ys: list[Axis]) -> list[tuple[Axis, Axis]] | None:
        """Pair two factor lists from the major end, splitting at boundaries; None on conflict."""
        pairs: list[tuple[Axis, Axis]] = []
        xs.reverse()
        ys.reverse()
        while xs and ys:
            if xs[-1].size == ys[-1].size:
                pairs.append((xs.pop(), ys.pop()))
                continue
            longer, shorter = (xs, ys) if xs[-1].size > ys[-1].size else (ys, xs)
            part = find(longer.pop())
            if isinstance(part, Product):
                longer.extend(reversed(factors_of(part)))
                continue
            size = shorter[-1].size
            split = self._condition(part) if size == 1 else self._split_factor(part, size)
            if split is None:
                return None
            longer.extend(reversed(split))
        for unit in (*xs, *ys):  # a unit that only one side is conditioned on
            self.freeze(unit, "only one of two equal dimensions is conditioned on this unit")
        return pairs

    def _condition(self, factor: Axis) -> tuple[Axis, Axis] | None:
        """`factor` as ``u*rest``: all of it vanishes with the unit ``u``."""
        if not isinstance(factor, Atom):
            return None
        unit, rest = self._refine(factor, [1, factor.size])
        if factor.reason is None:
            self._bind(factor, Product([unit, rest]))
        return unit, rest
