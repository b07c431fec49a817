"""Single runs of a model's forward on meta tensors, at chosen sizes.

Models keep what depends on sizes only (anchors, rotary tables) from one call to the next, and make
it anew when the sizes change. One that was called before it is traced would be captured with what
it kept from that call: a graph for those sizes alone. So a run can come *after a call* at other
sizes, and then makes anew what the model holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxprune.capture.compare import Check, at_most
from fxprune.capture.constants import read
from fxprune.capture.inputs import Inputs, Sizes
from fxprune.capture.interception import recording
from fxprune.capture.metacopy import Template, attributes
from fxprune.capture.outputs import referenced
from fxprune.capture.recorder import Recorder
from fxprune.capture.records import Capture
from fxprune.capture.sizes import plain
from fxprune.errors import TraceError
from fxprune.walks import named_modules

State: TypeAlias = dict[tuple[str, str], Any]


class NotRenewed(Exception):
    """A run at the example's sizes, after a call at others, leaves other values in the model."""


@dataclass(frozen=True)
class Runs:
    """Captures of a model at sizes of its inputs; to be made within `intercepting()`.

    compiling  what the model hears when it asks `torch.compiler.is_compiling()`
    after      the sizes of the calls that come before each run, if any do: before one at the
               example's sizes, and before one at others. They differ, so that it shows which
               comparisons of sizes are with those of the call before.
    limit      after how many operations a run ends with Mismatch that nothing else checks; a model
               that loops over a dimension would go on for minutes at large sizes
    """

    source: Template
    inputs: Inputs
    compiling: bool
    after: tuple[Sizes, Sizes] | None = None
    limit: int | None = None

    def bounded(self, base: Capture) -> Runs:
        """Runs of not many more operations than `base`; models may make anew what they hold."""
        return replace(self, limit=max(2 * len(base.records), 1000))

    def __call__(self, sizes: Sizes, training: bool = False, check: Check | None = None) -> Capture:
        """Capture the model once. Raises TraceError, Mismatch, or what the model raises."""
        model = self._model(sizes, training)
        recorder, result = self._run(model, sizes, training, check or self._check)
        return recorder.capture(referenced(recorder, result))

    def renews(self, sizes: Sizes) -> bool:
        """Whether a run at these sizes gives other values to attributes of the model's modules.

        Raises Mismatch, or what the model raises.
        """
        model = self._model(sizes, training=False)
        before = _state(model)
        self._run(model, sizes, False, self._check)
        return bool(_changed(before, _state(model)))

    def renewed(self) -> Capture:
        """The capture at the example's sizes, after the call at others.

        Raises NotRenewed if the run does not leave in the model what it holds now: that is then
        more than a function of the sizes.
        """
        model = self._model({}, training=False)
        before = _state(model)
        recorder, result = self._run(model, {}, False, self._check)
        held = _state(self.source.model)
        for key, value in _changed(before, _state(model)).items():
            if key not in held or not _same(recorder, value, held[key]):
                raise NotRenewed(f"{'.'.join(key)} differs")
        return recorder.capture(referenced(recorder, result))

    def _model(self, sizes: Sizes, training: bool) -> nn.Module:
        model = self.source.copy(training)
        if self.after is None:
            return model
        self._run(model, self.after[bool(sizes)], training, self._check)
        return self.source.copy_again(model)

    @property
    def _check(self) -> Check | None:
        return None if self.limit is None else at_most(self.limit)

    def _run(
        self, model: nn.Module, sizes: Sizes, training: bool, check: Check | None
    ) -> tuple[Recorder, Any]:
        source, inputs = self.source, self.inputs
        modules = dict(named_modules(model))
        unseen = source.counters if training else frozenset()
        recorder = Recorder(source.names, source.tensors, modules, source.device, check, unseen)
        values = inputs.meta(sizes)
        for name in inputs.names:
            recorder.add("placeholder", name, (), {})
        for leaf in inputs.leaves:
            tensor = values[leaf.place]
            for key in leaf.path:
                tensor = tensor[key]
            recorder.track(tensor, leaf.place, None, leaf.path)
        args, kwargs = inputs.call(values)
        with recording(recorder, self.compiling):
            return recorder, model(*args, **kwargs)


def _state(model: nn.Module) -> State:
    """What a model's modules keep in attributes of their own: (path, attribute) → value."""
    return {
        (path, name): _shallow(value)
        for path, module in named_modules(model)
        for name, value in attributes(module)
    }


def _shallow(value: Any) -> Any:
    return (
        [*value] if isinstance(value, list) else dict(value) if isinstance(value, dict) else value
    )


def _changed(before: State, after: State) -> State:
    """The attributes with other values than before."""
    return {
        key: value
        for key, value in after.items()
        if key not in before or not _identical(before[key], value)
    }


def _identical(one: Any, two: Any) -> bool:
    """Whether two attributes are one object, or lists or dicts of the same objects."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and _identical([*one.values()], [*two.values()])
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(a is b for a, b in zip(one, two, strict=True))
    return one is two


def _same(recorder: Recorder, new: Any, held: Any) -> bool:
    """Whether what a run put into an attribute has the value that the model holds there."""
    if isinstance(new, Tensor):
        try:
            value = read(recorder, new, "kept for the next call", "")
        except TraceError:
            return False
        with torch._C.DisableTorchFunction():
            if not isinstance(held, Tensor):
                return False
            alike = (value.dtype, value.device) == (held.dtype, held.device)
            return alike and torch.equal(value, held)
    if isinstance(new, (tuple, list)):
        alike = isinstance(held, (tuple, list)) and len(new) == len(held)
        return alike and all(_same(recorder, a, b) for a, b in zip(new, held, strict=True))
    if isinstance(new, dict):
        alike = isinstance(held, dict) and new.keys() == held.keys()
        return alike and all(_same(recorder, new[k], held[k]) for k in new)
    return bool(plain(new) == plain(held))
