"""Passes over the data: batches in parts that fit into memory, each with its graph's reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from fxprune.analysis import Analysis
from fxprune.errors import AnalysisError
from fxprune.inputs import bind_inputs
from fxprune.statistics.execution import Probe, ProbedRun
from fxprune.statistics.objective import Batch, Objective, read_batch
from fxprune.statistics.reads import Read
from fxprune.statistics.sizes import Sized, SizedReads


@dataclass(frozen=True)
class Part:
    """Samples that run at once: what the graph takes, and its reads at these sizes."""

    batch: Batch
    values: tuple[Any, ...]
    sized: Sized


@dataclass(frozen=True)
class Passes:
    """How to go over the data: see `Statistics` for what the fields mean."""

    analysis: Analysis
    data: Iterable[Any]
    objective: Objective
    micro_batch: int | None
    progress: bool
    batch_dim: int

    @cached_property
    def device(self) -> torch.device:
        """Where the model is."""
        tensors = self.analysis.parameters.values()
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @cached_property
    def _sized(self) -> SizedReads:
        return SizedReads(self.analysis, self.batch_dim)

    def at(self, temperature: float) -> Passes:
        """The same passes with the model's output divided by a temperature."""
        return replace(self, objective=replace(self.objective, temperature=temperature))

    def parts(self, title: str, limit: int | None = None) -> Iterator[Part]:
        """All batches in parts of at most `limit` samples. AnalysisError if there are none."""
        seen = 0
        for raw in tqdm(self.data, title, disable=not self.progress):
            batch = read_batch(raw, seen, self.batch_dim, self.device)
            seen += batch.size
            for part in batch.parts(limit or self.micro_batch, self.batch_dim):
                values = bind_inputs(self.analysis.traced, self._inputs(part), AnalysisError)
                yield Part(part, values, self._sized.at(values, part.size))
        if not seen:
            raise AnalysisError(
                "the data hold no batch. An iterator is empty once it was read: pass a list or a "
                "DataLoader."
            )

    def _inputs(self, batch: Batch) -> Any:
        """What of a batch the graph takes: a mapping may hold labels, too."""
        if batch.paired or not isinstance(batch.inputs, Mapping):
            return batch.inputs
        names = {str(n.target) for n in self.analysis.traced.graph.nodes if n.op == "placeholder"}
        return {name: value for name, value in batch.inputs.items() if name in names}

    def run(self, module: nn.Module, part: Part, reads: Sequence[Read], probe: Probe) -> Any:
        """The model's output, with a probe at each of the reads."""
        graph, propagation = self.analysis.traced.graph, part.sized.propagation
        runner = ProbedRun(module, graph, propagation, reads, probe)
        return run_on(runner, part)


def run_on(runner: fx.Interpreter, part: Part) -> Any:
    """What the runner's graph returns for a part of the data, which stays as it is."""
    values = [v.clone() if isinstance(v, Tensor) else v for v in part.values]
    return runner.run(*values, enable_io_processing=False)
