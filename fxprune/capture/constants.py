"""Values of constant expressions, computed on real tensors while the model runs on meta."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxprune.capture.records import Attr, Ref
from fxprune.capture.sizes import plain
from fxprune.errors import TraceError

if TYPE_CHECKING:
    from fxprune.capture.recorder import Recorder


_FORM_OF: Mapping[str, int] = MappingProxyType(
    dict.fromkeys(("new_full", "new_zeros", "new_ones", "zeros_like", "ones_like", "full_like"), 0)
    | dict.fromkeys(("type_as", "expand_as", "view_as", "reshape_as"), 1)
)
"""Which argument these functions look at for nothing but its sizes, dtype and device."""


class NotConstant(Exception):
    """An expression depends on an input, a parameter, a module or a random number."""


class Replay:
    """Runs the records that depend on nothing but constants, lazily and in order."""

    def __init__(self, recorder: Recorder) -> None:
        # Which has this Replay: a cycle would keep the copy of the model that ran until the garbage
        # collector looks for one.
        self.recorder: Recorder = weakref.proxy(recorder)
        self.constant: dict[int, bool] = {}
        self.learning: dict[int, bool] = {}
        self.tainted: set[int] = set()
        self.kept: list[Any] = []
        self.results: dict[int, Any] = {}
        self.copies: dict[str, Tensor] = {}
        self.done = 0

    def note(
        self,
        index: int,
        args: Any,
        kwargs: Any,
        written: Tensor | None,
        opaque: bool = False,
    ) -> None:
        """Remember whether record `index` is constant, and what it wrote into."""
        constant = not opaque and self._is_constant((self._read(index, args), kwargs))
        self.constant[index] = constant
        if isinstance(written, Tensor) and not constant:
            with torch._C.DisableTorchFunction():
                storage = written.untyped_storage()
            self.kept.append(storage)
            self.tainted.add(storage._cdata)

    def _read(self, index: int, args: Any) -> Any:
        """The arguments of a record whose elements it reads."""
        place = _FORM_OF.get(self.recorder.records[index].name)
        return args if place is None else (*args[:place], *args[place + 1 :])

    def learns(self, index: int) -> bool:
        """Whether a parameter reaches the result of a record, outside of torch.no_grad."""
        records, learning = self.recorder.records, self.learning
        pending = [index]
        while pending:
            record = records[pending[-1]]
            refs = list(_referred((record.args, record.kwargs)))
            known = record.op == "call_module" or any(
                isinstance(self.recorder.real.get(r.name), nn.Parameter)
                for r in refs
                if isinstance(r, Attr)
            )
            needed = [r.index for r in refs if isinstance(r, Ref) and r.index not in learning]
            if needed and not known:
                pending += needed
                continue
            earlier = (learning[r.index] for r in refs if isinstance(r, Ref))
            learning[pending.pop()] = known or any(earlier)
        return learning[index]

    def _is_constant(self, value: Any) -> bool:
        for found in _referred(value):
            if isinstance(found, Ref):
                if not self.constant.get(found.index, False):
                    return False
            else:
                real = self.recorder.real.get(found.name)
                if real is None or isinstance(real, nn.Parameter):
                    return False
        return True

    def tensor(self, ref: Ref | Attr) -> Tensor:
        """The tensor with data; NotConstant if there is none."""
        if not self._is_constant(ref):
            raise NotConstant
        with self.recorder.paused():
            for index in range(self.done, len(self.recorder.records)):
                if self.constant.get(index):
                    self.results[index] = self._run(index)
            self.done = len(self.recorder.records)
            result: Tensor = self._real(ref)
            return result

    def is_tainted(self, tensor: Tensor) -> bool:
        """Whether something that is not constant was written into the storage of a meta tensor."""
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage()._cdata in self.tainted

    def _run(self, index: int) -> Any:
        record = self.recorder.records[index]
        place = _FORM_OF.get(record.name)
        args = [
            self._form(arg) if at == place else self._real(arg)
            for at, arg in enumerate(record.args)
        ]
        kwargs = self._real(record.kwargs)
        if record.op == "call_method":
            return getattr(args[0], record.target)(*args[1:], **kwargs)
        return record.target(*args, **kwargs)

    def _form(self, value: Any) -> Any:
        """A tensor like the one that a reference stands for, with any elements."""
        recorder = self.recorder
        if not isinstance(value, Ref):
            return self._real(value)
        twin = next(t for t in recorder.keep if recorder.refs.get(id(t)) == value)
        with torch._C.DisableTorchFunction():
            return torch.empty_like(twin, device=recorder.device)

    def _real(self, value: Any) -> Any:
        if isinstance(value, Ref):
            result = self.results[value.index]
            for key in value.path:
                result = operator.getitem(result, key)
            return result
        if isinstance(value, Attr):
            if value.name not in self.copies:
                self.copies[value.name] = self.recorder.real[value.name].clone()
            return self.copies[value.name]
        if isinstance(value, (tuple, list)):
            items = [self._real(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            return {key: self._real(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._real(v) for v in (value.start, value.stop, value.step)))
        return plain(value)


def _referred(value: Any) -> Iterator[Ref | Attr]:
    if isinstance(value, (Ref, Attr)):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _referred(item)
    elif isinstance(value, dict):
        yield from _referred(tuple(value.values()))
    elif isinstance(value, slice):
        yield from _referred((value.start, value.stop, value.step))


def read(recorder: Recorder, tensor: Tensor, what: str, line: str) -> Tensor:
    """The data of a constant tensor; a TraceError that names the line if it is not constant."""
    ref = recorder.convert_tensor(tensor)[0]
    try:
        if isinstance(ref, Ref) and recorder.replay.is_tainted(tensor):
            raise NotConstant
        return recorder.replay.tensor(ref)
    except NotConstant:
        with torch._C.DisableTorchFunction():
            shape = tuple(tensor.shape)
        raise TraceError(
            f"{line}: the model reads values of a tensor of shape {shape} ({what}) that depend on "
            "its inputs or weights, so the operations it runs are not fixed. Replace the Python "
            "value by tensor operations (torch.where, masks), or compute it outside the model and "
            "pass it as an argument."
        ) from None


def numbers(recorder: Recorder, value: Any, what: str, line: str) -> Any:
    """A nest of arguments with its tensors of no dimension read, as eager mode reads them."""
    if isinstance(value, Tensor):
        with torch._C.DisableTorchFunction():
            scalar = value.dim() == 0
        return read(recorder, value, what, line).item() if scalar else value
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return slice(*(numbers(recorder, part, what, line) for part in parts))
    if type(value) in (tuple, list):
        return type(value)(numbers(recorder, item, what, line) for item in value)
    if isinstance(value, dict):
        return {key: numbers(recorder, item, what, line) for key, item in value.items()}
    return value
