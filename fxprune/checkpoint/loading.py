"""Reading a pruned model from a directory: with its class, or from the description of its graph."""

from __future__ import annotations

import contextlib
import inspect
import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn

from fxprune.analysis import Analysis, analyze, fingerprint
from fxprune.capture import trace
from fxprune.checkpoint import files, plan_files, tensors
from fxprune.checkpoint.plan_files import Plan
from fxprune.checkpoint.rebuilding import rebuild
from fxprune.checkpoint.values import decode
from fxprune.errors import CheckpointError, PlanError
from fxprune.plans.base import short
from fxprune.rules.base import Rule

Factory = Callable[[], nn.Module]


def load(
    directory: str | os.PathLike[str],
    model_factory: Factory | None = None,
    example_inputs: Any = None,
    dynamic: Any = None,
    rules: Mapping[str, Rule] | None = None,
) -> fx.GraphModule:
    """The pruned module that `save` wrote to `directory`.

    Without `model_factory` the graph is made from its description, in which only known operators
    and modules may appear. Output classes of other libraries come back as stand-ins with the same
    parts. Tensors are on the CPU.

    model_factory   makes the original, unpruned model; its parameters get no memory, and what the
                    plan leaves of them is filled from the file
    example_inputs  inputs of that model, as for `trace`; by default such as the plan was made with
    dynamic         as for `trace`; to be given if it was when the plan was made
    rules           as for `analyze`; likewise

    Raises CheckpointError if a file is missing, damaged, changed, of another version or of another
    save, if the plan is for another model, or if the graph needs its class and there is none.
    """
    folder = Path(directory)
    graph = files.read_graph(folder / files.GRAPH)
    files.check_digest(folder, files.PLAN, "plan", graph)
    files.check_digest(folder, files.TENSORS, "tensors", graph)
    text = files.read_text(folder / files.PLAN, "plan")
    stored = tensors.Stored(folder / files.TENSORS)
    if stored.plan != files.text_digest(text):
        raise CheckpointError(
            f"{folder / files.TENSORS} belongs to another plan than the {files.PLAN} beside it: "
            "keep the files of one save together, and do not edit the plan."
        )
    _check_plan(text, graph)
    if model_factory is None:
        module = _without_class(graph, stored)
    else:
        plan_of = partial(plan_files.read_plan, folder, text, graph)
        traced = _traced(graph, model_factory, example_inputs, dynamic)
        module = _pruned(graph, stored, traced, lambda: plan_of(analyze(traced, rules=rules)))
    training = set(graph["training"])
    for name, child in module.named_modules():
        child.__dict__["training"] = name in training
    return module


def load_plan(directory: str | os.PathLike[str], analysis: Analysis) -> Plan:
    """The plan that `save` wrote to `directory`, for an analysis of the graph that it is for.

    Raises CheckpointError as `load` does, and if the plan is for another graph.
    """
    folder = Path(directory)
    graph = files.read_graph(folder / files.GRAPH)
    files.check_digest(folder, files.PLAN, "plan", graph)
    text = files.read_text(folder / files.PLAN, "plan")
    _check_plan(text, graph)
    try:
        return plan_files.read_plan(folder, text, graph, analysis)
    except PlanError as error:
        raise CheckpointError(f"The plan {files.PLAN} does not fit the graph: {error}") from error


def _check_plan(text: str, graph: Mapping[str, Any]) -> None:
    if graph["original"].get("fingerprint") != plan_files.fingerprint_of(text):
        raise CheckpointError(
            f"{files.PLAN} is for another graph than {files.GRAPH}: their fingerprints differ. "
            "Keep the files of one save together."
        )


def _without_class(graph: Mapping[str, Any], stored: tensors.Stored) -> fx.GraphModule:
    if graph["graph"] is None:
        reasons = "; ".join(map(str, graph["needs_class"][:3]))
        raise CheckpointError(
            f"This model needs its class: {short(reasons)}. Call load(directory, model_factory)."
        )
    made = tensors.load_tensors(graph["tensors"], stored)
    return rebuild(graph["graph"], graph["tensors"], made, graph["inputs"])


