"""A saved folder that was changed, with digests that fit again: what the readers see then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fxprune.checkpoint import GRAPH, PLAN, TENSORS
from fxprune.checkpoint.files import file_digest, sealed


def reseal(folder: Path, change: Callable[[dict[str, Any]], object] | None = None) -> None:
    """Make graph.json fit the other files as they are, and itself after `change`."""
    content = json.loads((folder / GRAPH).read_text())
    del content["digest"]
    if change is not None:
        change(content)
    content["files"] = {name: file_digest(folder / name) for name in (TENSORS, PLAN)}
    (folder / GRAPH).write_text(sealed(content))
