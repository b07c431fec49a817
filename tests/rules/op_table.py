"""The op table: at least one sample per rule."""

from __future__ import annotations

from tests.rules.harness import Sample
from tests.rules.samples.contractions import CONTRACTIONS, CONVOLUTIONS
from tests.rules.samples.modules import MODULES, RECURRENT
from tests.rules.samples.moves import INDEXING, VIEWS
from tests.rules.samples.norms import NORMS, POOLS
from tests.rules.samples.pointwise import FACTORIES, POINTWISE, TAGGED
from tests.rules.samples.reductions import REDUCTIONS
from tests.rules.samples.vision import VISION

TABLE: tuple[Sample, ...] = (
    *POINTWISE,
    *TAGGED,
    *FACTORIES,
    *VIEWS,
    *INDEXING,
    *CONTRACTIONS,
    *CONVOLUTIONS,
    *REDUCTIONS,
    *NORMS,
    *POOLS,
    *RECURRENT,
    *MODULES,
    *VISION,
)


def identifier(position: int) -> str:
    """A test id: the position among all samples and the ops that it claims."""
    return f"{position}-{TABLE[position].ops.replace(' ', '+') or 'tagged'}"


IDS = [identifier(position) for position in range(len(TABLE))]