def _traced(
    graph: Mapping[str, Any], model_factory: Factory, example_inputs: Any, dynamic: Any
) -> fx.GraphModule:
    model = _weightless_model(model_factory)
    if example_inputs is None:
        example_inputs = _examples(graph["inputs"], model)
    return trace(model, example_inputs, dynamic)


def _pruned(
    graph: Mapping[str, Any],
    stored: tensors.Stored,
    traced: fx.GraphModule,
    read_plan: Callable[[], Plan],
) -> fx.GraphModule:
    try:
        plan = read_plan()
    except PlanError as error:
        raise CheckpointError(
            f"The plan {files.PLAN} does not fit the model that model_factory made: {error}"
        ) from error
    pruned = plan_files.apply_plan(traced, plan)
    tensors.fill(pruned, graph["tensors"], stored)
    expected = graph["graph"] and graph["graph"]["fingerprint"]
    if expected and fingerprint(pruned) != expected:
        raise CheckpointError(
            "The plan makes another graph of this model than the one that was saved, which was "
            "changed after pruning. Load it without the class."
        )
    return pruned


def _examples(inputs: list[Any], model: nn.Module) -> dict[str, Any] | tuple[Any, ...]:
    """The recorded inputs, bound to the names of forward's parameters."""
    try:
        values = {str(name): _real(decode(value)) for name, value in inputs}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The recorded inputs are malformed: {short(str(error))}.") from error
    if not values:
        raise CheckpointError("No inputs were recorded: pass example_inputs to load.")
    parameters = inspect.signature(model.forward).parameters
    starred = next((n for n, p in parameters.items() if p.kind is p.VAR_POSITIONAL), None)
    if starred is None:
        return values
    before = [values[name] for name in parameters if name in values]
    return (*before, *(value for name, value in values.items() if name.startswith(f"{starred}_")))


def _real(value: Any) -> Any:
    """Examples on the CPU, whose numbers do not matter and take no memory."""
    return torch.utils._pytree.tree_map(
        lambda v: _weightless(v) if isinstance(v, Tensor) else v, value
    )


def _weightless(tensor: Tensor) -> Tensor:
    """A tensor of zeros on the CPU with the sizes of `tensor` and the memory of one entry."""
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


# -- Models without memory -------------------------------------------------------------------------


def _weightless_model(model_factory: Factory) -> nn.Module:
    """The model, its parameters with the memory of one entry each; its buffers are real.

    Buffers hold numbers that the graph depends on, such as tables of indices. A factory that cannot
    do without the numbers of parameters, or moves them to a device, gets their memory.
    """
    try:
        with _parameters_on_meta(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*meta parameter in the.*is a no-op")
            model = model_factory()
    except (NotImplementedError, RuntimeError):
        return model_factory()
    on_meta = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if on_meta:
        raise CheckpointError(
            f"{on_meta[0]}: model_factory made buffers on the meta device, whose numbers the graph "
            "may depend on; make it on a real device. Its parameters get no memory in any case."
        )
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None and old.is_meta:
                if id(old) not in made:
                    made[id(old)] = nn.Parameter(_weightless(old), old.requires_grad)
                module._parameters[name] = made[id(old)]
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, n) for n in module._flat_weights_names]
    return model


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters that are registered inside go to the meta device at once."""
    register = nn.Module.register_parameter
    moved: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}

    def on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if type(param) is nn.Parameter and not param.is_meta:
            known = moved.get(id(param))
            if known is None or known[0]() is not param:
                known = weakref.ref(param), nn.Parameter(param.to("meta"), param.requires_grad)
                moved[id(param)] = known
            module._parameters[name] = known[1]

    with mock.patch.object(nn.Module, "register_parameter", on_meta):
        yield
