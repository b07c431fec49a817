"""Views of which the rewriter makes copies.

Every second channel of a tensor is a view of it; of channels that stay, it is a gather. What is
written to the one reaches the whole tensor, what is written to the other does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from fxprune.axes import Axis

if TYPE_CHECKING:
    from fxprune.propagate import Record


def written_to(records: Sequence[Record], storages: Mapping[int, int]) -> Iterator[Axis]:
    """The dimensions sliced by steps into views whose storage another node writes to afterwards."""
    for place, record in enumerate(records):
        call = record.call
        if call.name == "aten::slice" and call["step"] != 1:
            storage = storages[record.outputs[0]]
            later = (r for r in records[place + 1 :] if r.site is not record.site)
            if any(r.mutated == storage for r in later):
                axes = call.axes("self")
                yield axes[call.dim("dim", len(axes))]
