"""Derivatives of the loss by parameters: gradients, their squares per sample, Hessian products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxprune.errors import AnalysisError
from fxprune.statistics import distributed
from fxprune.statistics.execution import scoring_copy
from fxprune.statistics.passes import Part, Passes

Parameters = Mapping[str, Tensor]


def parameter_gradients(passes: Passes) -> Parameters:
    """The gradient of the mean loss by every parameter, float64."""
    module = _Trainable(passes)
    for part in passes.parts("gradients"):
        module.add(torch.autograd.grad(module.loss(part), module.leaves, allow_unused=True), part)
    return module.means()


def squared_gradients(passes: Passes) -> Parameters:
    """The mean over samples of each parameter's squared gradient: the diagonal of the Fisher
    information, float64. A forward and backward pass per sample.
    """
    module = _Trainable(passes)
    for part in passes.parts("diagonal Fisher", 1):
        found = torch.autograd.grad(module.loss(part), module.leaves, allow_unused=True)
        module.add([None if g is None else g.abs().square() for g in found], part)
    return module.means()


def hessian_product(passes: Passes, vector: Parameters) -> Parameters:
    """The Hessian of the mean loss times a vector, given by parameter; float64.

    Parameters that the vector leaves out count as zero. Raises AnalysisError if its names or shapes
    are not those of parameters.
    """
    module = _Trainable(passes)
    _check(vector, dict(zip(module.names, module.leaves, strict=True)))
    for part in passes.parts("Hessian product"):
        with sdpa_kernel([SDPBackend.MATH]):  # the others have no second derivative
            loss = module.loss(part)
            first = torch.autograd.grad(loss, module.leaves, create_graph=True, allow_unused=True)
            terms = [
                (g * vector[name].to(g)).sum()
                for name, g in zip(module.names, first, strict=True)
                if g is not None and g.requires_grad and name in vector
            ]
            if terms:
                inner = torch.stack(terms).sum()
                module.add(torch.autograd.grad(inner, module.leaves, allow_unused=True), part)
            else:  # the loss is linear in what the vector moves
                module.add([None] * len(module.leaves), part)
    return module.means()


class _Trainable:
    """A copy of the graph with parameters that require grad, and sums over samples for each."""

    def __init__(self, passes: Passes) -> None:
        self.passes = passes
        self.module: nn.Module = scoring_copy(passes.analysis.traced, trainable=True)
        named = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self.leaves = [parameter for _, parameter in named]
        self.sums = [_zeros(parameter) for parameter in self.leaves]
        self.count = 0

    def loss(self, part: Part) -> Tensor:
        """The loss of a part, summed over its samples."""
        with torch.enable_grad():
            output = self.passes.run(self.module, part, (), _no_probe)
            total = self.passes.objective.total(output, part.batch)
        if not total.requires_grad:
            raise AnalysisError("the loss does not depend on any parameter by a differentiable op.")
        return total

    def add(self, terms: Sequence[Tensor | None], part: Part) -> None:
        """Add one term per parameter; None is zero."""
        self.count += part.batch.size
        for total, term in zip(self.sums, terms, strict=True):
            if term is not None:
                total += term

    def means(self) -> Parameters:
        """The sums over the samples of all ranks, divided by their number."""
        count = distributed.summed(torch.tensor(float(self.count), device=self.passes.device))
        totals = [distributed.summed(total) / count for total in self.sums]
        return dict(zip(self.names, totals, strict=True))


def _zeros(parameter: Tensor) -> Tensor:
    dtype = torch.complex128 if parameter.is_complex() else torch.float64
    return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)


def _no_probe(*_: object) -> Tensor:
    raise AssertionError("there are no reads")


def _check(vector: Parameters, parameters: Parameters) -> None:
    for name, tensor in vector.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            known = parameters.get(name)
            raise AnalysisError(
                f"the vector has {name!r} of shape {tuple(tensor.shape)}; the model has "
                f"{'no such parameter' if known is None else f'shape {tuple(known.shape)}'}."
            )
