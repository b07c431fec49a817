"""What a mutation is: one small change of a syntax tree that makes a program wrong.

An operator is a function from a node to the nodes that may stand in its place. Each says one way in
which a rule, the algebra or the rewriter could have been written wrongly.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType

Node = ast.AST
Operator = Callable[[Node], Iterator[Node]]

# Calls whose first argument is what the call would return if it did nothing.
_UNDONE = frozenset("unify gather find concat reversed sorted".split())
_WRAPPERS = frozenset("Effect _moved _contract tuple frozenset bool int len".split())
_EXCLUDED = frozenset("isinstance hasattr unify zip table".split())
"""Calls that mean the same in any order of their arguments, or never make sense in another."""
_EXCHANGEABLE = (ast.Name, ast.Subscript, ast.Attribute, ast.BinOp)
_ORDERED = frozenset("product concat Product Concat factor segment _refine".split())
_KINDS = {
    "POINTWISE": "MOVE",
    "MOVE": "POINTWISE",
    "WINDOW": "STATISTIC",
    "CONTRACT": "WINDOW",
    "SUM": "MOVE",
    "STATISTIC": "SUM",
    "BATCH_NORM": "POINTWISE",
    "RECURRENT": "CONTRACT",
    "FRESH": "MOVE",
}
_COMPARISONS: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: Mapping[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


def _name(call: Node) -> str:
    """The last part of what a call calls; empty for other nodes."""
    function = call.func if isinstance(call, ast.Call) else None
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def drop_call(node: Node) -> Iterator[Node]:
    """Forget a statement that only calls something: unify, freeze, append, declare, ..."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()


def drop_update(node: Node) -> Iterator[Node]:
    """Forget to change an element, an attribute or a running value."""
    stores = (ast.Subscript, ast.Attribute)
    assigned = isinstance(node, ast.Assign) and all(isinstance(t, stores) for t in node.targets)
    if assigned or isinstance(node, ast.AugAssign):
        yield ast.Pass()


def undo_call(node: Node) -> Iterator[Node]:
    """Use an argument where it should have been unified, gathered, reversed, ..."""
    if isinstance(node, ast.Call) and _name(node) in _UNDONE:
        yield from (first for first in node.args[:1] if not isinstance(first, ast.Starred))


def return_input(node: Node) -> Iterator[Node]:
    """Return what should have gone through a function first."""
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Call) and node.value.args:
        first = node.value.args[0]
        wraps = _name(node.value) in _WRAPPERS
        if not wraps and not isinstance(first, (ast.Starred, ast.GeneratorExp)):
            yield ast.Return(first)


def swap_order(node: Node) -> Iterator[Node]:
    """Put factors or segments in the wrong order."""
    if isinstance(node, ast.Call) and _name(node) in _ORDERED:
        for position, argument in enumerate(node.args):
            if isinstance(argument, (ast.List, ast.Tuple)) and len(argument.elts) > 1:
                changed = copy.deepcopy(node)
                changed.args[position] = type(argument)(argument.elts[::-1], argument.ctx)
                yield changed


def swap_arguments(node: Node) -> Iterator[Node]:
    """Exchange two neighbouring arguments of a call that could be of one type."""
    if isinstance(node, ast.Call) and _name(node) not in _EXCLUDED:
        for position, (left, right) in enumerate(pairwise(node.args)):
            if type(left) is type(right) and isinstance(left, _EXCHANGEABLE):
                changed = copy.deepcopy(node)
                changed.args[position : position + 2] = [right, left]
                yield changed


def drop_argument(node: Node) -> Iterator[Node]:
    """Forget a keyword argument, or the axes that an op mixes over."""
    if isinstance(node, ast.Call):
        for position, keyword in enumerate(node.keywords):
            if keyword.arg not in {None, "strict", "dtype"}:
                changed = copy.deepcopy(node)
                del changed.keywords[position]
                yield changed
        if _name(node) == "Effect" and len(node.args) == 3:
            changed = copy.deepcopy(node)
            del changed.args[2]
            yield changed


def wrong_kind(node: Node) -> Iterator[Node]:
    """Say that an op treats removed positions as another kind of op does."""
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Kind":
        yield ast.Attribute(node.value, _KINDS[node.attr], node.ctx)


def negate(node: Node) -> Iterator[Node]:
    """Do something exactly where it should not be done; see `compare` for single comparisons."""
    if isinstance(node, (ast.If, ast.IfExp)) and not isinstance(node.test, ast.Compare):
        changed = copy.deepcopy(node)
        changed.test = ast.UnaryOp(ast.Not(), changed.test)
        yield changed
    if isinstance(node, ast.comprehension):
        for position, test in enumerate(node.ifs):
            if isinstance(test, ast.Compare):
                continue
            changed_clause = copy.deepcopy(node)
            changed_clause.ifs[position] = ast.UnaryOp(ast.Not(), test)
            yield changed_clause


