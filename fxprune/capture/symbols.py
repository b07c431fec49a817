"""The dimensions of inputs that may vary, and the sizes at which to try them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fxprune.capture.inputs import Leaf


@dataclass(frozen=True)
class Symbol:
    """Input dimensions that vary together: (label, dim) pairs, their example size, trial sizes.

    `wide` trial sizes are far from the example and have no divisor in common with it: they show
    what only seems constant near the example. `trials` are for models that bear less: for images
    they differ from the example by multiples of `unit`, for sequences they are close.
    """

    places: tuple[tuple[str, int], ...]
    size: int
    wide: tuple[int, int]
    trials: tuple[int, int]
    unit: int

    @property
    def widely(self) -> Symbol:
        """The same dimensions, to be tried at the wide sizes alone."""
        return replace(self, trials=self.wide, unit=1)

    def with_unit(self, unit: int) -> Symbol:
        """The same dimensions with trial sizes that differ by multiples of another unit, if any."""
        first, second = (self.size + (s - self.size) // self.unit * unit for s in self.trials)
        return replace(self, trials=(first, second), unit=unit) if self.unit > 1 else self

    @property
    def elsewhere(self) -> tuple[int, int]:
        """Two more sizes that the model may bear, none of them a trial size."""
        first, second = self.trials
        return first + second - self.size, first + 2 * (second - self.size)

    def describe(self) -> str:
        """For messages: the dimension(s) by name."""
        return ", ".join(f"dimension {dim} of {label!r}" for label, dim in self.places)


# Increments of the two trial sizes. Their ratios all differ, so that a literal that follows a size
# follows only one. Of units, the larger one is odd: an even number of them is one of larger units.
_BATCH = (3, 37)
NEAR_BATCH = (3, 5)
_IMAGE = ((229, 509), (331, 617), (257, 719), (271, 523))
_UNITS = ((6, 15), (10, 19), (8, 23), (9, 17))
_FAR = ((37, 1511), (43, 1307), (53, 1811), (59, 1613), (61, 1213))
_NEAR = ((5, 11), (6, 13), (9, 20), (7, 16), (8, 19))


def _symbol(places: list[tuple[str, int]], size: int, order: int, image: bool) -> Symbol:
    def pair(table: tuple[tuple[int, int], ...], unit: int = 1) -> tuple[int, int]:
        first, second = table[order % len(table)]
        scale = unit * (1 + order // len(table))
        return size + first * scale, size + second * scale

    if places[0][1] == 0 and order == 0:
        batch = (size + _BATCH[0], size + _BATCH[1])
        return Symbol(tuple(places), size, batch, batch, 1)
    if image:
        return Symbol(tuple(places), size, pair(_IMAGE), pair(_UNITS, 32), 32)
    return Symbol(tuple(places), size, pair(_FAR), pair(_NEAR), 1)


def symbols(leaves: Sequence[Leaf]) -> list[Symbol]:
    """The candidate symbols: the batch first, then the other dimensions of the inputs.

    Dimensions with the same index and size in several inputs share a symbol. Channel dimensions of
    images (dimension 1 of floating tensors with 4 or more) and sizes of 1 other than the batch are
    left out.
    """
    places: dict[tuple[int, int], list[tuple[str, int]]] = {}
    images: set[tuple[int, int]] = set()
    for leaf in leaves:
        for dim, size in enumerate(leaf.tensor.shape):
            places.setdefault((dim, size), []).append((leaf.label, dim))
            if dim >= 2 and leaf.tensor.dim() >= 4 and leaf.tensor.is_floating_point():
                images.add((dim, size))
    ordered = sorted(places.items(), key=lambda item: item[0][0])
    return [
        _symbol(where, size, order, (dim, size) in images)
        for order, ((dim, size), where) in enumerate(ordered)
    ]


def is_channel(leaf: Leaf, dim: int) -> bool:
    """Whether a dimension is by convention one of channels, not worth a trial."""
    return dim == 1 and leaf.tensor.dim() >= 4 and leaf.tensor.is_floating_point()
