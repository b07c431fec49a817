"""Why dimensions are coupled or frozen, as text."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, TypeVar

from torch import fx

from fxprune.axes import leaves
from fxprune.errors import AnalysisError
from fxprune.grouping import Grouped
from fxprune.groups import Group, Member, Role
from fxprune.maskable import flagged_atoms
from fxprune.propagate import Propagation

_T = TypeVar("_T")
_SHOWN = 12
_TITLES: Mapping[Role, str] = MappingProxyType(
    {"producer": "made by", "bias": "shifted by", "norm": "scaled by", "consumer": "read by"}
)


class Explainer:
    """Explains the groups of an analysed graph, one module or parameter at a time."""

    def __init__(self, traced: fx.GraphModule, propagation: Propagation, grouped: Grouped) -> None:
        self._traced, self._propagation, self._grouped = traced, propagation, grouped
        calls = (node for node in traced.graph.nodes if node.op == "call_module")
        self._modules = {str(node.target) for node in calls}

    def explain(self, path: str) -> str:
        """The explanation of all groups with a member at `path`, a module or a parameter.

        Raises AnalysisError if the graph has no parameter there.
        """
        groups = (*self._grouped.free, *self._grouped.frozen)
        found = [g for g in groups if any(_inside(m.parameter, path) for m in g.members)]
        if not found:
            raise AnalysisError(self._unknown(path))
        parts = [self._free(group, path) for group in found if group.reason is None]
        parts += self._frozen([group for group in found if group.reason is not None], path)
        return "\n\n".join(parts)

    def _unknown(self, path: str) -> str:
        parameters = list(self._propagation.layouts)
        if any(_inside(name, path) for name in parameters):
            return f"all dimensions at {path!r} have size 1: there is nothing to prune or couple."
        modules = {".".join(name.split(".")[:n]) for name in parameters for n in range(1, 12)}
        near = difflib.get_close_matches(path, sorted(modules), 3, 0.5) or sorted(modules)[:5]
        return (
            f"no parameter of the graph lies at {path!r}. There are some at "
            f"{', '.join(map(repr, near))}; modules without parameters have nothing to explain."
        )

    # -- groups that may be pruned -----------------------------------------------------------------

    def _free(self, group: Group, path: str) -> str:
        units = f"{group.contexts} x {group.size}" if group.contexts > 1 else f"{group.size}"
        lines = [f"{_dimensions(group, path)}: group {group.name!r}, {units} units"]
        if group.contexts > 1:
            context = self._grouped.contexts[group.name]
            owner = self._grouped.units[context.key][0]
            lines.append(f"  each of the {group.contexts} units of {owner!r} chooses its own")
        if group.outer is not None:
            lines.append(f"  inside {group.outer!r}")
        if not group.maskable:
            lines.append(f"  not maskable: {self._flag(group)}")
        lines += _roles(group.members, path, self._modules)
        return "\n".join([*lines, *self._meetings(group, path)])

    def _flag(self, group: Group) -> str:
        keys = self._atom_keys([group])
        flags = flagged_atoms(self._propagation)
        flag = next(flag for atom, flag in flags.items() if atom.key in keys)
        return f"{flag} sees the removed units"

    # -- frozen groups -----------------------------------------------------------------------------

    def _frozen(self, groups: Sequence[Group], path: str) -> list[str]:
        """One part per reason, with all its dimensions at `path`."""
        reasons: dict[str, list[Group]] = {}
        for group in groups:
            reasons.setdefault(group.reason or "", []).append(group)
        parts: list[str] = []
        for reason, same in reasons.items():
            lines = [f"{_dimensions(group, path)}: frozen, {group.size} indices" for group in same]
            lines.append(f"  because: {reason}")
            members = [member for group in same for member in group.members]
            if any(not _inside(member.parameter, path) for member in members):
                lines += _roles(members, path, self._modules)
            lines += [line for group in same for line in self._meetings(group, path)]
            parts.append("\n".join(lines))
        return parts

    # -- where dimensions meet ---------------------------------------------------------------------

    def _atom_keys(self, groups: Iterable[Group]) -> set[int]:
        names = {group.name for group in groups}
        return {key for key, (name, _) in self._grouped.units.items() if name in names}

    def _meetings(self, group: Group, path: str) -> list[str]:
        """The nodes whose ops found that the group's dimensions are the same, in graph order."""
        keys = self._atom_keys([group])
        sites: dict[fx.Node, None] = {}
        for site, bound, _ in self._propagation.algebra.log:
            if isinstance(site, fx.Node) and any(leaf.key in keys for leaf in leaves(bound)):
                sites[site] = None
        if not sites:
            return []
        nodes = [node for node in self._traced.graph.nodes if node in sites]
        near = [any(map(_at(path), (n, *n.all_input_nodes, *n.users))) for n in nodes]
        shown, before, after = _window(nodes, near)
        lines = [f"    ({before} nodes before)"] if before else []
        lines += [f"    {self._node(node)}" for node in shown]
        return ["  coupled at", *lines, *([f"    ({after} nodes after)"] if after else [])]

    def _node(self, node: fx.Node) -> str:
        """A node as code: its module's type or its function, and the nodes that it reads."""
        target: Any = node.target
        if node.op == "call_module":
            target = type(self._traced.get_submodule(str(target)))
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        inputs = [str(argument) for argument in node.all_input_nodes]
        more = [f"and {len(inputs) - 4} more"] if len(inputs) > 4 else []
        return f"{node.name} = {name}({', '.join([*inputs[:4], *more])})"


