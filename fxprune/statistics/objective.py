"""Batches, labels and losses: what a statistics pass differentiates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

from fxprune.errors import AnalysisError
from fxprune.statistics.distributed import rank

Loss: TypeAlias = Callable[[Any, Any], Tensor]
Labels: TypeAlias = Literal["empirical", "model"]


@dataclass(frozen=True)
class Batch:
    """One batch, or a part of it.

    inputs  what the graph takes: a tensor, a tuple in order, or a mapping by name
    target  what the loss takes beside the output
    paired  the batch came as (inputs, target)
    size    number of samples
    first   how many samples this process read before
    """

    inputs: Any
    target: Any
    paired: bool
    size: int
    first: int

    def parts(self, limit: int | None, batch_dim: int) -> Iterator[Batch]:
        """Successive parts of at most `limit` samples."""
        if limit is None or limit >= self.size:
            yield self
            return
        for start in range(0, self.size, limit):
            count = min(limit, self.size - start)
            cut = _Cut(self.size, start, count, batch_dim)
            inputs, target = tree_map(cut, self.inputs), tree_map(cut, self.target)
            yield Batch(inputs, target, self.paired, count, self.first + start)


@dataclass(frozen=True)
class _Cut:
    size: int
    start: int
    count: int
    batch_dim: int

    def __call__(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            for dim in (self.batch_dim, 0):
                if leaf.dim() > dim and leaf.shape[dim] == self.size:
                    return leaf.narrow(dim, self.start, self.count)
        return leaf


def read_batch(batch: Any, first: int, batch_dim: int, device: torch.device) -> Batch:
    """A user's batch: `(inputs, target)`, a mapping of inputs by name, or a tensor alone.

    Raises AnalysisError for anything else, and if it holds no tensor to count the samples of.
    """
    batch = dict(batch) if isinstance(batch, Mapping) else batch
    batch = tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, batch)
    paired = isinstance(batch, (tuple, list)) and len(batch) == 2
    if not paired and not isinstance(batch, (Tensor, Mapping)):
        raise AnalysisError(
            "a batch is (inputs, target), a tensor, or a mapping of inputs by name; got "
            f"{type(batch).__name__}. Several inputs without a target are ((a, b, c), None)."
        )
    inputs, target = batch if paired else (batch, batch)
    sizes = [
        leaf.shape[batch_dim]
        for leaf in tree_leaves(inputs)
        if isinstance(leaf, Tensor) and leaf.dim() > batch_dim
    ]
    if not sizes:
        raise AnalysisError(f"the inputs of a batch hold no tensor with a dimension {batch_dim}.")
    return Batch(inputs, target, paired, sizes[0], first)


@dataclass(frozen=True)
class Objective:
    """The loss of a batch, summed over its samples.

    loss         the mean over samples of (output, target), or of (output, batch) where batches are
                 no pairs; None for cross-entropy with class indices
    labels       "empirical" for the data's; "model" for those drawn from the model's own output:
                 categorical where the targets are class indices (or there are none), else normal
                 with variance 1
    seed         of what is drawn; each sample's draw depends on the seed and its number only
    temperature  divides the output; other than 1 it needs an output that is a tensor, or no loss
    """

    loss: Loss | None
    labels: Labels
    seed: int
    temperature: float = 1.0

    def total(self, output: Any, batch: Batch) -> Tensor:
        """The mean loss times the number of samples. Raises AnalysisError if it is no scalar."""
        if self.temperature != 1:
            output = self._cooled(output)
        if self.labels == "model":
            mean = self._sampled(output, batch)
        elif self.loss is not None:
            mean = self.loss(output, batch.target)
        else:
            mean = _cross_entropy(logits_of(output), _classes(batch))
        if not isinstance(mean, Tensor) or mean.numel() != 1:
            raise AnalysisError(
                "the loss must be a tensor with one element, the mean over samples; got "
                f"{tuple(mean.shape) if isinstance(mean, Tensor) else type(mean).__name__}."
            )
        return mean.reshape(()) * batch.size

    def _cooled(self, output: Any) -> Tensor:
        if self.loss is not None and not isinstance(output, Tensor):
            raise AnalysisError(
                f"the model returns a {type(output).__name__}, which cannot be divided by a "
                "temperature before your loss reads it. Use a temperature of 1."
            )
        return logits_of(output) / self.temperature

    def _sampled(self, output: Any, batch: Batch) -> Tensor:
        logits = logits_of(output)
        target = batch.target if batch.paired else None
        normal = isinstance(target, Tensor) and target.is_floating_point()
        with torch.no_grad():
            noise = self._noise(logits, batch, normal)
            drawn = logits.detach() + noise if normal else _categorical(logits, target, noise)
        if self.loss is not None and batch.paired:
            return self.loss(output, drawn)
        if self.loss is not None:
            raise AnalysisError(
                "labels='model' replaces the target of (inputs, target) batches; a loss of "
                "(output, batch) would not see it. Pass (inputs, target), or no loss."
            )
        if normal:
            return 0.5 * (logits - drawn).square().sum() / batch.size
        return _cross_entropy(logits, drawn)

    def _noise(self, logits: Tensor, batch: Batch, normal: bool) -> Tensor:
        """Standard normal noise, or Gumbel noise, of the output's shape."""
        rows = []
        for sample in range(batch.first, batch.first + batch.size):
            digest = hashlib.sha256(f"{self.seed}:{rank()}:{sample}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            row = torch.empty(logits.shape[1:], dtype=torch.float64)
            if normal:
                rows.append(row.normal_(generator=generator))
            else:
                rows.append(-row.exponential_(generator=generator).log())
        return torch.stack(rows).to(logits.device, logits.dtype)


def logits_of(output: Any) -> Tensor:
    """The model's output tensor: itself, its `.logits`, or its first tensor."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    found = named if isinstance(named, Tensor) else output
    tensors = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
    if not tensors:
        raise AnalysisError(f"the model's output, a {type(output).__name__}, holds no tensor.")
    return tensors[0]


def _classes(batch: Batch) -> Tensor:
    target = batch.target
    if not batch.paired or not isinstance(target, Tensor) or target.is_floating_point():
        raise AnalysisError(
            "without loss=, batches are (inputs, target) with class indices as the target (the "
            "loss is cross-entropy). Pass loss=, a function of (output, target), or of (output, "
            "batch) for other batches, that returns the mean over samples."
        )
    return target


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Over the last dimension if the targets have the shape of the rest, else over dimension 1."""
    if logits.shape[:-1] == classes.shape:
        return functional.cross_entropy(logits.flatten(0, -2), classes.flatten())
    return functional.cross_entropy(logits, classes)


def _categorical(logits: Tensor, target: Any, noise: Tensor) -> Tensor:
    """Class indices drawn with softmax(logits): the largest logit after Gumbel noise."""
    last = not isinstance(target, Tensor) or logits.shape[:-1] == target.shape
    return (logits + noise).argmax(-1 if last else 1)
