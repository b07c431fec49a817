"""The groups of an analysis at inputs of other sizes than the example's.

The axes are propagated anew there, and what an op couples may be found in another way: a view that
folds 4 heads and 7 time steps into each other ties the heads together, one that folds 4 heads and
8 time steps takes them apart. So groups correspond by the parameters that they are dimensions of,
never by their names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Set
from types import MappingProxyType

from fxprune.analysis import Analysis
from fxprune.axes import Atom, Axis, factors_of, find, segments_of
from fxprune.contexts import contexts
from fxprune.errors import AnalysisError
from fxprune.grouping import Grouped
from fxprune.propagate import Propagation


def carried_over(analysis: Analysis, propagation: Propagation, names: Set[str]) -> Grouped:
    """The analysis's groups over the atoms of a propagation at other sizes.

    Parameters have the same sizes in both: their axes are compared part by part. Raises
    AnalysisError if what is coupled with one of the named groups depends on the sizes.
    """
    grouped = analysis.grouped
    pairs = tuple(
        dict.fromkeys(
            pair
            for name, layout in analysis.propagation.layouts.items()
            for mine, theirs in zip(layout, propagation.layouts[name], strict=True)
            for pair in _pairs(mine, theirs)
        )
    )
    units: dict[int, tuple[str, int]] = {}
    for old, new in pairs:
        if old.key in grouped.units:
            place = grouped.units[old.key]
            known = units.setdefault(new.key, place)
            if known != place:
                _refuse({known[0], place[0]} & names)
    atoms = dict(pairs)
    covered: Counter[str] = Counter()
    for old in atoms:
        covered[grouped.units.get(old.key, ("", 0))[0]] += old.size
    _refuse(g.name for g in grouped.free if g.name in names and covered[g.name] != g.size)
    own = _contexts(grouped, propagation, pairs)
    _refuse(name for name in grouped.contexts if name in names and name not in own)
    return Grouped(
        grouped.free,
        (),
        MappingProxyType(units),
        MappingProxyType(own),
        frozenset(atoms[atom] for atom in grouped.looked_up if atom in atoms),
    )


def _contexts(
    grouped: Grouped, propagation: Propagation, pairs: Iterable[tuple[Atom, Atom]]
) -> dict[str, Atom]:
    """The atoms whose indices are the groups' contexts, where they may be that at these sizes."""
    if not grouped.contexts:
        return {}
    allowed, atoms = contexts(propagation), dict(pairs)
    found = {n: atoms[context] for n, context in grouped.contexts.items() if context in atoms}
    for old, new in pairs:
        name, _ = grouped.units.get(old.key, ("", 0))
        if name in found and found[name] not in allowed.get(new, ()):
            del found[name]
    return found


def _pairs(mine: Axis, theirs: Axis) -> Iterator[tuple[Atom, Atom]]:
    """Corresponding atoms of two axes of one dimension."""
    mine, theirs = find(mine), find(theirs)
    if isinstance(mine, Atom) and isinstance(theirs, Atom):
        yield mine, theirs
        return
    for parts in (factors_of, segments_of):
        ours, other = parts(mine), parts(theirs)
        if (ours, other) == ((mine,), (theirs,)):
            continue  # neither is made of such parts
        if [a.size for a in ours] == [a.size for a in other]:
            for one, two in zip(ours, other, strict=True):
                yield from _pairs(one, two)
            return


def _refuse(names: Iterable[str]) -> None:
    """Raise AnalysisError for the first of the groups that differ, if there is one."""
    for name in names:
        raise AnalysisError(
            f"on inputs of other sizes than the example's, group {name!r} is coupled differently. "
            "Trace the model with an example like the data."
        )
