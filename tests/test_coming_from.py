"""The README's table for people who come from Torch-Pruning: its cells run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

tp = pytest.importorskip("torch_pruning")

README = Path(__file__).parents[1] / "README.md"
HEAD = "| in Torch-Pruning you write | here you write |"
KEYWORDS = re.compile(r"[a-z_]+=\S")


class Network(nn.Module):
    """With the names that the table mentions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.layer4 = nn.Sequential(nn.Conv2d(16, 20, 3), nn.ReLU(), nn.Conv2d(20, 16, 3))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.layer4(x).mean((2, 3)))


def rows() -> Iterator[tuple[str, str]]:
    lines = README.read_text(encoding="utf-8").partition(HEAD)[2].strip().splitlines()[1:]
    for line in lines:
        if not line.startswith("|"):
            return
        left, right = line.strip("|").split("|")
        yield left, right


def spans(cell: str) -> list[str]:
    """The pieces of code in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def run(code: str, namespace: dict[str, Any]) -> None:
    """Prune a new network with keywords; execute other code, all in one namespace."""
    if not KEYWORDS.match(code):
        exec(code, namespace)
        return
    torch.manual_seed(0)
    namespace["model"] = Network().eval()
    namespace["prune"](**eval(f"dict({code})", namespace))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def namespace(tmp_path: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    names = {"torch": torch, "model": Network().eval(), "x": x, "path": tmp_path / "model.pt"}
    return {**names, "labels": labels, "directory": tmp_path / "saved"}


def test_what_you_write_here_runs(tmp_path: Path) -> None:
    names = namespace(tmp_path)
    x = names["x"]

    def prune(**keywords: Any) -> None:
        model = names["model"]
        model(x).sum().backward()
        result = fxprune.prune(model, x, **{"sparsity": 0.5, **keywords})
        assert parameters(result.module) < parameters(model)
        assert result.module(x).shape == (2, 10)

    importance = tp.importance.GroupTaylorImportance()
    names |= {"fxprune": fxprune, "prune": prune, "importance": importance}
    names |= {"loader": [(x, names["labels"])], "loss": nn.functional.cross_entropy}
    trained: list[nn.Module] = []
    names["train"] = trained.append
    count = 0
    for _, right in rows():
        for code in spans(right):
            run(code, names)
            count += 1
    assert count >= 17
    assert len(trained) == 5
    assert parameters(fxprune.load(tmp_path / "saved")) < parameters(Network())


def test_what_you_wrote_there_runs(tmp_path: Path) -> None:
    names = namespace(tmp_path)
    x = names["x"]

    def prune(importance: Any = None, **keywords: Any) -> None:
        model = names["model"]
        before = parameters(model)
        model(x).sum().backward()
        importance = importance or tp.importance.GroupMagnitudeImportance()
        keywords = {"pruning_ratio": 0.5, "ignored_layers": [model.fc], **keywords}
        tp.pruner.MetaPruner(model, x, importance, **keywords).step()
        assert parameters(model) < before

    names |= {"tp": tp, "prune": prune, "idxs": [0, 1]}
    names |= {"importance": tp.importance.GroupMagnitudeImportance()}
    names["loss"] = nn.functional.cross_entropy(names["model"](x), names["labels"])
    for left, right in rows():
        for code in spans(left):
            if spans(right):
                run(code, names)
            else:  # nothing is written here; what is meant there is known there
                known = inspect.signature(tp.pruner.MetaPruner).parameters
                assert eval(f"dict({code})", names).keys() <= known.keys()
