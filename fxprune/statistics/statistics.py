"""`Statistics`: what criteria know of a model on data, computed when asked for and once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor

from fxprune.analysis import Analysis
from fxprune.costs import Amounts, savings
from fxprune.errors import AnalysisError, NotApplicableError
from fxprune.groups import Group
from fxprune.plans import PruningPlan
from fxprune.statistics.channels import ChannelFactors, channel_factors
from fxprune.statistics.contributions import contributions
from fxprune.statistics.gradients import (
    hessian_product,
    parameter_gradients,
    squared_gradients,
)
from fxprune.statistics.kronecker import (
    Bases,
    KroneckerFactors,
    Positions,
    kronecker_factors,
    kronecker_moments,
)
from fxprune.statistics.layers import Layer, find_layers
from fxprune.statistics.mask_gradients import mask_gradients
from fxprune.statistics.moments import Activations, activations
from fxprune.statistics.objective import Labels, Loss, Objective
from fxprune.statistics.passes import Part, Passes


class Statistics:
    """Statistics of one version of a model on one set of data, for one loss.

    analysis     what `fxprune.analyze` returned
    data         an iterable of batches: `(inputs, target)`, a mapping of inputs by name, or a
                 tensor. An iterator, which can be read once only, is kept in memory.
    loss         `loss(output, target)`, or `loss(output, batch)` for batches that are no pairs: a
                 mean over samples. None for cross-entropy with class indices.
    labels       "empirical" for those of the data, "model" for labels drawn from the model's
                 output: categorical where targets are class indices, else normal with variance 1
    micro_batch  at most so many samples run at once. Peak memory is about that of a plain forward
                 and backward pass over them, plus 8 bytes per sample of all data and unit.
    seed         of the labels that are drawn
    progress     show a progress bar
    batch_dim    the dimension of the inputs that counts samples
    after        a plan whose units are masked already, for the costs of what is left

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
        after: PruningPlan | None = None,
    ) -> None:
        if labels not in ("empirical", "model"):
            raise AnalysisError(f"labels are 'empirical' or 'model', not {labels!r}.")
        if micro_batch is not None and micro_batch < 1:
            raise AnalysisError(f"a micro-batch has at least one sample, not {micro_batch}.")
        kept = tuple(data) if isinstance(data, Iterator) else data
        objective = Objective(loss, labels, seed)
        self._passes = Passes(analysis, kept, objective, micro_batch, progress, batch_dim)
        self._after = after
        self._version = self._versions()
        self._param_grads: dict[float, Mapping[str, Tensor]] = {}
        self._gradient_flow: dict[float, Mapping[str, Tensor]] = {}
        self._kronecker: dict[tuple[Positions, bool, int], Mapping[str, KroneckerFactors]] = {}

    @property
    def analysis(self) -> Analysis:
        """The groups that the statistics are of."""
        return self._passes.analysis

    @cached_property
    def parameters(self) -> Mapping[str, Tensor]:
        """All parameters and buffers, detached, by name."""
        return self.analysis.parameters

    def parts(self, title: str) -> Iterator[Part]:
        """The data in parts of at most a micro-batch, each with what the graph takes."""
        self._check_version()
        return self._passes.parts(title)

    def mask_grads(self, group: Group) -> Tensor:
        """G[n, k] = ∂L_n/∂m_k of every sample n and unit k, float64 [samples, *group.shape].

        The mask m multiplies every consumer read of the group (see `fxprune.statistics.reads`); L_n
        is the loss of sample n. One forward and backward pass gives those of all groups. Raises
        NotApplicableError if nothing reads the group.
        """
        return _found(self._mask_grads, group)

    @cached_property
    def _mask_grads(self) -> Mapping[str, Tensor]:
        self._check_version()
        return mask_gradients(self._passes, self.analysis.groups)

    def magnitudes(self, group: Group) -> Tensor:
        """Σ |h ∂L_n/∂h| over the entries h of each unit at all its reads.

        float64 [samples, *group.shape]: like `mask_grads`, but nothing cancels between positions
        and reads. Raises NotApplicableError if nothing reads the group.
        """
        return _found(self._magnitudes, group)

    @cached_property
    def _magnitudes(self) -> Mapping[str, Tensor]:
        self._check_version()
        return mask_gradients(self._passes, self.analysis.groups, Tensor.abs)

    def activations(self, group: Group, ranks: bool = False) -> tuple[Activations, ...]:
        """Moments of the group's units at each of its reads; with `ranks` those of feature maps.

        Raises NotApplicableError if nothing reads the group's activations.
        """
        return _found(self._ranked if ranks else self._activations, group)

    @cached_property
    def _activations(self) -> Mapping[str, tuple[Activations, ...]]:
        self._check_version()
        return activations(self._passes, self.analysis.groups, False)

    @cached_property
    def _ranked(self) -> Mapping[str, tuple[Activations, ...]]:
        self._check_version()
        return activations(self._passes, self.analysis.groups, True)

    def contributions(self, group: Group) -> Tensor:
        """K[k, l] = mean_n Σ y_k y_l, y_k what the ops that read the group make of unit k alone.

        The removal of a set P changes what those ops return by Σ_kl K[k, l] over P, in squares.
        Float64 [slots, slots]; of large results 2¹⁴ entries are drawn at random per batch. Raises
        NotApplicableError if no op reads the group linearly.
        """
        return _found(self._contributions, group)

    @cached_property
    def _contributions(self) -> Mapping[str, Tensor]:
        self._check_version()
        return contributions(self._passes, self.analysis.groups)

    def cost_delta(self, group: Group) -> Amounts:
        """What the removal of one more unit of the group saves, exactly; see `fxprune.savings`.

        Zero for a group that is at its last unit.
        """
        return self._savings.get(group.name, Amounts(0, 0, 0))

    @cached_property
    def _savings(self) -> Mapping[str, Amounts]:
        return savings(self.analysis, self._after)

    def param_grads(self, temperature: float = 1.0) -> Mapping[str, Tensor]:
        """The gradient of the mean loss by each parameter, float64.

        The model's output is divided by `temperature`, here and in `hvp`.
        """
        if temperature not in self._param_grads:
            self._check_version()
            self._param_grads[temperature] = parameter_gradients(self._passes.at(temperature))
        return self._param_grads[temperature]

    def fisher_diag(self) -> Mapping[str, Tensor]:
        """The diagonal of the Fisher information: mean_n (∂L_n/∂θ)² per parameter, float64.

        Exact, sample by sample: a forward and backward pass each.
        """
        return self._fisher_diag

    @cached_property
    def _fisher_diag(self) -> Mapping[str, Tensor]:
        self._check_version()
        return squared_gradients(self._passes)

    def hvp(self, vector: Mapping[str, Tensor], temperature: float = 1.0) -> Mapping[str, Tensor]:
        """The Hessian of the mean loss times a vector given by parameter, float64. Not cached.

        It needs two to three times the memory of a forward and backward pass.
        """
        self._check_version()
        return hessian_product(self._passes.at(temperature), vector)

    @cached_property
    def channel_factors(self) -> Mapping[str, ChannelFactors]:
        """The Kronecker factors by channel of every layer, by its name; see `kronecker`."""
        self._check_version()
        return channel_factors(self._passes)

    def gradient_flow(self, temperature: float = 1.0) -> Mapping[str, Tensor]:
        """H g, the Hessian times the gradient, by parameter: how the gradient's norm changes."""
        if temperature not in self._gradient_flow:
            found = self.hvp(self.param_grads(temperature), temperature)
            self._gradient_flow[temperature] = found
        return self._gradient_flow[temperature]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The linear layers and convolutions of the graph, in the order of their first use."""
        return find_layers(self.analysis.traced)

    def kronecker(
        self, positions: Positions = "expanded", fold: bool = False, memory: int = 1 << 29
    ) -> Mapping[str, KroneckerFactors]:
        """The Kronecker factors S ⊗ A of the Fisher information of every layer, by its name.

        Layers are linear layers and convolutions, also where a linear function reads rows of a
        parameter. With labels="model" it is the Fisher information, else the empirical one.

        positions  "expanded": each position counts as a case of its own; "reduced": a sample's
                   patches are averaged and its gradients summed first
        fold       factors of the layers with the batch normalisation that follows folded into them
        memory     bytes that each factor may take; of larger ones only blocks on the diagonal are
                   kept, and a BlockDiagonalWarning says so
        """
        key = positions, fold, memory
        if key not in self._kronecker:
            self._check_version()
            self._kronecker[key] = kronecker_factors(self._passes, positions, fold, memory)
        return self._kronecker[key]

    def kronecker_moments(self, bases: Bases, fold: bool = False) -> Mapping[str, Tensor]:
        """E_n[(Q_Sᵀ ∂L_n/∂W Q_A)²] per layer, float64 [groups, columns of Q_S, of Q_A].

        Exact, with one more pass over the data. Not cached.

        bases  per layer Q_S [outputs, r] and Q_A, or [groups, ...] of them. Rows of Q_A are entries
               of a patch with the constant (if the layer has a bias), or without it, or input
               channels alone: then each kernel position is rotated alike, and the result has
               r · kernel columns.
        fold   as for `kronecker`
        """
        self._check_version()
        return kronecker_moments(self._passes, bases, fold)

    def _versions(self) -> tuple[int, ...]:
        return tuple(tensor._version for tensor in self.analysis.parameters.values())

    def _check_version(self) -> None:
        if self._versions() != self._version:
            raise AnalysisError(
                "the model's parameters changed since these statistics were begun. Make new ones."
            )


_T = TypeVar("_T")


def _found(by_group: Mapping[str, _T], group: Group) -> _T:
    if not (group.name in by_group and len(by_group[group.name])):  # type: ignore[arg-type]
        raise NotApplicableError("no contraction and no sum reads its units")
    return by_group[group.name]
