"""What units contribute to what reads them: how alike their contributions are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.groups import Group
from fxprune.replay import invoke
from fxprune.rules.base import Kind
from fxprune.statistics import distributed
from fxprune.statistics.execution import ProbedRun, scoring_copy
from fxprune.statistics.parts import Part
from fxprune.statistics.passes import Part as Samples
from fxprune.statistics.passes import Passes
from fxprune.statistics.reads import CONTRACTED, Read

Arguments = Mapping[str, Any]

ENTRIES = 1 << 14
"""How many entries of each result are looked at, drawn at random where there are more."""


def contributions(passes: Passes, groups: tuple[Group, ...]) -> Mapping[str, Tensor]:
    """K[k, l] = the mean over samples of Σ y_k y_l, over the results of all ops that read.

    y_k is what an op makes of unit k alone. Float64 [slots, slots] per group. Ops that are not
    linear in what they read (recurrent layers, norms) are left out, and groups that only those
    read. It takes one evaluation of each op per unit, of the unit's share where that is possible.
    """
    products = {group.name: _zeros(group, passes) for group in groups}
    found: set[str] = set()
    count = 0
    module = scoring_copy(passes.analysis.traced, trainable=False)
    for part in passes.parts("contributions"):
        count += part.batch.size
        run = _Contributions(passes, module, part, products)
        values = [v.clone() if isinstance(v, Tensor) else v for v in part.values]
        with torch.no_grad():
            run.run(*values, enable_io_processing=False)
        found |= run.found
    total = distributed.summed(torch.tensor(float(count), device=passes.device))
    return {
        name: distributed.summed(table) / total for name, table in products.items() if name in found
    }


def _zeros(group: Group, passes: Passes) -> Tensor:
    return torch.zeros(group.slots, group.slots, dtype=torch.float64, device=passes.device)


class _Contributions(ProbedRun):
    """Runs the graph and adds up the products at every read by a linear op."""

    def __init__(
        self, passes: Passes, module: nn.Module, part: Samples, products: Mapping[str, Tensor]
    ) -> None:
        reads = [
            read
            for read in part.sized.operands
            if read.computed and read.power == 1 and read.record.effect.kind in _LINEAR
        ]
        graph, propagation = passes.analysis.traced.graph, part.sized.propagation
        super().__init__(module, graph, propagation, reads, lambda read, x, weight: x)
        self.products = products
        self.found: set[str] = set()
        self.generator = torch.Generator().manual_seed(passes.objective.seed)

    def read(self, read: Read, arguments: Arguments, known: Mapping[int, Tensor]) -> Tensor:
        """The operand as it is, after the products are taken."""
        x: Tensor = arguments[read.argument]
        for part in read.parts:
            if part.group.name in self.products:
                self.found.add(part.group.name)
                self._add(read, part, arguments, self.products[part.group.name])
        return x

    def _add(self, read: Read, part: Part, arguments: Arguments, products: Tensor) -> None:
        x: Tensor = arguments[read.argument]

        def result(arguments: Arguments) -> Tensor:
            y: Tensor = invoke(read.record, arguments, self.device)
            return torch.view_as_real(y).reshape(-1) if y.is_complex() else y.reshape(-1)

        bias = result({**arguments, read.argument: torch.zeros_like(x)})
        chosen = torch.arange(len(bias))
        if len(bias) > ENTRIES:
            chosen = torch.randperm(len(bias), generator=self.generator)[:ENTRIES]
        chosen = chosen.to(x.device)
        alone = _alone(read, part, arguments)
        rows = [
            (result(alone(slot))[chosen] - bias[chosen]).double()
            for slot in range(part.group.slots)
        ]
        table = torch.stack(rows)
        products += table @ table.T * (len(bias) / len(chosen))


def _alone(read: Read, part: Part, arguments: Arguments) -> Callable[[int], Arguments]:
    """The arguments of an op with one slot of what it reads and zeros for all others."""
    x: Tensor = arguments[read.argument]
    slots = part.slots.to(x.device)
    other, dim, other_dim = _FACTORS.get((read.record.call.name, read.argument), ("", 0, 0))
    varying = [d for d in range(x.dim()) if slots.shape[d] > 1]
    plain = arguments.get("groups", 1) == 1 and not arguments.get("transposed", False)
    if other and plain and varying == [dim % x.dim()]:
        flat = slots.reshape(-1)

        def narrowed(slot: int) -> Arguments:
            index = (flat == slot).nonzero()[:, 0]
            if not len(index):
                return {**arguments, read.argument: torch.zeros_like(x)}
            return {
                **arguments,
                read.argument: x.index_select(dim, index),
                other: arguments[other].index_select(other_dim, index),
            }

        return narrowed
    return lambda slot: {**arguments, read.argument: x * (slots == slot)}


_LINEAR = frozenset({Kind.CONTRACT, Kind.SUM})

_FACTORS = MappingProxyType({**CONTRACTED, ("aten::convolution", "input"): ("weight", 1, 1)})
"""The same for convolutions of batches that are neither grouped nor transposed."""
