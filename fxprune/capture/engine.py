"""`trace`: any model into a torch.fx.GraphModule."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture import dynamic as dims
from fxprune.capture import guards
from fxprune.capture.compare import asks_for_no_size, follows
from fxprune.capture.emit import Emitter, build, free_name
from fxprune.capture.growth import are_far
from fxprune.capture.inputs import Inputs, Sizes, bind
from fxprune.capture.interception import intercepting
from fxprune.capture.lines import is_users
from fxprune.capture.metacopy import Template, template
from fxprune.capture.modes import depends_on_mode, follow_modes
from fxprune.capture.precision import follow_precision
from fxprune.capture.records import Capture, Ref, TraceInfo
from fxprune.capture.runs import Runs
from fxprune.capture.trials import Trials
from fxprune.collection import paused_collection
from fxprune.errors import TraceError
from fxprune.walks import named_parameters

Dynamic = Mapping[str, Any]


@paused_collection()
def trace(model: Any, example_inputs: Any, dynamic: Dynamic | None = None) -> fx.GraphModule:
    """Capture a model as a torch.fx.GraphModule.

    model: an nn.Module, a GraphModule, or an ExportedProgram; it is not modified. example_inputs:
    a tensor, a tuple or list (positional) or a mapping (keyword) of tensors and other values.
    dynamic: input name -> set of dimensions that must accept any size, or -> {dimension: whether
    it must (True) or must not (False)}; without it every dimension that can vary does.

    The result shares the model's parameters and buffers under their names and has its training
    flags. `gm.meta["fxprune"]` is a TraceInfo. Raises TraceError.
    """
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if not isinstance(model, nn.Module):
        raise TraceError(
            f"trace takes an nn.Module, a GraphModule or an ExportedProgram, not a "
            f"{type(model).__name__}."
        )
    inputs = bind(model, example_inputs)
    source = template(model, inputs.leaves[0].tensor.device)
    with intercepting():
        found, notes = _captured(source, inputs, dynamic)
    capture = found.capture
    emitter = Emitter(capture, source, len(inputs.names))
    _emit_inputs(emitter, inputs, found)
    emitter.emit()
    emitter.set_output()
    gm = build(emitter, model)
    gm.meta["fxprune"] = TraceInfo(
        dropped=_dropped(source, gm, capture),
        dynamic=found.dynamic,
        specialised=found.specialised,
        steps=_steps(found),
        mode_notes=notes,
        omitted=inputs.omitted,
        renamed=_renamed(model),
        far=are_far(s for ref, s in capture.shapes.items() if ref.index < len(inputs.names)),
    )
    return gm


def _captured(
    source: Template, inputs: Inputs, dynamic: Dynamic | None
) -> tuple[dims.Found, tuple[str, ...]]:
    """The capture that holds at all sizes and in both modes; notes on where train mode differs."""
    base, runs = _first(source, inputs)
    modes = depends_on_mode(source.modules, base.reached)
    found, runs = _searched(base, runs, dynamic, modes)
    dims.require(found, inputs, dynamic)
    capture = _any_precision(found.capture, runs)
    notes: tuple[str, ...] = ()
    if modes and not found.in_both_modes:
        capture, notes = follow_modes(capture, lambda: found.trained or runs({}, training=True))
    return replace(found, capture=capture), notes


def _trials(base: Capture, runs: Runs, modes: bool) -> Trials:
    """Trials at other sizes; also in train mode, if the modes may differ."""
    leaves = {leaf.label: leaf for leaf in runs.inputs.leaves}
    run = partial(runs, check=follows(base))
    check = follows(base) if base.measures else asks_for_no_size
    return Trials(base, leaves, run, partial(runs, training=True, check=check) if modes else None)


def _searched(
    base: Capture, runs: Runs, dynamic: Dynamic | None, modes: bool
) -> tuple[dims.Found, Runs]:
    """What may vary; where that is more after a call at other sizes, with runs that follow one."""
    bounded = runs.bounded(base)
    trials = _trials(base, bounded, modes)
    found = dims.search(runs.inputs, trials, dynamic)
    if not found.failed or not _renews(bounded, trials.differs):
        return found, runs
    failed = tuple(found.failed)
    for symbols in (failed, *((symbol,) for symbol in failed)):
        one, other = ({p: s.elsewhere[n] for s in symbols for p in s.places} for n in (0, 1))
        later = replace(runs, after=(one, other))
        try:
            base = later.renewed()
            trials = _trials(base, later.bounded(base), modes)
            if not dims.varies(trials, symbols):
                continue
            second = dims.search(runs.inputs, trials, dynamic)
        except Exception:  # whatever the model does at these sizes
            continue
        if second.varying > found.varying:
            return second, later
    return found, runs


def _renews(runs: Runs, tried: Sequence[Sizes]) -> bool:
    """Whether the model keeps other values at other sizes: at the first that it runs at."""
    for sizes in tried:
        try:
            return runs.renews(sizes)
        except Exception:  # whatever the model raises at these sizes
            continue
    return False


def _renamed(model: nn.Module) -> dict[str, str]:
    names = [*model._modules, *model._parameters, *model._buffers]
    return {free_name(name): name for name in names if free_name(name) != name}


def _steps(found: dims.Found) -> dict[str, dict[int, int]]:
    steps: dict[str, dict[int, int]] = {}
    for place, _, unit in found.steps:
        steps.setdefault(place.leaf.label, {})[place.dim] = unit
    return steps


def _any_precision(capture: Capture, runs: Runs) -> Capture:
    """The capture with dtype literals that follow the model's precision made to do so."""
    dtype = runs.source.dtype
    if dtype is None:
        return capture

    def again(other: torch.dtype) -> Capture:
        source = runs.source.converted(dtype, other)
        return replace(runs, source=source, inputs=runs.inputs.converted(dtype, other))({})

    return follow_precision(capture, dtype, again)


