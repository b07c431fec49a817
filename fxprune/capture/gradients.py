"""Calls of `torch.autograd.Function`: kept whole, so that their own gradients survive.

All but those of activation checkpointing, whose gradients are those of the function that it calls.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.autograd import function as autograd
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import CheckpointFunction

from fxprune.capture.lines import user_line
from fxprune.errors import TraceError
from fxprune.meta_kernels import PlainDispatchMode, run
from fxprune.modules import CustomGradient, SizedCustomGradient

Apply = Callable[[type[torch.autograd.Function], tuple[Any, ...]], Any]


@contextlib.contextmanager
def intercepted(apply: Apply) -> Iterator[None]:
    """Send calls of any autograd.Function to `apply`; a result of NotImplemented lets them pass."""
    owner: Any = autograd._SingleLevelFunction  # Function.apply calls its `apply`

    def replacement(cls: Any, *args: Any) -> Any:
        result = apply(cls, args)
        if result is not NotImplemented:
            return result
        return super(owner, cls).apply(*args)

    owner.apply = classmethod(replacement)
    try:
        yield
    finally:
        del owner.apply


def custom_gradient(cls: type[torch.autograd.Function], args: tuple[Any, ...]) -> CustomGradient:
    """The module that calls `cls`, whose forward runs unrecorded on the meta tensors `args`.

    Raises TraceError for arguments that a graph cannot hold, such as modules.
    """
    for leaf in tree_leaves(args):
        if not _is_held(leaf):
            raise TraceError(
                f"{user_line()}: {cls.__name__}, a torch.autograd.Function, is called with an "
                f"argument of type {type(leaf).__name__}. The graph has such calls whole, for the "
                "sake of their gradients, and holds tensors and plain values alone. Pass it these, "
                "or leave its custom gradient out."
            )
    return CustomGradient(cls) if _scales(cls, args) else SizedCustomGradient(cls)


def followed(cls: type[torch.autograd.Function], args: tuple[Any, ...]) -> Callable[[], Any] | None:
    """What `cls.apply(*args)` calls, if the gradients are that call's; None for gradients of its
    own.
    """
    if not issubclass(cls, CheckpointFunction):
        return None
    function, _, *given = args
    return partial(function, *given)


def _scales(cls: type[torch.autograd.Function], args: tuple[Any, ...]) -> bool:
    """Whether a forward on twice the sizes does the same and returns twice the sizes."""
    results, numbers = _run(cls, args)
    try:
        doubled, same_numbers = _run(cls, tree_map(_doubled, args))
    except Exception:  # it holds some size as a number, whatever it fails with
        return False
    shapes = [_doubled(tensor).shape for tensor in results]
    return numbers == same_numbers and shapes == [tensor.shape for tensor in doubled]


def _doubled(value: Any) -> Any:
    """A tensor of twice the size in every dimension that is not broadcast."""
    if not isinstance(value, Tensor):
        return value
    return value.new_empty([size if size == 1 else 2 * size for size in value.shape])


def _run(
    cls: type[torch.autograd.Function], args: tuple[Any, ...]
) -> tuple[list[Tensor], list[Any]]:
    """The result's tensors, and the ops with the numbers, other than sizes, in their arguments."""
    with _NumberLog() as log:
        result = cls.apply(*args)
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)], log.found


class _NumberLog(PlainDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
        given |= kwargs or {}
        kinds = {a.name: str(a.type) for a in func._schema.arguments}
        numbers = {
            name: value
            for name, value in given.items()
            if isinstance(value, (bool, int, float, complex)) and kinds[name] not in _SIZES
        }
        self.found.append((func, numbers))
        return run(func, args, kwargs or {})


def _is_held(value: Any) -> bool:
    """Whether a graph can hold a value that has no parts of other values."""
    if isinstance(value, slice):
        return all(map(_is_held, (value.start, value.stop, value.step)))
    if isinstance(value, type):
        return value.__module__ == "builtins"
    return isinstance(value, _HELD)


_HELD: tuple[Any, ...] = (
    *fx.node.base_types, type(None), type(...), bytes, range, set, enum.Enum, np.generic
)  # fmt: skip
"""What an argument in a graph may be."""

_SIZES = frozenset({"int", "SymInt", "Optional[int]", "Optional[SymInt]"})
"""Schema types of sizes, dimensions and indices; numbers that are calculated with are Scalars."""
