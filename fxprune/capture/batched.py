"""What `torch.vmap` runs, as the ops on whole batches that it makes of them."""

from __future__ import annotations

import contextlib
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._C import _len_torch_function_stack
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from fxprune.capture import targets
from fxprune.capture.lines import user_line
from fxprune.capture.recorder import Recorder
from fxprune.capture.sizes import SizeFloat, SizeInt, numel_of, size_of
from fxprune.capture.special import HANDLERS
from fxprune.errors import TraceError
from fxprune.meta_kernels import PlainDispatchMode
from fxprune.schemas import schema_of

aten = torch.ops.aten


def vmapped(
    recorder: Recorder, run: Callable[..., Any], function: Any, *args: Any, **kw: Any
) -> Any:
    """What `run`, which calls `function` on batched tensors, does during capture.

    Torch functions see tensors without their batch there, that nobody outside knows. The dispatcher
    gives the batch back, and what passes it is recorded. Numbers do not remember there what sizes
    they were made of: those that the function asks for must be the same in every run, and so must
    those that were rounded before.
    """
    if recorder.busy:  # a vmap in a function under another one
        return run(function, *args, **kw)
    questions = _Questions(recorder)

    def asked(*args: Any, **kwargs: Any) -> Any:
        with questions:
            return function(*args, **kwargs)

    recorder.busy = recorder.measures = True
    try:
        with _Dispatched(recorder):
            return run(asked, *args, **kw)
    finally:
        recorder.busy = False


class _Questions(TorchFunctionMode):
    """Answers what a function asks of tensors: sizes, devices, whether they learn."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, (SizeInt, SizeFloat)) and _rounds(value):
                self._same_in_every_run([*_measured(value)])
        if func in _KINDS:
            return HANDLERS[func](self.recorder, func, args, kwargs)
        result = func(*args, **kwargs)
        # vmap itself asks for the size of the batch.
        if func in _SIZES and sys._getframe(1).f_code.co_filename != _VMAP:
            self._same_in_every_run(result)
        return result

    def _same_in_every_run(self, sizes: Any) -> None:
        """Captures whose constants differ do not go together."""
        name = f"_asked{len(self.recorder.constants)}"
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            self.recorder.constants[name] = torch.tensor(sizes)


def _rounds(size: Any) -> bool:
    """Whether a size need not follow those that it was made of at other ones than were tried."""
    parts = (part for part in size.args if isinstance(part, (SizeInt, SizeFloat)))
    return size.fn not in _FOLLOWING or any(map(_rounds, parts))


def _measured(size: Any) -> Iterator[int]:
    """The sizes of tensors that a size was made of."""
    if size.fn in (size_of, numel_of):
        yield int(size)
    for part in size.args:
        if isinstance(part, (SizeInt, SizeFloat)):
            yield from _measured(part)


_FOLLOWING = frozenset({size_of, numel_of, operator.add, operator.sub, operator.mul})
_KINDS = frozenset({targets.DEVICE, targets.REQUIRES_GRAD, Tensor.get_device, *targets.IS_PROPERTY})
_SIZES = frozenset(
    {targets.SHAPE, Tensor.size, Tensor.__len__, Tensor.numel, Tensor.nelement, torch.numel}
)
_VMAP = torch._functorch.vmap.__file__


class _Dispatched(PlainDispatchMode):
    """Records the ops that are dispatched, as calls of operators."""

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
        device = kwargs.get("device")
        if device is not None and device.type == "meta":  # that of another tensor
            kwargs["device"] = self.recorder.device
        with _alone(self.recorder):
            if torch.Tag.inplace_view not in func.tags:
                return func(*args, **kwargs)
            return self._turned(func, args, kwargs)

    def _turned(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a view in the place of an op that gives its tensor another shape."""
        view = _VIEWS.get(func)
        if view is None:
            raise TraceError(
                f"{user_line()}: the model gives a tensor another shape ({schema_of(func).name}) "
                "in a function under torch.vmap, which a graph cannot follow. Make a new tensor."
            )
        reference, _ = self.recorder.convert_tensor(view(*args, **kwargs))
        self.recorder.refs[id(args[0])] = reference
        with self.recorder.paused():
            return func(*args, **kwargs)


_VIEWS: Mapping[Any, Any] = MappingProxyType(
    {
        aten.squeeze_.default: aten.squeeze.default,
        aten.squeeze_.dim: aten.squeeze.dim,
        aten.squeeze_.dims: aten.squeeze.dims,
        aten.unsqueeze_.default: aten.unsqueeze.default,
        aten.transpose_.default: aten.transpose.int,
        aten.t_.default: aten.t.default,
    }
)


@contextlib.contextmanager
def _alone(recorder: Recorder) -> Iterator[None]:
    """Let a recorder see torch functions, and no other mode.

    Those that are on are for the functions on batched tensors: one of them writes indexing anew.
    """
    modes = [_pop_mode() for _ in range(_len_torch_function_stack())]
    recorder.busy = False
    try:
        with recorder:
            yield
    finally:
        recorder.busy = True
        for mode in reversed(modes):
            _push_mode(mode)