def _first(source: Template, inputs: Inputs) -> tuple[Capture, Runs]:
    """The capture at the example's sizes, and the runs that tell the model the same.

    A model that hears that it is being compiled leaves out what reads values: warnings, shortcuts
    for masks that hide nothing. Where that path fails, the one that eager mode takes is captured.
    """
    compiled, eager = (Runs(source, inputs, compiling) for compiling in (True, False))
    try:
        return compiled({}), compiled
    except Exception as error:
        first = error
    try:
        return eager({}), eager
    except Exception as error:
        found = next((e for e in (first, error) if isinstance(e, TraceError)), None)
        if found is not None:
            raise found from None
        raise _failure(source, inputs, error) from error


def _failure(source: Template, inputs: Inputs, error: Exception) -> TraceError:
    """What to say where the model's own code raised an error."""
    if type(error).__module__.startswith("torch._dynamo"):  # to import it takes a second
        return TraceError(
            f"{_where(error)}: {type(source.model).__name__} compiles a part of itself as it runs, "
            "as flex_attention does, and what runs compiled cannot be recorded. Choose another "
            "implementation for the capture, such as scaled_dot_product_attention."
        )
    shapes = ", ".join(f"{leaf.label}: {tuple(leaf.tensor.shape)}" for leaf in inputs.leaves)
    return TraceError(
        f"{_where(error)}: {type(source.model).__name__} fails on the example inputs "
        f"({shapes}): {type(error).__name__}: {error}. Check that the model runs on these "
        "inputs in eval mode; if it does, the operation at this line has no meta kernel or "
        "needs values: replace it, or wrap it in a custom operator with a meta kernel."
    )


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if is_users(f.filename)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else "?"


def _emit_inputs(emitter: Emitter, inputs: Inputs, found: dims.Found) -> None:
    graph = emitter.graph
    for name, value in zip(inputs.names, inputs.meta({}), strict=True):
        node = graph.placeholder(name)
        node.meta["val"] = value
        emitter.nodes.append(node)
    for leaf in inputs.leaves:
        fixed = found.specialised.get(leaf.label, {})
        pairs = tuple((dim, size) for dim, (size, _) in sorted(fixed.items()))
        node = emitter.reference(Ref(leaf.place, leaf.path))
        args = (node, leaf.label, leaf.tensor.dim(), pairs)
        guarded = graph.call_function(guards.fixed_sizes, args)
        emitter.first = emitter.first or guarded
        if leaf.path:
            emitter.parts[Ref(leaf.place, leaf.path)] = guarded
        else:
            emitter.nodes[leaf.place] = guarded
    for place, (name, value) in enumerate(zip(inputs.names, inputs.values(), strict=True)):
        if isinstance(value, (int, float, str, bool, type(None))):
            graph.call_function(guards.fixed_value, (emitter.nodes[place], value, name))
    for first, others in found.shared:
        reference = f"dimension {first.dim} of {first.leaf.label!r}"
        for other in others:
            pair = (emitter.size(other.expr), emitter.size(first.expr))
            name = f"dimension {other.dim} of {other.leaf.label!r}"
            graph.call_function(guards.same_size, (*pair, name, reference))
    for where, size, unit in found.steps:
        name = f"dimension {where.dim} of {where.leaf.label!r}"
        graph.call_function(guards.stepped_size, (emitter.size(where.expr), size, unit, name))


def _dropped(source: Template, gm: fx.GraphModule, capture: Capture) -> tuple[str, ...]:
    """The modules with parameters of their own that the graph neither calls nor reads."""
    held = {id(p) for _, p in named_parameters(gm)}
    return tuple(
        path
        for path, module in source.modules.items()
        if path
        and path not in capture.reached
        and not all(id(p) in held for p in module.parameters(recurse=False))
    )
