"""Kronecker factors written out: patches by one-hot kernels, one sample and position at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import fxprune
from fxprune.statistics.objective import Loss


@dataclass(frozen=True)
class Case:
    """A layer between two others, and an input for the three of them."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of a sample
    before: Callable[[], nn.Module] = nn.Identity


CASES = (
    Case("linear", lambda: nn.Linear(4, 3), (4,)),
    Case("linear without bias", lambda: nn.Linear(4, 3, bias=False), (4,)),
    Case("tokens", lambda: nn.Linear(4, 3), (5, 4)),
    Case("conv1d", lambda: nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2), (3, 9)),
    Case("conv2d", lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 4, 4)),
    Case("strided", lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 5, 4)),
    Case("dilated", lambda: nn.Conv2d(2, 4, 3, dilation=2, padding=2, bias=False), (2, 5, 5)),
    Case("grouped", lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 4, 4)),
    Case("depthwise", lambda: nn.Conv2d(4, 4, 3, padding="same", groups=4), (4, 3, 3)),
    Case("circular", lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 4, 4)),
    Case("conv3d", lambda: nn.Conv3d(2, 3, 2, stride=2, padding=1), (2, 3, 3, 3)),
)


class Net(nn.Module):
    """The layer, a smooth function, and a readout."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.layer = case.make()
        size = self.layer(torch.randn(2, *case.shape)).flatten(1).shape[1]
        self.readout = nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(torch.tanh(self.layer(x)).flatten(1))


def statistics_of(
    model: nn.Module, batches: Iterable[object], example: object, **kwargs: object
) -> fxprune.Statistics:
    """Statistics of a model in float64."""
    analysis = fxprune.analyze(fxprune.trace(model.double().eval(), example))
    return fxprune.Statistics(analysis, batches, **kwargs)  # type: ignore[arg-type]


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """[groups, samples, positions, inputs] of a layer's input; the constant last, with a bias."""
    if isinstance(layer, nn.Linear):
        found = x.reshape(len(x), -1, x.shape[-1])[None]
    else:
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        parts = []
        for part in x.chunk(layer.groups, 1):
            entries = part.shape[1] * int(torch.tensor(layer.kernel_size).prod())
            hot = torch.eye(entries, dtype=x.dtype).reshape(
                entries, part.shape[1], *layer.kernel_size
            )
            twin = type(layer)(  # one output for each entry of a patch
                part.shape[1],
                entries,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                layer.dilation,
                bias=False,
                padding_mode=layer.padding_mode,
            ).double()
            twin.weight = nn.Parameter(hot)
            parts.append(twin(part).flatten(2).transpose(1, 2))
        found = torch.stack(parts)
    if layer.bias is not None:
        found = torch.cat([found, torch.ones_like(found[..., :1])], -1)
    return found.detach()


def slopes(
    model: nn.Module, layer: nn.Module, x: Tensor, targets: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Per use of a layer: what it reads, and the gradients [groups, samples, positions, outputs] of
    the summed cross-entropy by its outputs.
    """
    reads: list[Tensor] = []
    made: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        reads.append(args[0].detach())
        output.retain_grad()
        made.append(output)

    handle = layer.register_forward_hook(hook)
    functional.cross_entropy(model(x), targets, reduction="sum").backward()
    handle.remove()
    rows = []
    for output in made:
        assert output.grad is not None
        gradient = output.grad
        if isinstance(layer, nn.Linear):
            flat = gradient.reshape(len(gradient), -1, gradient.shape[-1])
        else:
            flat = gradient.flatten(2).transpose(1, 2)
        groups = getattr(layer, "groups", 1)
        rows.append(torch.stack(flat.chunk(groups, -1)))
    return reads, rows


def factors(
    model: nn.Module, layer: nn.Module, x: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """A and S by their definitions."""
    reads, rows = slopes(model, layer, x, targets)
    a = torch.cat([patches(layer, read) for read in reads], 2)
    ds = torch.cat(rows, 2)
    inputs = sum(torch.einsum("gti,gtj->gij", a[:, n], a[:, n]) / a.shape[2] for n in range(len(x)))
    outputs = sum(torch.einsum("gti,gtj->gij", ds[:, n], ds[:, n]) for n in range(len(x)))
    return inputs / len(x), outputs / len(x)


def reduced_factors(
    model: nn.Module, layer: nn.Module, x: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """A and S of the mean patch and the summed gradient of each sample."""
    reads, rows = slopes(model, layer, x, targets)
    a = torch.cat([patches(layer, read) for read in reads], 2).mean(2)
    ds = torch.cat(rows, 2).sum(2)
    return (
        torch.einsum("gni,gnj->gij", a, a) / len(x),
        torch.einsum("gni,gnj->gij", ds, ds) / len(x),
    )


def weight_gradients(
    model: nn.Module,
    layer: nn.Module,
    x: Tensor,
    targets: Tensor,
    criterion: Loss = functional.cross_entropy,
) -> Tensor:
    """∂L_n/∂[W b] of each sample: [samples, groups, outputs, inputs], by autograd."""
    found = []
    for n in range(len(x)):
        loss = criterion(model(x[n : n + 1]), targets[n : n + 1])
        parameters = [p for p in (layer.weight, layer.bias) if p is not None]
        gradients = torch.autograd.grad(loss, parameters)
        flat = torch.cat([g.reshape(len(g), -1) for g in gradients], 1)
        found.append(torch.stack(flat.chunk(getattr(layer, "groups", 1))))
    return torch.stack(found)
