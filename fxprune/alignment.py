"""How the sizes of two lists of dimensions, or two divisions of one, line up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def cuts_of(sizes: Sequence[int]) -> list[int]:
    """Inner end positions of runs of the given sizes, each once."""
    position, total, cuts = 0, sum(sizes), set()
    for size in sizes:
        position += size
        cuts.add(position)
    return sorted(cuts - {0, total})


def lengths_of(cuts: Sequence[int], size: int) -> list[int]:
    """Lengths of the runs between cuts of an axis of the given size."""
    return [end - start for start, end in zip([0, *cuts], [*cuts, size], strict=True)]


def aligned_blocks(
    sources: Sequence[int], targets: Sequence[int]
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Smallest neighbouring blocks of dimensions with equal products (no size is 1)."""
    i = j = 0
    while i < len(sources):
        start_i, start_j = i, j
        source, target = sources[i], targets[j]
        i, j = i + 1, j + 1
        while source != target:
            if source < target:
                source, i = source * sources[i], i + 1
            else:
                target, j = target * targets[j], j + 1
        yield (start_i, i), (start_j, j)


def equal_ends(sources: Sequence[int], targets: Sequence[int]) -> tuple[int, int]:
    """How many of the first sizes are the same, and how many of the last.

    Of sizes that could be the same as others at either end neither counts.
    """
    if list(sources) == list(targets):
        return len(sources), 0
    least = min(len(sources), len(targets))
    first, last = (
        next((i for i, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), least)
        for x, y in ((sources, targets), (reversed(sources), reversed(targets)))
    )
    both = max(0, first + last - least)
    return first - both, last - both
