"""The shape of the code: imports point one way, files and functions stay small."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "fxprune"

# A module may import from its own layer and from lower ones. Packages are listed by their name.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "collection"}),
    frozenset({"axes", "algebra", "alignment"}),
    frozenset(
        {
            "capture",
            "modules",
            "stand_ins",
            "meta",
            "casts",
            "discrepancy",
            "meta_kernels",
            "function_ops",
            "module_ops",
            "formulas",
            "walks",
            "assembly",
            "schemas",
        }
    ),
    frozenset({"rules"}),
    frozenset({"propagate", "lookups", "maskable", "contexts", "roles", "groups", "grouping"})
    | {"analysis", "coverage", "dynamic_sizes", "explanations", "plans", "selection", "slicing"}
    | {"composition", "last_units", "matching", "draws", "resizing", "unit_maps", "inputs"}
    | {"replay", "growing", "copies"},
    frozenset({"costs", "statistics"}),
    frozenset({"criteria", "allocation", "ranking", "schedules"}) | {"penalties"},
    frozenset({"rewriter", "interpretation", "equivalence"})
    | {"timing"}
    | {"compensation", "factorization", "masking", "migration"},
    frozenset({"drivers", "checkpoint", "interop", "reports"})
    | {"collapse", "factoring", "lottery", "regrowth", "rescoring", "rounds"},
    frozenset({"cli", "passes", "pictures", "__init__", "__main__"}),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# The dependencies that pyproject.toml declares, and the layers below which torch is not needed.
DEPENDENCIES = frozenset({"torch", "numpy", "safetensors", "tabulate", "tqdm"})
# Optional ones, where they may be imported.
OPTIONAL = {
    "pictures": frozenset({"matplotlib"}),
    "interop": frozenset({"onnxruntime", "onnxscript", "torch_pruning"}),
}
WITHOUT_TORCH = frozenset({"errors", "axes", "algebra", "alignment"})

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in FILES]
every_file = pytest.mark.parametrize("path", FILES, ids=IDS)


def component(path: Path) -> str:
    """The module or subpackage of fxprune that a file belongs to, as LAYERS names it."""
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """The module that a `from ... import` names, with leading dots resolved."""
    if node.level == 0:
        return node.module or ""
    package = path.relative_to(ROOT).parent.parts
    base = package[: len(package) - (node.level - 1)]
    return ".".join([*base, *([node.module] if node.module else [])])


def imported_modules(tree: ast.AST, path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top, in a function or for the type checker only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, path)
            if module == PACKAGE:  # `from fxprune import errors` imports a module, not a name
                yield from (f"{PACKAGE}.{alias.name}" for alias in node.names)
            else:
                yield module


def layer_of(module: str) -> int:
    """The layer of "fxprune" or "fxprune.<name>..."; a public name comes from `__init__`."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else "__init__"
    return RANK.get(name, RANK["__init__"])


def violations(source: str, path: Path) -> list[str]:
    """What a file imports that it must not."""
    own = component(path)
    found = []
    for module in imported_modules(ast.parse(source), path):
        top = module.partition(".")[0]
        if top == PACKAGE:
            if layer_of(module) > RANK[own]:
                found.append(f"{module}: layer {layer_of(module)}, above {own} in {RANK[own]}")
        elif top not in sys.stdlib_module_names | DEPENDENCIES | OPTIONAL.get(own, frozenset()):
            found.append(f"{module}: not a dependency of {PACKAGE}")
        elif own in WITHOUT_TORCH and top in DEPENDENCIES:
            found.append(f"{module}: {own} is pure Python")
    return found


def long_functions(source: str) -> list[str]:
    """The functions of a file that are too long, decorators and docstring included."""
    return [
        f"{node.name}, line {node.lineno}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]


def test_the_package_is_found() -> None:
    assert FILES, f"no Python file under {ROOT / PACKAGE}"


@every_file
def test_every_module_has_a_layer(path: Path) -> None:
    assert component(path) in RANK, f"{component(path)} is in no layer: add it to LAYERS"


@every_file
def test_imports_point_down(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8"), path) == []


@every_file
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@every_file
def test_functions_stay_small(path: Path) -> None:
    assert long_functions(path.read_text(encoding="utf-8")) == []


def test_no_module_has_the_name_of_a_public_function() -> None:
    package = importlib.import_module(PACKAGE)
    public = {name for name in dir(package) if not name.startswith("_")}
    names = {name for name in public if not isinstance(getattr(package, name), ModuleType)}
    names |= set(package.__all__)
    assert names, "the package has no public names"
    assert names & {component(path) for path in FILES} == set()


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("axes.py", "from fxprune.analysis import analyze", "fxprune.analysis: layer 4"),
        ("axes.py", "import fxprune", "fxprune: layer 9"),
        ("axes.py", "from fxprune import plans", "fxprune.plans: layer 4"),
        ("axes.py", "def f():\n    from . import drivers", "fxprune.drivers: layer 8"),
        ("rules/view.py", "from ..groups import Group", "fxprune.groups: layer 4"),
        ("rules/view.py", "from .registry import rule", None),
        ("plans.py", "if TYPE_CHECKING:\n    from .cli import main", "fxprune.cli: layer 9"),
        ("axes.py", "import torch.nn", "torch.nn: axes is pure Python"),
        ("plans.py", "import torch_pruning", "torch_pruning: not a dependency"),
        ("plans.py", "import json, torch\nfrom fxprune.axes import Axis", None),
    ],
)
def test_a_wrong_import_is_reported(file: str, source: str, expected: str | None) -> None:
    found = violations(source, ROOT / PACKAGE / file)
    if expected is None:
        assert found == []
    else:
        assert len(found) == 1
        assert expected in found[0]


def test_a_long_function_is_reported() -> None:
    body = "\n".join("    pass" for _ in range(MAX_FUNCTION_LINES))
    assert long_functions(f"def f():\n{body}") == [f"f, line 1: {MAX_FUNCTION_LINES + 1} lines"]
    assert long_functions("def f():\n    pass") == []
