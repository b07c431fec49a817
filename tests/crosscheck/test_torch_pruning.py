"""Our groups are those of Torch-Pruning where both can tell, and it is right.

Compared unit by unit: the (parameter, dimension, index) triples that must go together. The models
are torchvision's with few channels, since Torch-Pruning follows every index in Python.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import convnext, densenet, mobilenetv2, mobilenetv3, resnet, shufflenetv2
from torchvision.models import vgg as torchvision_vgg
from torchvision.models.googlenet import Inception

import fxprune
from fxprune import Analysis

torch_pruning = pytest.importorskip("torch_pruning")

Entry = tuple[str, int, int]
"""A parameter or buffer, a dimension, an index."""
Units = list[frozenset[Entry]]
"""What goes with each unit of one group."""


def vgg() -> nn.Module:
    layers = torchvision_vgg.make_layers([8, "M", 12, "M", 16, 16, "M", 24, "M"], batch_norm=True)
    model = torchvision_vgg.VGG(layers, num_classes=10)
    head = (nn.Linear(24 * 49, 32), nn.ReLU(), nn.Linear(32, 10))
    model.classifier = nn.Sequential(*head)
    return model


def tiny_convnext() -> nn.Module:
    block = convnext.CNBlockConfig
    return convnext.ConvNeXt([block(24, 48, 2), block(48, None, 2)], num_classes=10)


class Inceptions(nn.Module):
    """Two of GoogLeNet's blocks: four branches each, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.first = Inception(12, 4, 6, 8, 3, 5, 6)
        self.second = Inception(23, 4, 6, 8, 3, 5, 6)
        self.head = nn.Linear(23, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(self.stem(x).relu())).mean((2, 3)))


def bottlenecks(groups: int = 1) -> nn.Module:
    return resnet.ResNet(
        resnet.Bottleneck, [1, 2, 1, 1], num_classes=10, groups=groups, width_per_group=8
    )


AGREE: Mapping[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: resnet.ResNet(resnet.BasicBlock, [2, 2, 2, 2], num_classes=10),
    "resnet50": bottlenecks,
    "vgg": vgg,
    "densenet": lambda: densenet.DenseNet(8, (2, 2, 2), 16, num_classes=10),
    "googlenet": Inceptions,
    "squeezenet": lambda: torchvision.models.squeezenet1_1(num_classes=10),
    "mobilenet_v2": lambda: mobilenetv2.MobileNetV2(10, width_mult=0.25),
    "mobilenet_v3": lambda: mobilenetv3.mobilenet_v3_small(width_mult=0.25, num_classes=10),
    "mnasnet": lambda: torchvision.models.MNASNet(0.25, num_classes=10),
    "convnext": tiny_convnext,
}

# Where the two differ, how many groups do, and why.
DIFFER: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "resnext": (
        lambda: bottlenecks(groups=4),
        "In a grouped convolution Torch-Pruning removes the same channels from every group; here "
        "each group chooses its own, and whole groups can go.",
    ),
    "shufflenet": (
        lambda: shufflenetv2.ShuffleNetV2([2, 2, 2], [8, 16, 24, 32, 40], num_classes=10),
        "Torch-Pruning takes a channel shuffle for an operator that leaves channels in place, and "
        "couples the wrong ones.",
    ),
}


def theirs(model: nn.Module, example: torch.Tensor) -> Iterator[Units]:
    """Torch-Pruning's groups."""
    modules = {id(module): name for name, module in model.named_modules()}
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    graph = torch_pruning.DependencyGraph()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says what it takes bare parameters' units to be
        graph.build_dependency(model, example)
    for group in graph.get_all_groups():
        units: dict[int, set[Entry]] = defaultdict(set)
        for item in group:
            target = item.dep.target.module
            if isinstance(target, nn.Parameter):
                last = max(dim for dim, size in enumerate(target.shape) if size > 1)
                places = [(parameters[id(target)], last)]
            elif id(target) in modules:  # else it is one of its own, for views and cats
                places = places_in(target, modules[id(target)], item.dep.handler.__name__)
            else:
                continue
            for name, dim in places:
                for index, root in zip(item.idxs, item.root_idxs, strict=True):
                    units[root].add((name, dim, index))
        yield [frozenset(entries) for entries in units.values()]


def places_in(module: nn.Module, path: str, function: str) -> list[tuple[str, int]]:
    """The parameter dimensions that a pruning function of Torch-Pruning shortens."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if not isinstance(module, (nn.Linear, nn.Conv2d)):
        return [(f"{path}.{name}", 0) for name, tensor in tensors.items() if tensor.dim()]
    depthwise = isinstance(module, nn.Conv2d) and module.groups == module.out_channels > 1
    if "in_channels" in function and not depthwise:
        return [(f"{path}.weight", 1)]
    return [(f"{path}.{name}", 0) for name in tensors]


@dataclass(frozen=True)
class Comparison:
    """How many of their groups are ours, are frozen here, and differ."""

    same: int
    frozen: int
    different: int


def compare(analysis: Analysis, groups: Iterator[Units]) -> Comparison:
    """Look up each of their units among ours."""
    ours: set[frozenset[Entry]] = set()
    fixed: set[Entry] = set()
    for group in (*analysis.groups, *analysis.frozen):
        units: list[set[Entry]] = [set() for _ in range(group.size)]
        for member in group.members:
            for index, unit in enumerate(member.unit.tolist()):
                if unit >= 0:
                    units[unit].add((member.parameter, member.dim, index))
        if group.frozen:
            fixed = fixed.union(*units)
        elif group.contexts == 1:
            ours.update(frozenset(unit) for unit in units)
    free = {entry for unit in ours for entry in unit}
    same = frozen = different = 0
    for group_units in groups:
        entries = frozenset().union(*group_units)
        if not entries & free and entries <= fixed:
            frozen += 1
        elif all(unit in ours for unit in group_units):
            same += 1
        else:
            different += 1
    return Comparison(same, frozen, different)


def compared(build: Callable[[], nn.Module]) -> tuple[Comparison, Analysis]:
    model, example = build().eval(), torch.randn(2, 3, 64, 64)
    analysis = fxprune.analyze(fxprune.trace(model, example))
    return compare(analysis, theirs(model, example)), analysis


@pytest.mark.parametrize("name", AGREE)
def test_the_groups_are_the_same(name: str) -> None:
    """All of them but one: the outputs, which are frozen here and ignored layers there."""
    found, analysis = compared(AGREE[name])
    assert found == Comparison(same=len(analysis.groups), frozen=1, different=0)
    assert found.same >= 6


@pytest.mark.parametrize("name", DIFFER)
def test_a_difference_has_a_reason(name: str) -> None:
    build, reason = DIFFER[name]
    found, _ = compared(build)
    assert found.different > 0, f"no longer so: {reason}"
    assert found.same > 0


def test_a_wrong_index_is_a_difference() -> None:
    """The control: two units exchange one entry."""
    model, example = AGREE["vgg"]().eval(), torch.randn(2, 3, 64, 64)
    analysis = fxprune.analyze(fxprune.trace(model, example))
    entry, other = ("features.0.bias", 0, 0), ("features.0.bias", 0, 1)
    swap = {entry: other, other: entry}
    groups = [
        [frozenset(swap.get(e, e) for e in unit) for unit in units]
        for units in theirs(model, example)
    ]
    found = compare(analysis, iter(groups))
    assert found == Comparison(same=len(analysis.groups) - 1, frozen=1, different=1)