def drop_condition(node: Node) -> Iterator[Node]:
    """Forget one of several conditions."""
    if isinstance(node, ast.BoolOp):
        for position in range(len(node.values)):
            rest = [v for p, v in enumerate(node.values) if p != position]
            yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)


def wrong_connective(node: Node) -> Iterator[Node]:
    """``and`` for ``or``, ``all`` for ``any``."""
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield ast.BoolOp(other, node.values)
    if isinstance(node, ast.Name) and node.id in {"any", "all"}:
        yield ast.Name("all" if node.id == "any" else "any", node.ctx)


def compare(node: Node) -> Iterator[Node]:
    """A comparison that is off at its boundary, or the opposite one."""
    if isinstance(node, ast.Compare):
        for position, op in enumerate(node.ops):
            if type(op) in _COMPARISONS:
                changed = copy.deepcopy(node)
                changed.ops[position] = _COMPARISONS[type(op)]()
                yield changed


def arithmetic(node: Node) -> Iterator[Node]:
    """``+`` for ``-``, ``*`` for ``//``, union for intersection."""
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in _ARITHMETIC:
        changed = copy.deepcopy(node)
        changed.op = _ARITHMETIC[type(node.op)]()
        yield changed


def wrong_index(node: Node) -> Iterator[Node]:
    """Dimension 1 for dimension 0, the last for the last but one, a bound that is off by one."""
    if isinstance(node, (ast.Subscript, ast.Slice)):
        fields = ("slice",) if isinstance(node, ast.Subscript) else ("lower", "upper")
        for field in fields:
            value = _integer(getattr(node, field))
            if value is not None:
                changed = copy.deepcopy(node)
                setattr(changed, field, _constant(value ^ 1 if value in (0, 1) else value + 1))
                yield changed


def off_by_one(node: Node) -> Iterator[Node]:
    """A literal in a calculation, a comparison or a call that is one too large."""
    if isinstance(node, (ast.BinOp, ast.Compare, ast.Call)):
        for field in ("left", "right", "comparators", "args"):
            found = getattr(node, field, None)
            values: Iterable[ast.expr] = found if isinstance(found, list) else [found]
            for position, operand in enumerate(values):
                value = _integer(operand)
                if value is not None:
                    changed = copy.deepcopy(node)
                    if isinstance(found, list):
                        getattr(changed, field)[position] = _constant(value + 1)
                    else:
                        setattr(changed, field, _constant(value + 1))
                    yield changed


def drop_row(node: Node) -> Iterator[Node]:
    """Leave a row out of a table, or a name out of a list of words."""
    if isinstance(node, ast.Dict) and len(node.keys) > 2:
        for position in range(len(node.keys)):
            changed = copy.deepcopy(node)
            del changed.keys[position], changed.values[position]
            yield changed
    if _name(node) == "split" and isinstance(node, ast.Call):
        yield from _fewer_words(node, node.func.value)  # type: ignore[attr-defined]
    if _name(node) == "rows" and isinstance(node, ast.Call):
        yield from _fewer_words(node, node.args[-1])


def _fewer_words(call: Node, text: Node) -> Iterator[Node]:
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        words = text.value.split()
        for position in range(len(words)):
            rest = " ".join(words[:position] + words[position + 1 :])
            yield _replaced(call, text, ast.Constant(rest))


def _replaced(node: Node, old: Node, new: Node) -> Node:
    """A copy of `node` with one of its descendants replaced."""
    return copy.deepcopy(node, {id(old): new})


def drop_jump(node: Node) -> Iterator[Node]:
    """Go on where the rest of a loop's body should be skipped."""
    if isinstance(node, (ast.Continue, ast.Break)):
        yield ast.Pass()


def _integer(node: Node | None) -> int | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _integer(node.operand)
        return None if value is None else -value
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    return None


def _constant(value: int) -> ast.expr:
    return ast.Constant(value) if value >= 0 else ast.UnaryOp(ast.USub(), ast.Constant(-value))


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        operator.__name__.replace("_", "-"): operator
        for operator in (
            drop_call,
            drop_update,
            undo_call,
            return_input,
            swap_order,
            swap_arguments,
            drop_argument,
            wrong_kind,
            negate,
            drop_condition,
            wrong_connective,
            compare,
            arithmetic,
            wrong_index,
            off_by_one,
            drop_row,
            drop_jump,
        )
    }
)
