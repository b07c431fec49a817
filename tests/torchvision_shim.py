"""Let torchvision's models be imported where its compiled operators do not load.

A torchvision that was built for another torch leaves its operators unregistered, and importing it
then fails on the first of them. The models need none of them, so declaring the names is enough.
Import this module before torchvision: `from tests import torchvision_shim`.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

import torch

REGISTRATIONS = "_meta_registrations.py"


def registered_names(source: str) -> tuple[str, ...]:
    """The operators that `source` registers something for as "torchvision::<name>"."""
    prefix = "torchvision::"
    found = {
        node.value.removeprefix(prefix): None
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith(prefix)
    }
    return tuple(found)


def missing_names() -> tuple[str, ...]:
    """The operators that importing torchvision needs and that nothing has registered."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return ()
    source = (Path(spec.origin).parent / REGISTRATIONS).read_text(encoding="utf-8")
    return tuple(n for n in registered_names(source) if not hasattr(torch.ops.torchvision, n))


@functools.cache
def library() -> torch.library.Library:
    """The library object owns the declarations: they last as long as it does."""
    return torch.library.Library("torchvision", "FRAGMENT")


def load_compiled() -> bool:
    """Try the compiled operators first, as torchvision itself does; True if they loaded."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for path in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(path))
        except OSError:  # built for another torch: the case that this module is for
            return False
        return True
    return False


def declare_missing() -> tuple[str, ...]:
    """Declare what is missing, so that `import torchvision` works. Returns the names declared."""
    load_compiled()
    names = missing_names()
    for name in names:
        library().define(f"{name}(...) -> ...")
    return names


declare_missing()
