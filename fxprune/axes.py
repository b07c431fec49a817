"""The axis algebra: which dimensions of which tensors must keep the same indices.

An axis describes one dimension of one tensor. It is one of

* an `Atom`: a named index set of `size` units,
* a `Product` ``H*D``: what a reshape makes of neighbouring dimensions (row-major),
* a `Concat` ``A+B``: what ``cat`` makes, and what ``split`` and slices take apart.

The rules of calculation are in `fxprune.algebra`. Axes are solved by substitution: an atom that was
refined or unified is *bound* to what it stands for, and `find` follows the bindings. A *frozen*
atom carries the reason why it may not be pruned; freezing is contagious under `unify`.

Every index of an axis is a conjunction of units: index ``(h, d)`` of ``H*D`` survives iff ``h`` and
``d`` do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence


class Axis:
    """One dimension of one tensor. `bound` is what the axis was found to stand for."""

    __slots__ = ("all_frozen", "bound", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.bound: Axis | None = None
        self.all_frozen = False  # monotone cache of `is_frozen`


class Atom(Axis):
    """An index set of `size` units; frozen iff `reason` is set. `key` is its creation number."""

    __slots__ = ("key", "reason")

    def __init__(self, size: int, key: int, reason: str | None) -> None:
        super().__init__(size)
        self.key = key
        self.reason = reason

    def __repr__(self) -> str:
        return f"a{self.key}[{self.size}]" + ("!" if self.reason else "")


class Product(Axis):
    """Row-major product of `factors`; the last factor moves fastest."""

    __slots__ = ("factors",)

    def __init__(self, factors: Sequence[Axis]) -> None:
        super().__init__(math.prod(f.size for f in factors))
        self.factors = tuple(factors)

    def __repr__(self) -> str:
        return "(" + "*".join(map(repr, factors_of(self))) + ")"


class Concat(Axis):
    """Concatenation of `segments`."""

    __slots__ = ("segments",)

    def __init__(self, segments: Sequence[Axis]) -> None:
        super().__init__(sum(s.size for s in segments))
        self.segments = tuple(segments)

    def __repr__(self) -> str:
        return "(" + "+".join(map(repr, segments_of(self))) + ")"


def find(axis: Axis) -> Axis:
    """What `axis` stands for: an unbound atom, product or concatenation."""
    root = axis
    while root.bound is not None:
        root = root.bound
    while axis.bound is not None and axis.bound is not root:
        axis.bound, axis = root, axis.bound
    return root


def factors_of(axis: Axis) -> tuple[Axis, ...]:
    """The resolved factors of `axis`, none of them a product or frozen of size 1."""
    axis = find(axis)
    if not isinstance(axis, Product):
        return () if _is_frozen_unit(axis) else (axis,)
    flat: list[Axis] = []
    stack = list(reversed(axis.factors))
    while stack:
        factor = find(stack.pop())
        if isinstance(factor, Product):
            stack.extend(reversed(factor.factors))
        elif not _is_frozen_unit(factor):
            flat.append(factor)
    axis.factors = tuple(flat) or axis.factors  # path compression; a frozen unit keeps its reason
    return tuple(flat)


def _is_frozen_unit(axis: Axis) -> bool:
    return isinstance(axis, Atom) and axis.size == 1 and axis.reason is not None


def segments_of(axis: Axis) -> tuple[Axis, ...]:
    """The resolved segments of `axis`, none of them a concatenation, none empty."""
    axis = find(axis)
    if not isinstance(axis, Concat):
        return (axis,) if axis.size else ()
    if all(s.bound is None and not isinstance(s, Concat) and s.size for s in axis.segments):
        return axis.segments
    flat: list[Axis] = []
    stack = list(reversed(axis.segments))
    while stack:
        segment = find(stack.pop())
        if isinstance(segment, Concat):
            stack.extend(reversed(segment.segments))
        elif segment.size:
            flat.append(segment)
    axis.segments = tuple(flat)  # path compression
    return axis.segments


def leaves(axis: Axis) -> Iterator[Atom]:
    """The atoms that `axis` consists of, in order, repetitions included."""
    stack = [axis]
    while stack:
        axis = find(stack.pop())
        if isinstance(axis, Atom):
            yield axis
        elif isinstance(axis, Product):
            stack.extend(reversed(axis.factors))
        elif isinstance(axis, Concat):
            stack.extend(reversed(axis.segments))


def is_frozen(axis: Axis) -> bool:
    """True iff every atom of `axis` is frozen."""
    axis = find(axis)
    if not axis.all_frozen:
        axis.all_frozen = all(atom.reason is not None for atom in leaves(axis))
    return axis.all_frozen


def contains(axis: Axis, atom: Atom) -> bool:
    """The occurs check: an axis contains an atom of its size only through parts of that size."""
    stack = [axis]
    while stack:
        part = find(stack.pop())
        if part is atom:
            return True
        parts: Iterable[Axis] = ()
        if isinstance(part, Product):
            parts = part.factors
        elif isinstance(part, Concat):
            parts = segments_of(part)
        stack.extend(p for p in parts if p.size == atom.size)
    return False
