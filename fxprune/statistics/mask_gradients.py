"""Mask gradients of all groups in one forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from fxprune.errors import AnalysisError
from fxprune.groups import Group
from fxprune.statistics import distributed
from fxprune.statistics.execution import scoring_copy
from fxprune.statistics.passes import Part, Passes
from fxprune.statistics.probes import GradientProbe, MaskGradients
from fxprune.statistics.reads import Read

Transform: TypeAlias = Callable[[Tensor], Tensor]


def mask_gradients(
    passes: Passes, groups: tuple[Group, ...], transform: Transform | None = None
) -> Mapping[str, Tensor]:
    """∂L_n/∂m_k per group, float64 [samples of all ranks, *group.shape].

    Groups that nothing reads are left out. A group with a read that is the same for all samples,
    such as a table of positions, takes a second pass, sample by sample. A transform is applied to
    the products h ∂L/∂h before they are summed over positions and reads.
    """
    found, shared = _pass(passes, groups, None, transform)
    if shared:
        alone = tuple(group for group in groups if group.name in shared)
        found.update(_pass(passes, alone, 1, transform)[0])
    return found


def _pass(
    passes: Passes, groups: tuple[Group, ...], limit: int | None, transform: Transform | None
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """The gradients of the groups, and those that this pass could not tell samples apart for."""
    rows: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    seen = torch.zeros(2, len(groups), dtype=torch.int64)  # read at all; shared by samples
    module = scoring_copy(passes.analysis.traced, trainable=False)
    for part in passes.parts("mask gradients", limit):
        for position, group in enumerate(groups):
            seen[0, position] += group.name in part.sized.groups()
            seen[1, position] += part.batch.size > 1 and group.name in part.sized.unsampled()
        for name, table in _backward(passes, module, part, groups, transform).items():
            rows[name].append(table)
    read, shared = distributed.summed(seen.to(passes.device)).tolist()
    found = {
        group.name: distributed.gathered(torch.cat(rows[group.name])).reshape(-1, *group.shape)
        for position, group in enumerate(groups)
        if read[position] and not shared[position]
    }
    return found, frozenset(g.name for g, n in zip(groups, shared, strict=True) if n)


def _backward(
    passes: Passes,
    module: torch.nn.Module,
    part: Part,
    groups: tuple[Group, ...],
    transform: Transform | None,
) -> Mapping[str, Tensor]:
    """The tables [samples, slots] of one part."""
    tables = {
        group.name: torch.zeros(
            part.batch.size, group.slots, dtype=torch.float64, device=passes.device
        )
        for group in groups
    }
    collector = MaskGradients(tables, transform)
    anchor = torch.zeros((), device=passes.device, requires_grad=True)
    reads = [r for r in part.sized.reads if any(p.group.name in tables for p in r.parts)]

    def probe(read: Read, x: Tensor, weight: Tensor | None) -> Tensor:
        probed: Tensor = GradientProbe.apply(x, anchor, collector.sink(read))  # type: ignore
        return probed

    with torch.enable_grad():
        output = passes.run(module, part, reads, probe)
        total = passes.objective.total(output, part.batch)
    if reads and not total.requires_grad:
        raise AnalysisError(
            "the loss does not depend on the model's output through differentiable operations: "
            "there is no gradient."
        )
    if reads:
        total.backward()
    return tables
