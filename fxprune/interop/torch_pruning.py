"""Importances of Torch-Pruning as criteria: `prune(..., criterion=TorchPruning(importance))`.

Each group is shown to the importance as one of Torch-Pruning's own groups, with every index of
every layer in it. This is the one module of fxprune that imports torch_pruning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.analysis import Analysis
from fxprune.criteria.binding import Scorer
from fxprune.errors import NotApplicableError, PlanError
from fxprune.groups import Group, Member


@dataclass(frozen=True, eq=False)
class TorchPruning:
    """A criterion that asks a `torch_pruning.importance.Importance`.

    importance  the object, such as `torch_pruning.importance.GroupMagnitudeImportance()`
    model       the module whose layers it looks at; None for those of the captured graph, which
                have the original's parameters, gradients included (`loss.backward()` comes before
                pruning, as Torch-Pruning's documentation says). To be given for importances
                that put attributes on the layers, as ActivationImportance does.

    A unit of several channels, such as a head, scores their mean. Layers that are no modules, and
    parameters other than weights, are not shown. Raises PlanError if torch_pruning is missing or
    returns something else than a score per channel; groups of which it scores no layer are left
    whole.
    """

    importance: Any
    model: nn.Module | None = None

    def bind(self, analysis: Analysis) -> Scorer:
        """Scores of the groups of an analysis."""
        try:
            import torch_pruning
        except ImportError as error:
            raise PlanError(
                "TorchPruning needs torch_pruning: pip install torch-pruning."
            ) from error
        root = analysis.traced if self.model is None else self.model
        layers = dict(root.named_modules(remove_duplicate=False))

        def score(group: Group, parameters: Mapping[str, Tensor]) -> Tensor:
            shown = [_Shown(group, member, layer) for member, layer in _weights(group, layers)]
            types = getattr(self.importance, "target_types", None)
            if types is not None:
                shown = [item for item in shown if isinstance(item.layer, tuple(types))]
            return _scores(self.importance, group, shown, torch_pruning)

        return score


def _weights(group: Group, layers: Mapping[str, nn.Module]) -> Iterator[tuple[Member, nn.Module]]:
    """The members that are weights of modules, those that make the units first."""
    for making in (True, False):
        for member in group.members:
            owner, _, name = member.parameter.rpartition(".")
            if name == "weight" and owner in layers and (member.role == "producer") == making:
                yield member, layers[owner]


class _Shown:
    """One member as Torch-Pruning sees it: a layer, a direction, and the slot of every index.

    slots  int64 [channels]: `context * size + unit`, -1 for indices that belong to no unit
    """

    def __init__(self, group: Group, member: Member, layer: nn.Module) -> None:
        self.layer = layer
        self.incoming = member.role == "consumer"
        self.slots = _channel_slots(group, member, layer)
        counts = torch.bincount(self.slots[self.slots >= 0], minlength=group.slots)
        if int(counts.min()) != int(counts.max()):
            raise NotApplicableError(
                f"its units own different numbers of channels of {member.parameter}"
            )
        self.count = int(counts[0])


def _channel_slots(group: Group, member: Member, layer: nn.Module) -> Tensor:
    """The slot of each channel; inputs of a grouped convolution count through all its groups."""
    slots = member.slots(group)
    if slots.dim() == 1:
        return slots.expand(1, -1).reshape(-1)
    groups = int(getattr(layer, "groups", 1))
    first = torch.arange(groups) * (slots.shape[1] // groups)  # one output channel of each group
    return slots[:, first].t().reshape(-1)


def _scores(importance: Any, group: Group, shown: list[_Shown], library: Any) -> Tensor:
    if not shown:
        raise NotApplicableError("torch-pruning's importance scores none of its layers")
    finest = min(item.count for item in shown)
    if any(item.count % finest for item in shown):
        raise NotApplicableError("its layers own numbers of channels that are no multiples")
    # Torch-Pruning takes the number of scores from the first layer.
    ordered = sorted(shown, key=lambda item: item.count != finest)
    found = importance(_group(ordered, finest, library))
    if found is None:
        raise NotApplicableError("torch-pruning's importance scores none of its layers")
    if not isinstance(found, Tensor) or found.numel() != group.slots * finest:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise PlanError(
            f"Group {group.name!r}: {type(importance).__name__} returned {shape}, expected one "
            f"score for each of {group.slots * finest} channels."
        )
    return found.reshape(*group.shape, finest).mean(-1)


def _group(shown: list[_Shown], finest: int, library: Any) -> Any:
    """A torch_pruning Group with all indices; `root_idxs` counts `finest` channels per slot."""
    pruners, ops = library.pruner.function.PrunerBox, library.ops
    made = library.dependency.Group()
    for item in shown:
        pruner = pruners[ops.module2type(item.layer)]
        handler = pruner.prune_in_channels if item.incoming else pruner.prune_out_channels
        node = library.dependency.Node(item.layer, None)
        dependency = library.dependency.Dependency(handler, handler, node, node)
        pairs = _channels(item, finest)
        made.add_dep(dependency, [index for index, _ in pairs])
        made[len(made) - 1].root_idxs = [root for _, root in pairs]
    return made


def _channels(item: _Shown, finest: int) -> list[tuple[int, int]]:
    """(index in the layer, index among the scores): a slot's channels correspond in their order."""
    seen: dict[int, int] = {}
    pairs = []
    for index, slot in enumerate(item.slots.tolist()):
        if slot >= 0:
            place = seen.get(slot, 0)
            seen[slot] = place + 1
            pairs.append((index, slot * finest + place * finest // item.count))
    return pairs
