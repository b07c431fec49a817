"""The mutants: every change that an operator makes to the files that decide what is pruned.

A mutant is named after its file, function and operator, and numbered among those that share these:
``rules/view.py:cat:undo-call:1``. The sample goes by a digest of that name, so that it stays the
same when other functions change.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tests.mutants.operators import OPERATORS

PACKAGE = Path(__file__).parents[2] / "fxprune"
_MODULES = """axes algebra propagate contexts grouping groups unit_maps lookups maskable roles
    analysis selection slicing interpretation last_units dynamic_sizes growing module_ops
    function_ops""".split()
_FOLDERS = "rules rewriter plans".split()


def files_in(folders: Iterable[str]) -> list[str]:
    """The files of some folders of the package, "." for those beside them."""
    return sorted(
        str(p.relative_to(PACKAGE)) for name in folders for p in PACKAGE.glob(f"{name}/*.py")
    )


TARGETS: tuple[str, ...] = (*(f"{name}.py" for name in _MODULES), *files_in(_FOLDERS))

# What does not say what happens: messages, types, what is printed.
_SILENT_NODES = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)
_SILENT_FIELDS = frozenset({"annotation", "returns", "decorator_list", "bases"})
_SILENT_FUNCTIONS = frozenset({"__repr__", "__str__", "__hash__"})

_Path: TypeAlias = tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    line, start   where it is, and where the innermost function around it starts (0: none does)
    before, after the code that is changed and what stands in its place
    """

    file: str
    function: str
    operator: str
    number: int
    line: int
    start: int
    before: ast.AST
    after: ast.AST
    path: _Path

    @property
    def name(self) -> str:
        return f"{self.file}:{self.function or 'module'}:{self.operator}:{self.number}"

    @property
    def digest(self) -> str:
        """Orders mutants at random, always the same way."""
        return hashlib.sha256(self.name.encode()).hexdigest()

    @property
    def in_default(self) -> bool:
        """Whether it is in the default of a parameter, which is no part of the function's code."""
        return any(field in {"defaults", "kw_defaults"} for field, _ in self.path)

    def source(self) -> str:
        """The whole changed file."""
        tree = ast.parse((PACKAGE / self.file).read_text(encoding="utf-8"))
        return ast.unparse(self.changed(tree))

    def changed(self, tree: ast.Module) -> ast.Module:
        """The mutant of a tree, which stays as it is."""
        return _replaced(copy.deepcopy(tree), self.path, self.after)

    def difference(self) -> tuple[str, str]:
        """The first line that is changed, before and after."""
        before, after = ast.unparse(self.before), ast.unparse(self.after)
        for old, new in zip(before.split("\n"), after.split("\n"), strict=False):
            if old != new:
                return old.strip(), new.strip()
        return before, after


def mutants_of(file: str, source: str) -> Iterator[Mutant]:
    """All mutants of one file."""
    counts: Counter[tuple[str, str]] = Counter()
    for path, node, function, start in _places(ast.parse(source), (), "", 0):
        for operator, change in OPERATORS.items():
            for after in change(node):
                if ast.dump(after) == ast.dump(node):
                    continue
                counts[function, operator] += 1
                number = counts[function, operator]
                line = getattr(node, "lineno", start)
                yield Mutant(file, function, operator, number, line, start, node, after, path)


def functions_of(file: str) -> dict[int, str]:
    """The functions of a file by the line that they start on."""
    source = (PACKAGE / file).read_text(encoding="utf-8")
    places = _places(ast.parse(source), (), "", 0)
    return {start: name for _, node, name, start in places if isinstance(node, ast.FunctionDef)}


def _places(
    node: ast.AST, path: _Path, function: str, start: int
) -> Iterator[tuple[_Path, ast.AST, str, int]]:
    """The nodes that say what happens, each with its function and where that starts."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        if node.name in _SILENT_FUNCTIONS:
            return
        function = f"{function}.{node.name}" if function else node.name
        if isinstance(node, ast.FunctionDef):
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    yield path, node, function, start
    for field, value in ast.iter_fields(node):
        if field not in _SILENT_FIELDS:
            children = value if isinstance(value, list) else [value]
            for position, child in enumerate(children):
                if isinstance(child, ast.AST) and not isinstance(child, _SILENT_NODES):
                    step = (field, position if isinstance(value, list) else None)
                    yield from _places(child, (*path, step), function, start)


def _replaced(tree: ast.Module, path: _Path, new: ast.AST) -> ast.Module:
    """The tree with the node at the end of the path replaced."""
    holder: ast.AST = tree
    for field, position in path[:-1]:
        value = getattr(holder, field)
        holder = value if position is None else value[position]
    field, position = path[-1]
    if position is None:
        setattr(holder, field, copy.deepcopy(new))
    else:
        getattr(holder, field)[position] = copy.deepcopy(new)
    return ast.fix_missing_locations(tree)


def population(files: Sequence[str] = TARGETS) -> list[Mutant]:
    """All mutants of some files."""
    return [
        mutant
        for file in files
        for mutant in mutants_of(file, (PACKAGE / file).read_text(encoding="utf-8"))
    ]


def sample(mutants: Sequence[Mutant], per_operator: int, per_file: int) -> list[Mutant]:
    """So many mutants of each operator, and of each file, where there are as many."""
    in_order = sorted(mutants, key=lambda mutant: mutant.digest)
    operators, files = Counter[str](), Counter[str]()
    chosen: list[Mutant] = []
    for mutant in in_order:
        if operators[mutant.operator] < per_operator or files[mutant.file] < per_file:
            operators[mutant.operator] += 1
            files[mutant.file] += 1
            chosen.append(mutant)
    return chosen
