"""What a capture is made of, before it becomes a `torch.fx` graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fxprune.capture.sizes import Log
from fxprune.modules import DropPath


class Ref:
    """The result of record number `index`, or the part of it that `path` leads to."""

    __slots__ = ("index", "path")

    def __init__(self, index: int, path: tuple[Any, ...] = ()) -> None:
        self.index = index
        self.path = path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and (self.index, self.path) == (other.index, other.path)

    def __hash__(self) -> int:
        return hash((self.index, self.path))

    def __repr__(self) -> str:
        return f"%{self.index}" + "".join(f"[{key!r}]" for key in self.path)


class Attr:
    """A parameter, buffer or constant, by its qualified name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attr) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return self.name


@dataclass(slots=True)
class Record:
    """One operation: what an fx node will be, with `Ref`, `Attr` and sizes among its arguments."""

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: str
    line: str

    @property
    def name(self) -> str:
        """The short name of the target, for messages."""
        if isinstance(self.target, str):
            return self.target
        return getattr(self.target, "__name__", str(self.target))


@dataclass(slots=True)
class Capture:
    """All that one run of the model's forward left behind; or several, merged.

    shapes: for the result of each record, a tuple of sizes per dimension, one for each run.
    measures: whether forward asked for a size; if not, no size can have changed what it did.
    """

    records: list[Record]
    output: Any
    log: Log
    constants: Mapping[str, torch.Tensor]
    created: Mapping[str, torch.nn.Module]
    reached: Mapping[str, type]
    plain: Mapping[str, type] = field(default_factory=dict)
    shapes: Mapping[Ref, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    measures: bool = False

    @property
    def drop_paths(self) -> frozenset[str]:
        """The modules that became our DropPath."""
        return frozenset(p for p, m in self.created.items() if isinstance(m, DropPath))


@dataclass(frozen=True)
class Mode:
    """A literal that depends on the mode."""

    train_value: Any
    eval_value: Any


@dataclass(frozen=True)
class Precision:
    """The dtype of the model's parameters."""


@dataclass(frozen=True)
class Expr:
    """A size that varies between captures: `fn(*args)`."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Rebuilt:
    """An output that is made by calling `fn(*args, **kwargs)`."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """The structure of an output of a class registered as a pytree."""

    spec: Any


@dataclass(frozen=True)
class TraceInfo:
    """What a capture decided; in `gm.meta["fxprune"]`.

    dynamic: input -> dimensions that may have any size. specialised: input -> {dimension: (size,
    reason)}. steps: input -> {dynamic dimension: n}, where sizes must differ from the traced one by
    a multiple of n. dropped: modules that forward never reached. mode_notes: where train mode may
    differ from eval mode in a way that the graph does not follow. omitted: optional arguments of
    forward that the example inputs leave out. An output by such a name, like a cache of keys and
    values, is state that only the model itself reads.
    renamed: name in the graph -> name in the model, of attributes that a GraphModule has itself
    (`code`, `graph`, `meta`). far: whether all sizes that may vary were tried at twice the traced
    ones, or more. Convolutions and pooling round: nearer ones need not show what grows.
    """

    dropped: tuple[str, ...] = ()
    dynamic: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    specialised: Mapping[str, Mapping[int, tuple[int, str]]] = field(default_factory=dict)
    steps: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    mode_notes: tuple[str, ...] = ()
    omitted: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    far: bool = False