def _dimensions(group: Group, path: str) -> str:
    """The dimensions of a group's members at `path`, by parameter."""
    own: dict[str, list[str]] = {}
    for member in group.members:
        if _inside(member.parameter, path):
            own.setdefault(member.parameter, []).append(str(member.dim))
    if path in own:
        return f"{path} dim {'+'.join(own[path])}"
    texts = [f"{name[len(path) + 1 :]} dim {'+'.join(dims)}" for name, dims in own.items()]
    shown, _, after = _window(texts, [True] * len(texts))
    return f"{path}: {', '.join(shown)}" + (f" and {after} more" if after else "")


def _roles(members: Sequence[Member], path: str, modules: Set[str]) -> list[str]:
    """One line per role: the modules that have it, in a long list those around `path`."""
    lines: list[str] = []
    for role, owners in _owners(members, modules).items():
        near = [_inside(owner, path) or _inside(path, owner) for owner in owners]
        shown, before, after = _window(owners, near)
        parts = [f"({before} before)"] if before else []
        parts += [*shown, f"({after} after)"] if after else shown
        lines.append(f"  {_TITLES[role]:<10}  {', '.join(parts)}")
    return lines


def _at(path: str) -> Callable[[fx.Node], bool]:
    """Whether a node runs the module, or reads the parameter, at `path`."""
    return lambda node: (
        node.op in ("call_module", "get_attr")
        and (_inside(str(node.target), path) or _inside(path, str(node.target)))
    )


def _owners(members: Iterable[Member], modules: Set[str]) -> dict[Role, list[str]]:
    """By role, the modules that have it; a parameter that is read by itself, by its own name."""
    found: dict[Role, dict[str, None]] = {}
    for member in members:
        owner = member.parameter.rpartition(".")[0]
        owner = owner if owner in modules else member.parameter
        found.setdefault(member.role, {})[owner] = None
    makers = found.get("producer", {})
    biases = [owner for owner in found.get("bias", {}) if owner not in makers]  # a layer's own bias
    if "bias" in found:
        found["bias"] = dict.fromkeys(biases)
    return {role: list(found[role]) for role in _TITLES if found.get(role)}


def _window(items: Sequence[_T], near: Sequence[bool]) -> tuple[Sequence[_T], int, int]:
    """What to show of a long list, around its first near item; how many stand before and after."""
    first = near.index(True) if any(near) else 0
    start = max(0, min(first - _SHOWN // 2, len(items) - _SHOWN))
    shown = items[start : start + _SHOWN]
    return shown, start, len(items) - start - len(shown)


def _inside(parameter: str, path: str) -> bool:
    return parameter == path or parameter.startswith(path + ".")
