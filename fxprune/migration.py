"""What else belongs to a model follows its plan: checkpoints, and the state of an optimizer."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fxprune.errors import PlanError
from fxprune.plans import PruningPlan
from fxprune.plans.base import short
from fxprune.plans.values import weight_beside
from fxprune.slicing import Slicer, members_by_parameter

State = Mapping[str, Tensor]
AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)


def apply(plan: PruningPlan, state_dict: State) -> dict[str, Tensor]:
    """What the plan leaves of a checkpoint of the original: values for the pruned module.

    Where the plan gives new values to parameters (compensation), those stand in place of the
    checkpoint's; a bias that it adds comes with the layer's weight.

    state_dict  tensors of the original by name, all of them or some, such as one shard of many

    Tensors that lose nothing are passed on, not copied; those that the plan's graph does not have,
    such as an auxiliary head's, are left out. Raises PlanError if a tensor has another shape than
    the plan's graph, or if the graph has none of the names.
    """
    cut = _Cut(plan)
    found = {name: value for name, value in state_dict.items() if cut.knows(name)}
    if state_dict and not found:
        raise PlanError(
            f"The plan's graph has no tensor {short(next(iter(state_dict)))}, nor any other of the "
            f"state's names; it has {short(next(iter(plan.shapes), None))}, for one. Pass the "
            "state of the model that the plan was made for, under that model's names."
        )
    left = {name: cut(name, cut.edited(name, value)) for name, value in found.items()}
    for name, bias in Slicer(plan).added_biases().items():
        weight = found.get(weight_beside(name) or "")
        if weight is not None:
            left[name] = bias.to(weight)
    return left


def restore(plan: PruningPlan, pruned_state: State, original_state: State) -> dict[str, Tensor]:
    """The original's state with the pruned module's values in the places that they came from.

    What was removed keeps its value in `original_state`, which is not modified; so does what the
    pruned state does not have. Biases that the plan adds are left out. Raises
    PlanError if a shape does not fit the plan.
    """
    cut, masks = _Cut(plan), plan.masks()
    state: dict[str, Tensor] = {}
    for name, value in original_state.items():
        own = plan.aliases.get(name, name)
        kept = pruned_state.get(name, pruned_state.get(own))
        if kept is None or not cut.knows(name):
            state[name] = value.clone()
            continue
        cut.check(name, kept, tuple(cut(name, value).shape), "the plan leaves")
        mask = masks.get(own, torch.ones((), dtype=torch.bool)).to(value.device)
        state[name] = value.masked_scatter(mask, kept.to(value))
    return state


def migrate_optimizer(
    optimizer: AnyOptimizer, original: nn.Module, plan: PruningPlan, pruned: nn.Module
) -> AnyOptimizer:
    """An optimizer of the same class and options for the pruned module, which goes on from there.

    optimizer   of parameters of `original`; it is not modified
    original    the graph or model that was pruned, such as `result.analysis.traced`
    pruned      what the plan made of it

    State in the shape of its parameter (momentum, Adam's moments) is sliced like it, and numbers
    (steps) are copied. Parameter groups keep their order and options; parameters that the graph
    does not reach are left out. Training then goes as that of the original would with the removed
    entries, their gradients and their state held at zero. Hooks do not come along, and a learning
    rate scheduler must be given the new optimizer. Biases that the plan adds have no past and are
    left out: give them to the new optimizer with `add_param_group`.

    Raises PlanError if the optimizer has none of the original's parameters, or state that belongs
    to no single entry of its parameter (L-BFGS, Adafactor's rows and columns).
    """
    cut = _Cut(plan)
    names: dict[int, str] = {}
    for name, parameter in original.named_parameters():
        if cut.knows(name):
            names[id(parameter)] = name
    groups = optimizer.param_groups
    known = [[p for p in group["params"] if id(p) in names] for group in groups]
    if not any(known):
        raise PlanError(
            "The optimizer has no parameter of the original. Pass the model or graph whose "
            "parameters it was made for: they are told by identity."
        )
    twins = dict(pruned.named_parameters(remove_duplicate=False))
    made = copy.copy(optimizer)
    made.defaults = copy.deepcopy(optimizer.defaults)
    made.param_groups = []
    made.state = defaultdict(dict)
    for group, parameters in zip(groups, known, strict=True):
        of = [names[id(parameter)] for parameter in parameters]
        made.param_groups.append(_group(group, of, [twins[name] for name in of]))
        for parameter, name in zip(parameters, of, strict=True):
            entries = optimizer.state.get(parameter, {})
            moved = {key: _moved(value, name, key, cut) for key, value in entries.items()}
            for key, value in moved.items():
                if isinstance(value, Tensor) and value.dim() > 0:
                    cut.check(f"{name}'s {key}", value, tuple(twins[name].shape), "`pruned` has")
            if moved:
                made.state[twins[name]] = moved
    return made


def _group(group: Mapping[str, Any], names: list[str], twins: list[nn.Parameter]) -> dict[str, Any]:
    """A parameter group with other parameters."""
    options = {key: copy.deepcopy(v) for key, v in group.items() if key != "params"}
    if "param_names" in options:
        options["param_names"] = names
    return {"params": twins, **options}


def _moved(value: Any, name: str, key: str, cut: _Cut) -> Any:
    """One entry of a parameter's optimizer state, for what is left of the parameter."""
    if isinstance(value, Tensor) and tuple(value.shape) == cut.shape(name):
        return cut(name, value.detach().clone())
    if isinstance(value, Tensor) and value.dim() == 0:
        return value.clone()
    if any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise PlanError(
            f"The optimizer's {key!r} of {name!r} ({found}) does not belong to single entries of "
            f"the parameter {list(cut.shape(name))} and cannot be sliced: make a new optimizer."
        )
    return copy.deepcopy(value)


class _Cut:
    """Slices tensors of the original by name; tied tensors have several names."""

    def __init__(self, plan: PruningPlan) -> None:
        self._plan, self._slicer = plan, Slicer(plan)
        self._memberships = members_by_parameter(plan)

    def knows(self, name: str) -> bool:
        """True if the plan's graph has a tensor of this name."""
        return self._own(name) in self._plan.shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """The original's shape."""
        return self._plan.shapes[self._own(name)]

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """What is left of a tensor: itself if it loses nothing."""
        self.check(name, value, self.shape(name), "the plan's graph has")
        memberships = self._memberships.get(self._own(name))
        return self._slicer(value, memberships) if memberships else value

    def edited(self, name: str, value: Tensor) -> Tensor:
        """The plan's new value for a tensor, or else the tensor."""
        self.check(name, value, self.shape(name), "the plan's graph has")
        return self._plan.values.get(self._own(name), value).to(value)

    def check(self, name: str, value: Tensor, shape: tuple[int, ...], where: str) -> None:
        """Raise PlanError unless a tensor has that shape."""
        if tuple(value.shape) != shape:
            raise PlanError(f"{name} has shape {short(tuple(value.shape))}, and {where} {shape}.")

    def _own(self, name: str) -> str:
        return self._plan.aliases.get(name, name)
