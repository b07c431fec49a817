"""Dynamic pruning: units are masked while a network is trained, and some come back.

    pruning = DynamicPruning(traced, regrow=0.2)
    for epoch in range(epochs):
        pruning.update(sparsity, data=batches, loss=loss)
        for x, y in loader:
            ...
            optimizer.step()
            pruning.hold()
    module = pruning.finalise()

Nothing changes size before `finalise`. A unit that comes back has the weights that it had when it
was masked.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxprune.allocation import plan, score
from fxprune.analysis import Analysis, analyze
from fxprune.criteria import Criterion
from fxprune.errors import PlanError
from fxprune.groups import Group, innermost
from fxprune.plans import PruningPlan
from fxprune.ranking import first_to_go, lowest
from fxprune.rewriter import rewrite
from fxprune.statistics.execution import scoring_copy
from fxprune.statistics.objective import Labels, Loss, Objective
from fxprune.statistics.passes import Passes
from fxprune.statistics.reads import Read
from fxprune.walks import named_tensors


class DynamicPruning:
    """Masks over the units of a graph module that is being trained.

    traced     what `trace` returned: its weights are masked in place, and it is what is trained
    regrow     the share of the masked units that come back in an update, those of the largest
               |∂L/∂m| of their mask
    criterion, scope    what drops units, as for `plan`

    plan       what stays at present: a plan for `traced`
    """

    def __init__(
        self,
        traced: GraphModule,
        regrow: float = 0.1,
        criterion: str | Criterion = "magnitude",
        scope: str = "global",
    ) -> None:
        if not 0 <= regrow <= 1:
            raise PlanError(f"regrow is a share of the masked units, in [0, 1]; got {regrow!r}.")
        self.regrow, self.criterion, self.scope = regrow, criterion, scope
        self.traced = traced
        self.analysis: Analysis = analyze(traced)
        self.plan = PruningPlan.build(self.analysis, {})
        self._masks: Mapping[str, Tensor] = {}
        self._dense: Analysis = analyze(copy.deepcopy(traced))  # with masked weights as they were
        self._groups = innermost(self.analysis.groups)

    def update(
        self,
        sparsity: float,
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        labels: Labels | None = None,
    ) -> None:
        """Let units come back, and mask those of the lowest score until `sparsity` are masked.

        data, loss, labels    as for `score`; data are needed once something is masked, for ∂L/∂m
        """
        data = tuple(data) if isinstance(data, Iterator) else data  # it is read twice
        self._remember()
        count = round(self.regrow * sum(self._masked(g) for g in self._groups))
        back = self._largest(count, data, loss, labels) if count else {}
        scores = score(self.analysis, self.criterion, data, loss, labels)
        low = min(float(values.min()) for values in scores.values()) - 1
        high = max(float(values.max()) for values in scores.values()) + 1

        def look_up(group: Group, parameters: Mapping[str, Tensor]) -> Tensor:
            values = scores[group.name].to("cpu", torch.float64)
            values = torch.where(self.plan.kept_mask(group), values, low)
            returning = back.get(group.name)
            return values if returning is None else torch.where(returning, high, values)

        names = {group.name for group in self._groups} & scores.keys()
        self.plan = plan(
            self.analysis, look_up, sparsity, self.scope, lambda group: group.name in names
        )
        self._masks = self.plan.masks()
        self._show()

    @torch.no_grad()
    def hold(self) -> None:
        """Set to zero again what an optimizer's step has moved of masked units."""
        tensors = dict(named_tensors(self.traced))
        for name, mask in self._masks.items():
            if tensors[name].is_floating_point():
                tensors[name].mul_(mask.to(tensors[name].device))

    def finalise(self) -> GraphModule:
        """The graph without the masked units."""
        self.hold()
        return rewrite(self.traced, self.plan)

    def mask_derivatives(
        self, data: Iterable[Any], loss: Loss | None = None, labels: Labels | None = None
    ) -> dict[str, Tensor]:
        """∂L/∂m per group, L the mean loss and m the masks on its reads, 0 for masked units.

        The weights of masked units count as they were when they were masked. Of the group's shape,
        float64.
        """
        self._remember()
        passes = Passes(
            self._dense, data, Objective(loss, labels or "empirical", 0), None, False, 0
        )
        module = scoring_copy(self._dense.traced, trainable=False)
        masks = {
            g.name: self.plan.kept_mask(g).to(passes.device, torch.float64).requires_grad_()
            for g in self._groups
        }

        def probe(read: Read, x: Tensor, weight: Tensor | None) -> Tensor:
            for part in read.parts:
                if part.group.name in masks:
                    mask = masks[part.group.name]
                    laid = part.member.spread(mask, part.group, fill=1.0, rank=x.dim())
                    x = x * laid.to(x.dtype)
            return x

        totals = {name: torch.zeros_like(mask) for name, mask in masks.items()}
        samples = 0
        for part in passes.parts("mask derivatives"):
            samples += part.batch.size
            with torch.enable_grad():
                output = passes.run(module, part, part.sized.reads, probe)
                total = passes.objective.total(output, part.batch)
            found = torch.autograd.grad(total, list(masks.values()), allow_unused=True)
            for name, gradient in zip(masks, found, strict=True):
                if gradient is not None:
                    totals[name] += gradient
        return {name: (total / samples).cpu() for name, total in totals.items()}

    def _masked(self, group: Group) -> int:
        return group.size - int(self.plan.kept(group).shape[-1])

    def _largest(
        self, count: int, data: Iterable[Any] | None, loss: Loss | None, labels: Labels | None
    ) -> dict[str, Tensor]:
        """The masked units that come back: per group, bool of its shape."""
        if data is None:
            raise PlanError("update needs data= to say which of the masked units come back.")
        derivatives = self.mask_derivatives(data, loss, labels)
        ranked = {
            group.name: torch.where(
                self.plan.kept_mask(group), math.inf, -derivatives[group.name].abs()
            )
            for group in self._groups
        }
        return {
            group.name: first_to_go(ranked[group.name], len(places))
            for group, places in lowest(self._groups, ranked, count)
        }

    @torch.no_grad()
    def _remember(self) -> None:
        """Copy what is not masked of the trained graph into the dense one."""
        dense = dict(named_tensors(self._dense.traced))
        for name, tensor in named_tensors(self.traced):
            mask = self._masks.get(name)
            kept = (
                tensor if mask is None else torch.where(mask.to(tensor.device), tensor, dense[name])
            )
            dense[name].copy_(kept)

    @torch.no_grad()
    def _show(self) -> None:
        """Give the trained graph the values of the dense one, with zeros where masked."""
        tensors = dict(named_tensors(self.traced))
        for name, value in named_tensors(self._dense.traced):
            tensors[name].copy_(value)
        self.hold()
