"""`Statistics`: what criteria know of a model on data, computed when asked for and once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from fxprune.analysis import Analysis
from fxprune.errors import AnalysisError, NotApplicableError
from fxprune.groups import Group
from fxprune.statistics.mask_gradients import mask_gradients
from fxprune.statistics.objective import Labels, Loss, Objective
from fxprune.statistics.passes import Passes


class Statistics:
    """Statistics of one version of a model on one set of data, for one loss.

    analysis     what `fxprune.analyze` returned
    data         an iterable of batches: `(inputs, target)`, a mapping of inputs by name, or a
                 tensor. An iterator, which can be read once only, is kept in memory.
    loss         `loss(output, target)`, or `loss(output, batch)` for batches that are no pairs: a
                 mean over samples. None for cross-entropy with class indices.
    labels       "empirical" for those of the data, "model" for labels drawn from the model's
                 output: categorical where targets are class indices, else normal with variance 1
    micro_batch  at most so many samples run at once. Peak memory is that of a forward and backward
                 pass over them with frozen parameters, plus 8 bytes per sample and unit.
    seed         of the labels that are drawn
    progress     show a progress bar
    batch_dim    the dimension of the inputs that counts samples

    Everything runs in eval mode on a copy of the graph that shares the parameters' memory: the
    model, its mode and its gradients stay as they are. Sums over samples are in float64. Under
    `torch.distributed` every rank reads batches of its own and ends with the statistics of all, bit
    by bit the same; all ranks must ask for the same statistics in the same order.

    Results are cached, and belong to the parameters as they were: once those change, asking for
    more raises an AnalysisError.
    """

    def __init__(
        self,
        analysis: Analysis,
        data: Iterable[Any],
        loss: Loss | None = None,
        labels: Labels = "empirical",
        *,
        micro_batch: int | None = None,
        seed: int = 0,
        progress: bool = False,
        batch_dim: int = 0,
    ) -> None:
        if labels not in ("empirical", "model"):
            raise AnalysisError(f"labels are 'empirical' or 'model', not {labels!r}.")
        if micro_batch is not None and micro_batch < 1:
            raise AnalysisError(f"a micro-batch has at least one sample, not {micro_batch}.")
        kept = tuple(data) if isinstance(data, Iterator) else data
        objective = Objective(loss, labels, seed)
        self._passes = Passes(analysis, kept, objective, micro_batch, progress, batch_dim)
        self._version = self._versions()

    @property
    def analysis(self) -> Analysis:
        """The groups that the statistics are of."""
        return self._passes.analysis

    @cached_property
    def parameters(self) -> Mapping[str, Tensor]:
        """All parameters and buffers, detached, by name."""
        return self.analysis.parameters

    def mask_grads(self, group: Group) -> Tensor:
        """G[n, k] = ∂L_n/∂m_k of every sample n and unit k, float64 [samples, *group.shape].

        The mask m multiplies every consumer read of the group (see `fxprune.statistics.reads`); L_n
        is the loss of sample n. One forward and backward pass gives those of all groups. Raises
        NotApplicableError if nothing reads the group.
        """
        if group.name not in self._mask_grads:
            raise NotApplicableError("no contraction and no sum reads its units")
        return self._mask_grads[group.name]

    @cached_property
    def _mask_grads(self) -> Mapping[str, Tensor]:
        self._check_version()
        return mask_gradients(self._passes, self.analysis.groups)

    def _versions(self) -> tuple[int, ...]:
        return tuple(tensor._version for tensor in self.analysis.parameters.values())

    def _check_version(self) -> None:
        if self._versions() != self._version:
            raise AnalysisError(
                "the model's parameters changed since these statistics were begun. Make new ones."
            )
