"""Sending what a model calls to a recorder: its modules, autograd functions and scripts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from fxprune.capture import gradients
from fxprune.capture.batched import vmapped
from fxprune.capture.leaves import leaf_base, reads_training
from fxprune.capture.lines import user_line
from fxprune.capture.recorder import Recorder
from fxprune.errors import TraceError
from fxprune.modules import ByMode

_LOCK = threading.RLock()
_RECORDER: ContextVar[Recorder | None] = ContextVar("fxprune_recorder", default=None)
"""The recorder of this thread's running capture."""


@contextlib.contextmanager
def intercepting() -> Iterator[None]:
    """Let `recording` see the calls of modules and of autograd functions.

    Once for all captures of a model: whenever nn.Module changes, Python forgets what it knows about
    the attributes of all its subclasses. (Of `__call__`, it would tell them all, which takes longer
    than a capture of a small model.)
    """
    owner: Any = nn.Module
    original = owner._call_impl

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        recorder = _RECORDER.get()
        if recorder is None:
            return original(module, *args, **kwargs)
        if recorder.busy:
            _reach(recorder, module)
            return original(module, *args, **kwargs)
        return recorder.call_module(original, module, args, kwargs)

    def apply(cls: type[torch.autograd.Function], args: tuple[Any, ...]) -> Any:
        recorder = _RECORDER.get()
        return NotImplemented if recorder is None else recorder.apply(cls, args)

    with (
        _LOCK,
        _replaced(owner, "_call_impl", call),
        gradients.intercepted(apply),
        _inlined_scripts(),
        _dispatched_batches(),
    ):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value in an attribute meanwhile."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _reach(recorder: Recorder, module: nn.Module) -> None:
    """Note a module that runs unrecorded: the graph has its mode as it is now."""
    path = recorder.modules.get(id(module))
    if path is not None:
        cls: Any = type(module)
        depends = reads_training(cls) or leaf_base(module) is not None
        recorder.reached.setdefault(path, ByMode if depends else cls)


@contextlib.contextmanager
def _inlined_scripts() -> Iterator[None]:
    """Let a recorder see what functions under `torch.jit.script` call, which have their source."""
    scripts: Any = torch.jit.ScriptFunction
    original = scripts.__call__

    def call(script: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = _RECORDER.get()
        if recorder is None or recorder.busy:
            return original(script, *args, **kwargs)
        # What torch.jit.trace makes has a source, too, but need not do the same at other sizes.
        if getattr(script, "__name__", None) != "ScriptFunction":
            raise TraceError(
                f"{user_line()}: the model calls the TorchScript function {script.name!r}, whose "
                "operations cannot be recorded. Call the Python function that it was made of."
            )
        return script._torchdynamo_inline(*args, **kwargs)

    with _replaced(scripts, "__call__", call):
        yield


@contextlib.contextmanager
def _dispatched_batches() -> Iterator[None]:
    """Let a recorder see what `torch.vmap` makes of the functions that it is given."""
    owner: Any = torch._functorch.apis
    original = owner.vmap_impl

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = _RECORDER.get()
        if recorder is None:
            return original(function, *args, **kwargs)
        return vmapped(recorder, original, function, *args, **kwargs)

    with _replaced(owner, "vmap_impl", call):
        yield


@contextlib.contextmanager
def recording(recorder: Recorder, compiling: bool) -> Iterator[None]:
    """Send this thread's calls of modules and torch functions to `recorder`; see `intercepting`.

    `compiling` is what `torch.compiler.is_compiling()` answers meanwhile.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    outside = torch.compiler._is_compiling_flag
    token = _RECORDER.set(recorder)
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        torch.compiler._is_compiling_flag = compiling
        # The twins of parameters require no gradients, so that enabling them costs nothing, and
        # torch.no_grad in the model can be noticed.
        with torch.enable_grad(), recorder:
            yield
    finally:
        _RECORDER.reset(token)
        torch.backends.mha.set_fastpath_enabled(fastpath)
        torch.compiler._is_compiling_flag = outside
