"""Walks over module trees: what nn.Module's nested generators give, in time linear in the tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


def named_modules(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module once, by its first path, parents first."""
    found: dict[nn.Module, str] = {}
    stack: list[tuple[str, nn.Module]] = [("", root)]
    while stack:
        path, module = stack.pop()
        if module in found:
            continue
        found[module] = path
        if module._modules:
            dot = f"{path}." if path else ""
            for name, child in reversed(module._modules.items()):
                if child is not None:
                    stack.append((dot + name, child))
    return [(path, module) for module, path in found.items()]


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks before or behind its forward."""
    return bool(module._forward_pre_hooks or module._forward_hooks)


def has_own_forward(module: nn.Module) -> bool:
    """Whether the instance has another forward than its class."""
    return "forward" in module.__dict__


def module_at(root: nn.Module, path: str) -> nn.Module:
    """The module of this path: `root.get_submodule(path)` without its checks. Raises KeyError."""
    module: Any = root
    for name in path.split(".") if path else ():
        module = module._modules[name]
    return module  # type: ignore[no-any-return]


def named_parameters(root: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Every parameter once, by its first name."""
    return parameters_in(named_modules(root))


def named_buffers(root: nn.Module) -> list[tuple[str, Tensor]]:
    """Every buffer once, by its first name."""
    return buffers_in(named_modules(root))


def named_tensors(root: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters, then buffers."""
    modules = named_modules(root)
    return [*parameters_in(modules), *buffers_in(modules)]


def aliases(root: nn.Module) -> dict[str, str]:
    """The further names of parameters and buffers, each with the one in `named_tensors`."""
    first = {id(tensor): name for name, tensor in named_tensors(root)}
    found: dict[str, str] = {}
    for path, module in _paths(root):
        for name, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is not None and first[id(tensor)] != path + name:
                found[path + name] = first[id(tensor)]
    return found


def _paths(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module by each of its paths, which end in a dot; parents first."""
    stack: list[tuple[str, nn.Module]] = [("", root)]
    while stack:
        path, module = stack.pop()
        yield path, module
        for name, child in reversed(module._modules.items()):
            if child is not None:
                stack.append((f"{path}{name}.", child))


def parameters_in(modules: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, nn.Parameter]]:
    """The parameters of these modules themselves."""
    return _once((path, module._parameters) for path, module in modules)


def buffers_in(modules: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, Tensor]]:
    """The buffers of these modules themselves."""
    return _once((path, module._buffers) for path, module in modules)


def _once(held: Iterable[tuple[str, Mapping[str, T | None]]]) -> list[tuple[str, T]]:
    found: dict[int, tuple[str, T]] = {}
    for path, tensors in held:
        if not tensors:
            continue
        for name, tensor in tensors.items():
            if tensor is not None and id(tensor) not in found:
                found[id(tensor)] = (f"{path}.{name}" if path else name), tensor
    return list(found.values())
