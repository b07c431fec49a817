"""Which dimensions are frozen although slicing them commutes with the op."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fxprune.axes import is_frozen
from tests.rules.harness import Sample, plain_case, same, values_of


def subsets(items: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """All non-empty subsets, small ones first."""
    for count in range(1, len(items) + 1):
        yield from itertools.combinations(items, count)


def commutes(
    run: Callable[..., Any], values: Sequence[Tensor], dims: Sequence[tuple[int, int]], size: int
) -> bool:
    """True if selecting indices along `dims` (input, dimension) selects them in the outputs, too.

    A selection that leaves the outputs' shapes alone must not matter to them, or act like zeros. An
    op that refuses the smaller inputs does not commute.
    """
    generator = random.Random(0)
    full = [t for t in tree_leaves(run(*values)) if isinstance(t, Tensor)]
    choices = [[i for i in range(size) if i != out] for out in range(size)]
    choices += [sorted(generator.sample(range(size), max(1, size // 2))) for _ in range(2)]
    for kept in choices:
        index = torch.tensor(kept)
        smaller, zeroed = list(values), list(values)
        for place, dim in dims:
            smaller[place] = smaller[place].index_select(dim, index)
            hole = torch.ones(size, dtype=torch.bool)
            hole[index] = False
            zeroed[place] = zeroed[place].index_fill(dim, hole.nonzero()[:, 0], 0)
        try:
            got = [t for t in tree_leaves(run(*smaller)) if isinstance(t, Tensor)]
            masked = [t for t in tree_leaves(run(*zeroed)) if isinstance(t, Tensor)]
        except (RuntimeError, ValueError, IndexError):
            return False
        if not _follows(full, masked, got, index, size):
            return False
    return True


def _follows(
    full: list[Tensor], masked: list[Tensor], got: list[Tensor], index: Tensor, size: int
) -> bool:
    if len(full) != len(got):
        return False
    for old, zeroed, new in zip(full, masked, got, strict=True):
        if old.dim() != new.dim():
            return False
        expected = old
        for dim, (before, after) in enumerate(zip(old.shape, new.shape, strict=True)):
            if before != after:
                if before != size or after != len(index):
                    return False
                expected = expected.index_select(dim, index)
        if not same(expected, new) and not (old.shape == new.shape and same(zeroed, new)):
            return False
    return True


def over_frozen(sample: Sample) -> list[tuple[int, int]]:
    """The (input, dimension) pairs that are frozen although slicing them commutes with the op."""
    case, values = plain_case(sample), values_of(sample)
    layouts = case.analysis.propagation.layouts
    frozen: dict[int, list[tuple[int, int]]] = {}
    for place, name in enumerate(case.traced.meta["inputs"]):
        for dim, axis in enumerate(layouts.get(name, ())):
            if axis.size > 1 and is_frozen(axis):
                frozen.setdefault(axis.size, []).append((place, dim))
    found: set[tuple[int, int]] = set()
    for size, dims in frozen.items():
        for chosen in subsets(dims):
            if not set(chosen) <= found and commutes(sample.run, values, chosen, size):
                found |= set(chosen)
    return sorted(found)
