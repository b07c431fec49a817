"""Three small networks trained on real digits: a chain, a residual net, a depthwise one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

EPOCHS = 20


@dataclass(frozen=True)
class Digits:
    """Real handwritten digits: images [n, 1, 8, 8] in [0, 1], labels [n] in 0..9."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def batches(self, size: int = 128) -> list[tuple[Tensor, Tensor]]:
        """The training images with their labels."""
        pairs = zip(self.train.split(size), self.train_labels.split(size), strict=True)
        return list(pairs)


def load() -> Digits:
    """The 1797 digits of scikit-learn, 1347 for training and 450 for testing."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, test, train_labels, test_labels = train_test_split(
        images, labels, test_size=450, stratify=labels, random_state=0
    )
    return Digits(train, train_labels, test, test_labels)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


def vgg() -> nn.Module:
    """32-32-64-64, flattened into a classifier."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise([1, 32, 32, 64, 64]):
        layers += [conv(inputs, outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if inputs == outputs else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a convolution where sizes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, outputs, 3, stride), conv(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.second(F.relu(self.first(x))))


class ResNet8(nn.Module):
    """A stem, three blocks of widths 16, 32 and 64, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 16)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


def mobile() -> nn.Module:
    """Depthwise and pointwise convolutions in turn."""
    layers: list[nn.Module] = [conv(1, 24), nn.ReLU()]
    for inputs, outputs, stride in ((24, 48, 1), (48, 64, 2), (64, 64, 1), (64, 96, 2)):
        layers += [conv(inputs, inputs, 3, stride, groups=inputs), nn.ReLU()]
        layers += [conv(inputs, outputs, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "VGG-like": vgg,
    "ResNet-8": ResNet8,
    "MobileNet-like": mobile,
}


def shifted(images: Tensor) -> Tensor:
    """The batch moved by up to one pixel each way."""
    rows, columns = torch.randint(3, (2,)).tolist()
    return F.pad(images, (1, 1, 1, 1))[:, :, rows : rows + 8, columns : columns + 8]


def trained(name: str, digits: Digits, seed: int, epochs: int = EPOCHS) -> nn.Module:
    """The network of that name in eval mode, trained from a seed."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    batches = [torch.randperm(len(digits.train)).split(64) for _ in range(epochs)]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=sum(map(len, batches))
    )
    for batch in (batch for epoch in batches for batch in epoch):
        output = model(shifted(digits.train[batch]))
        loss = F.cross_entropy(output, digits.train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()
