"""What `torch.vmap` runs, as the ops on whole batches that it makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fxprune.capture.lines import user_line
from fxprune.capture.operators import function_of
from fxprune.capture.recorder import Recorder
from fxprune.errors import TraceError
from fxprune.meta_kernels import PlainDispatchMode
from fxprune.schemas import schema_of


def vmapped(recorder: Recorder, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `run`, which calls functions on batched tensors, does during capture.

    Torch functions see tensors without their batch there, that nobody outside knows. The dispatcher
    gives the batch back, and what passes it is recorded.
    """
    recorder.busy = recorder.measures = True  # sizes are bare numbers there
    try:
        with _Dispatched(recorder):
            return run(*args, **kwargs)
    finally:
        recorder.busy = False


class _Dispatched(PlainDispatchMode):
    """Records the ops that are dispatched."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, schema = dict(kwargs or {}), schema_of(func)
        if schema.random:
            raise TraceError(
                f"{user_line()}: the model draws random numbers ({schema.name}) in a function "
                "under torch.vmap, which a graph cannot follow. Draw them before, and map over "
                "them, too."
            )
        if any(name == "device" for name, _ in schema.parameters) and not _has_tensor(args):
            kwargs.setdefault("device", self.recorder.device)
        if torch.Tag.inplace_view in func.tags:
            return self._turned(func, args, kwargs)
        return self.recorder.record(function_of(func), args, kwargs)

    def _turned(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a view in the place of an op that gives its tensor another shape."""
        name = schema_of(func).name.removeprefix("aten::").removesuffix("_")
        view = getattr(getattr(torch.ops.aten, name), func._overloadname)
        reference, _ = self.recorder.convert_tensor(
            self.recorder.record(function_of(view), args, kwargs)
        )
        self.recorder.refs[id(args[0])] = reference
        return func(*args, **kwargs)


def _has_tensor(args: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(args))
