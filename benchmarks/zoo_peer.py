"""What the sweep finds out about a model with Torch-Pruning: is the result the right function?

Which indices Torch-Pruning kept is read off the pruned weights: they were drawn at random, so that
each value tells where it stood. What it removed is then masked in the original, or, where masking
is not removing (behind a LayerNorm), left out in fxprune's masked interpretation.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch
import torch_pruning
from torch import Tensor, fx, nn

import fxprune
from benchmarks.zoo_entry import Entry
from tests.zoo import checks

Found = dict[str, Any]
Kept = dict[str, list[Tensor]]
"""For each tensor, the kept indices of each of its dimensions."""


def measure(entry: Entry) -> Iterator[Found]:
    """The findings, step by step; an exception ends them."""
    torch.manual_seed(0)
    model = entry.build()
    example, inputs = entry.inputs(model, 2), entry.inputs(model, 3)
    model = checks.enliven(model, example)
    pruned = copy.deepcopy(model)
    start = time.process_time()
    prune(pruned, example)
    yield {"pruned": True, "prune_seconds": time.process_time() - start}
    output = checks.run(pruned, inputs)
    yield {"runs": True, "kept_parameters": _count(pruned) / _count(model)}
    kept = kept_indices(model, pruned)
    masked = masked_copy(model, kept)
    error = _error(output, checks.run(masked, inputs))
    yield {"masked": error}
    if error > checks.TOLERANCE:
        yield {"interpreted": _interpreted(model, example, inputs, kept, output)}


def prune(model: nn.Module, example: Mapping[str, Any]) -> None:
    """Torch-Pruning as its documentation shows it: half of every group, but not the last layer."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    pruner = torch_pruning.pruner.BasePruner(
        model,
        dict(example),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=layers[-1:],
        output_transform=lambda output: torch.cat([t.flatten() for t in checks.tensors(output)]),
    )
    pruner.step()


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def kept_indices(model: nn.Module, pruned: nn.Module) -> Kept:
    """The indices that survived in each tensor that shrank; ValueError if some value is new."""
    originals, kept = checks.named_tensors(model), {}
    for name, small in checks.named_tensors(pruned).items():
        if name in originals and small.shape != originals[name].shape:
            kept[name] = _kept(originals[name], small)
    return kept


def _kept(original: Tensor, small: Tensor) -> list[Tensor]:
    values, order = original.flatten().sort()
    found = []
    for dim in range(small.dim()):
        line = small.movedim(dim, 0).reshape(small.shape[dim], -1)[:, 0].contiguous()
        place = torch.searchsorted(values, line).clamp_max(len(values) - 1)
        if not torch.equal(values[place], line):
            raise ValueError("a pruned tensor has values that the original does not have")
        coordinates = numpy.unravel_index(order[place].numpy(), tuple(original.shape))
        found.append(torch.from_numpy(coordinates[dim]))
    return found


def masked_copy(model: nn.Module, kept: Kept) -> nn.Module:
    """The original with every removed entry set to zero."""
    masked = copy.deepcopy(model)
    named = checks.named_tensors(masked)
    for name, indices in kept.items():
        mask = torch.ones_like(named[name], dtype=torch.bool)
        for dim, index in enumerate(indices):
            alive = torch.zeros(mask.shape[dim], dtype=torch.bool)
            alive[index] = True
            mask &= alive.reshape([-1 if d == dim else 1 for d in range(mask.dim())])
        named[name].mul_(mask)
    return masked


def _error(output: Any, expected: Any) -> float:
    """The relative error; infinite where the outputs have other shapes."""
    shapes = [[t.shape for t in checks.tensors(value)] for value in (output, expected)]
    return checks.relative_error(output, expected) if shapes[0] == shapes[1] else float("inf")


def _interpreted(model: nn.Module, example: Found, inputs: Found, kept: Kept, output: Any) -> float:
    """The error against fxprune's masked interpretation of the same choice; inf if it is none."""
    analysis = fxprune.analyze(fxprune.trace(model, example))
    chosen = {g.name: rows for g in analysis.groups if (rows := _rows(g, kept)) is not None}
    try:
        plan = fxprune.PruningPlan.build(analysis, chosen)
        ours = fxprune.rewrite(analysis.traced, plan)
    except fxprune.FxpruneError:
        return float("inf")  # no consistent choice of units
    if not _same_shapes(ours, kept):
        return float("inf")
    report = fxprune.verify(analysis.traced, plan, ours, inputs)
    return max(report.max_error, _error(output, checks.run(ours, inputs)))


def _rows(group: fxprune.Group, kept: Kept) -> Any:
    """The units of a group that `kept` holds; None if all or if no member shrank."""
    member = next((m for m in group.members if m.parameter in kept), None)
    if member is None:
        return None
    indices = kept[member.parameter][member.dim]
    units = member.unit[indices]
    if group.contexts == 1:
        rows: Any = sorted(set(units[units >= 0].tolist()))
        return rows if len(rows) < group.size else None
    if member.context is None or member.context_dim != member.dim:
        rows = [sorted(set(units[units >= 0].tolist()))] * group.contexts
    else:
        context = member.context[indices]
        rows = [
            sorted(set(units[(context == c) & (units >= 0)].tolist()))
            for c in range(group.contexts)
        ]
    return rows if any(len(row) < group.size for row in rows) else None


def _same_shapes(ours: fx.GraphModule, kept: Kept) -> bool:
    named = checks.named_tensors(ours)
    return all(
        name not in named or tuple(named[name].shape) == tuple(len(index) for index in indices)
        for name, indices in kept.items()
    )


def right(found: Found) -> bool:
    """True if the pruned model computes what it should."""
    return min(found.get("masked", 1.0), found.get("interpreted", 1.0)) <= checks.TOLERANCE
