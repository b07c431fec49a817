"""Running a model's own forward on meta tensors and recording what it does."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxprune.capture import gradients, leaves, shapes, special
from fxprune.capture.compare import Check
from fxprune.capture.constants import Replay, numbers
from fxprune.capture.lines import user_line
from fxprune.capture.lowerings import lowered
from fxprune.capture.metacopy import held_tensors, meta_like
from fxprune.capture.records import Attr, Capture, Record, Ref
from fxprune.capture.sizes import Log, SizeFloat, SizeInt, of_capture, plain, size_of, sized
from fxprune.capture.targets import (
    ATOMS,
    CONSTRUCTORS,
    DTYPES,
    RANDOM,
    RANKS,
    as_documented,
    mutates,
    target_of,
)
from fxprune.errors import TraceError
from fxprune.meta_kernels import MetaKernels
from fxprune.walks import has_hooks


class Recorder(TorchFunctionMode):
    """A mode that records torch-level calls on tensors that it knows.

    names: id(meta tensor) -> qualified name of the parameter, buffer or plain attribute.
    real: name -> the tensor with data, for constants. owners: path -> module of the copy.
    check: what is asked of each record; may raise Mismatch. unseen: the tensors whose updates are
    not recorded.
    """

    def __init__(
        self,
        names: dict[int, str],
        real: dict[str, Tensor],
        owners: dict[str, nn.Module],
        device: torch.device,
        check: Check | None = None,
        unseen: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.names = names.copy()
        self.real = real
        self.owners = owners
        self.modules = {id(module): path for path, module in owners.items()}
        self.device, self.kind = device, device.type
        self.check = check
        self.unseen = unseen
        self.records: list[Record] = []
        self.refs: dict[int, Ref] = {}
        self.shapes: dict[Ref, tuple[int, ...]] = {}
        self.keep: list[Any] = []
        self.log: Log = []
        self.measures = False
        self.constants: dict[str, Tensor] = {}
        self.twins: dict[int, Tensor] = {}
        self.created: dict[str, nn.Module] = {}
        self.reached: dict[str, type] = {}
        self.plain: dict[str, type] = {}
        self.stack: list[str] = [""]
        self.replay = Replay(self)
        self.busy = False
        self.autocast = _autocast(self.kind)

    def convert(self, value: Any) -> tuple[Any, Any]:
        """(what the record holds, what the call on meta gets) for an argument."""
        if (kind := type(value)) in ATOMS:
            return value, value
        if kind is SizeInt or kind is SizeFloat:
            return of_capture(value, self.log), plain(value)
        if isinstance(value, Tensor):
            return self.convert_tensor(value)
        if kind is type:
            dtype = DTYPES.get(value, value)
            return dtype, dtype
        if kind is slice:
            parts = [self.convert(p) for p in (value.start, value.stop, value.step)]
            return slice(*(p[0] for p in parts)), slice(*(p[1] for p in parts))
        if isinstance(value, (tuple, list)):
            pairs = [self.convert(item) for item in value]
            if hasattr(value, "_fields"):
                return tuple(p[0] for p in pairs), type(value)(*(p[1] for p in pairs))
            sequence: type = list if isinstance(value, list) else tuple
            return sequence(p[0] for p in pairs), sequence(p[1] for p in pairs)
        if isinstance(value, np.generic):
            return value.item(), value.item()
        if isinstance(value, dict):
            items = {key: self.convert(item) for key, item in value.items()}
            return {k: p[0] for k, p in items.items()}, {k: p[1] for k, p in items.items()}
        return value, value

    def convert_tensor(self, value: Tensor) -> tuple[Any, Tensor]:
        """The reference to a tensor, and its meta twin (itself, unless it is a real constant)."""
        ref = self.refs.get(id(value))
        if ref is not None:
            return ref, value
        name = self.names.get(id(value))
        if name is not None:
            return Attr(name), self.twins.get(id(value), value)
        with torch._C.DisableTorchFunction():  # else it would be on the device of the inputs
            has_data = not value.is_meta
        if has_data:
            return self.constant(value)
        alias = self.alias_of(value)
        if alias is not None:
            known: dict[int, Any] = self.refs if id(alias) in self.refs else self.names
            known[id(value)] = known[id(alias)]
            self.keep.append(value)
            return self.convert_tensor(alias)
        raise TraceError(
            f"{user_line()}: a tensor of shape {tuple(value.size())} appears that no recorded "
            "torch function made (a C++ extension, torch.jit.script or torch.vmap?). Replace that "
            "call by torch functions."
        )

    def alias_of(self, value: Tensor) -> Tensor | None:
        """A known tensor with the same memory: `torch.Tensor(x)` makes another object of it."""
        with torch._C.DisableTorchFunction():
            place = _memory(value)
            made = (t for t in reversed(self.keep) if isinstance(t, Tensor) and id(t) in self.refs)
            held = (t for _, t in held_tensors(self.owners.items()) if id(t) in self.names)
            return next((t for t in itertools.chain(made, held) if _memory(t) == place), None)

    def constant(self, value: Tensor) -> tuple[Attr, Tensor]:
        """Register a tensor with data as a constant of the graph."""
        twin = meta_like(value)
        name = f"_constant{len(self.constants)}"
        self.constants[name] = self.real[name] = value
        self.names[id(twin)] = self.names[id(value)] = name
        self.twins[id(value)] = twin
        self.keep += [value, twin]
        return Attr(name), twin

    def value_of(self, tensor: Tensor) -> Tensor:
        """The tensor with data behind a constant expression; a TraceError if it is none."""
        return self.replay.tensor(self.convert_tensor(tensor)[0])

    def track(self, result: Any, index: int, given: set[int] | None, path: Any = ()) -> Any:
        """Remember the tensors in a result; one that is an argument itself becomes an alias."""
        if isinstance(result, Tensor):
            if given is not None and id(result) in given:
                with torch._C.DisableTorchFunction():
                    result = result.detach()
            ref = Ref(index, path)
            self.refs[id(result)] = ref
            self.shapes[ref] = _shape(result)
            self.keep.append(result)
            return result
        if isinstance(result, (tuple, list)):
            items = [self.track(r, index, given, (*path, i)) for i, r in enumerate(result)]
            if all(new is old for new, old in zip(items, result, strict=True)):
                return result
            if hasattr(result, "_fields"):
                return type(result)(*items)
            return type(result)(items)
        if isinstance(result, dict):
            return {k: self.track(v, index, given, (*path, k)) for k, v in result.items()}
        return result

    def add(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Append a record; its index."""
        line = user_line()
        if not self.autocast and _autocast(self.kind):
            raise TraceError(
                f"{line}: the model turns on autocast inside its forward, which a graph cannot "
                "hold. Take that context out of the model and run the traced graph inside it."
            )
        record = Record(op, target, args, kwargs, self.stack[-1], line)
        self.records.append(record)
        if self.check is not None:
            self.check(len(self.records) - 1, record, self.measures)
        return len(self.records) - 1

    def sizes(self, tensor: Tensor) -> Any:
        """The shape of a tensor: sizes with expressions if it depends on the input."""
        with torch._C.DisableTorchFunction():
            shape = tensor.shape
        ref = self.refs.get(id(tensor))
        if ref is None:
            return shape
        log = self.log
        self.measures = True
        return torch.Size([sized(s, size_of, (ref, d), log) for d, s in enumerate(shape)])

    def __torch_function__(
        self, func: Any, classes: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.busy:
            return func(*args, **(kwargs or {}))
        args, kwargs = as_documented(func, args, kwargs or {})
        handler = special.HANDLERS.get(func)
        if handler is not None:
            return handler(self, func, args, kwargs)
        instead = lowered(func, args)
        if instead is not None:
            with self:
                return instead(*args, **kwargs)
        return self.call(func, args, kwargs)

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a call of a torch function; a tensor that stands for a number is read."""
        try:
            return self.record(func, args, kwargs)
        except RuntimeError as error:
            if _NEEDS_NUMBER not in str(error):
                raise
        rest = (args[1:], kwargs)
        what, line = getattr(func, "__name__", "a number"), user_line()
        others, kwargs = numbers(self, rest, what, line)
        return self.record(func, (*args[:1], *others), kwargs)

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a call of a torch function and run it on meta."""
        pairs = [self.convert(a) for a in args]
        run = [p[1] for p in pairs]
        named = {k: self.convert(v) for k, v in kwargs.items()}
        run_kwargs = {k: p[1] for k, p in named.items()}
        if func in CONSTRUCTORS or run_kwargs.get("device") is not None:
            run_kwargs["device"] = "meta"
        rec_kwargs = {k: p[0] for k, p in named.items()}
        result = self.execute(func, run, run_kwargs)
        if result is None or not _has_tensor(result):
            # Strides, say: a bare number, but one that sizes may have made.
            self.measures |= isinstance(result, (int, float, tuple)) and func not in RANKS
            op, target, rec = target_of(func, tuple(p[0] for p in pairs), rec_kwargs)
            if rec and mutates(op, target, rec_kwargs):
                self.replay.note(self.add(op, target, rec, rec_kwargs), rec, rec_kwargs, run[0])
            return result
        op, target, rec = target_of(func, tuple(p[0] for p in pairs), rec_kwargs)
        written = mutates(op, target, rec_kwargs)
        if written and isinstance(rec[0], Attr) and rec[0].name in self.unseen:
            return result
        index = self.add(op, target, rec, rec_kwargs)
        overwritten = run[0] if written and run else None
        self.replay.note(index, rec, rec_kwargs, overwritten, func in RANDOM)
        given = None if written else {id(t) for t in run if isinstance(t, Tensor)}
        result = self.track(result, index, given)
        return result if written else self.cut(result, index)

    def cut(self, result: Any, index: int) -> Any:
        """Under torch.no_grad, a result that parameters reach is detached, as it would be."""
        if torch.is_grad_enabled() or not isinstance(result, Tensor):
            return result
        if not self.replay.learns(index):
            return result
        ref = self.refs[id(result)]
        detached = self.add("call_method", "detach", (ref,), {})
        self.replay.note(detached, (ref,), {}, None)
        self.replay.learning[detached] = False
        return self.track(result, detached, {id(result)})

    def execute(self, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Run a torch function on meta tensors, by its shape rule where there is one."""
        with torch._C.DisableTorchFunction():
            return shapes.of_function(func, args, kwargs)

    def apply(self, cls: type[torch.autograd.Function], args: tuple[Any, ...]) -> Any:
        """What `cls.apply(*args)` does during capture."""
        if self.busy:
            return NotImplemented
        known = gradients.followed(cls, args)
        if known is not None:
            return known()
        with self.paused():
            module = gradients.custom_gradient(cls, tuple(self.convert(a)[1] for a in args))
        return self.leaf(type(module), module, *args)

    def call_module(self, original: Any, module: nn.Module, args: Any, kw: Any) -> Any:
        """What `module(*args, **kw)` does during capture."""
        path = self.modules.get(id(module))
        if path is not None:
            self.reached.setdefault(path, type(module))
        self.stack.append(self.stack[-1] if path is None else path)
        try:
            lowering = leaves.lowering_of(module)
            if lowering is not None:
                return self.hooked(original, module, lowering, args, kw)
            base = leaves.leaf_base(module) if path != "" else None  # the root cannot be a leaf
            if base is not None:
                return self.hooked(original, module, functools.partial(self.leaf, base), args, kw)
            before = len(self.records)
            result = original(module, *args, **kw)
            if args and result is args[0] and before == len(self.records):
                return self.identity(module, path, result)
            return result
        finally:
            self.stack.pop()

    def hooked(self, original: Any, module: nn.Module, body: Any, args: Any, kw: Any) -> Any:
        """Run `body(module, ...)` in the place of forward, between the module's own hooks."""
        if not has_hooks(module):
            return body(module, *args, **kw)
        module.__dict__["forward"] = lambda *a, **k: body(module, *a, **k)
        try:
            return original(module, *args, **kw)
        finally:
            del module.__dict__["forward"]

    def module_path(self, module: nn.Module) -> str:
        """The path of a module; one that forward created gets a name at the root."""
        path = self.modules.get(id(module))
        if path is None:
            path = f"_created{len(self.created)}"
            self.created[path] = module
            self.modules[id(module)] = path
            self.keep.append(module)
        return path

    def leaf(self, base: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Record the call of a leaf module, which is a `base`."""
        pairs = [self.convert(a) for a in args]
        named = {k: self.convert(v) for k, v in kwargs.items()}
        run = [p[1] for p in pairs]
        run_kwargs = {k: p[1] for k, p in named.items()}
        with torch._C.DisableTorchFunction():
            result = shapes.of_module(base, module, run, run_kwargs)
        if result is None:
            with self.paused(), MetaKernels():
                result = module.forward(*run, **run_kwargs)
        if not _has_tensor(result):
            return result
        rec, rec_kwargs = tuple(p[0] for p in pairs), {k: p[0] for k, p in named.items()}
        index = self.add("call_module", self.module_path(module), rec, rec_kwargs)
        written = vars(module).get("inplace", False)
        self.replay.note(index, rec, rec_kwargs, run[0] if written else None, True)
        given = None if written else {id(t) for t in run if isinstance(t, Tensor)}
        result = self.track(result, index, given)
        return result if written else self.cut(result, index)

    def identity(self, module: nn.Module, path: str | None, result: Any) -> Any:
        """A module that returned its input: stochastic depth becomes our DropPath."""
        if path is None or not isinstance(result, Tensor) or not leaves.may_drop_path(module):
            return result
        twin = leaves.drop_path_like(module)
        if twin is None or twin.p == 0.0:
            return result
        index = self.add("call_module", path, (self.convert(result)[0],), {})
        self.replay.note(index, (), {}, None, True)
        self.created[path] = twin
        return self.track(result, index, {id(result)})

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Run torch code unrecorded."""
        busy, self.busy = self.busy, True
        try:
            with torch._C.DisableTorchFunction():
                yield
        finally:
            self.busy = busy

    def capture(self, output: Any) -> Capture:
        """The finished capture; `output` is the forward's result with references in it."""
        shapes = {ref: tuple((s,) for s in shape) for ref, shape in self.shapes.items()}
        return Capture(
            self.records, output, self.log, self.constants, self.created, self.reached,
            self.plain, shapes, self.measures,
        )  # fmt: skip


_NEEDS_NUMBER = "Tensor.item() cannot be called on meta tensors"


def _autocast(kind: str) -> bool:
    return kind != "meta" and torch.is_autocast_enabled(kind)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    with torch._C.DisableTorchFunction():
        return tuple(tensor.shape)


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, (tuple, list)):
        return any(_has_tensor(item) for item in value)
    return isinstance(value, dict) and any(_has_tensor(item) for item in value.values())
