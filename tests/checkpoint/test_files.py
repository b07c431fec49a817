"""Saving and loading a pruned model: the round trip, and every way in which it can go wrong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fxprune
from fxprune.checkpoint import GRAPH, PLAN, TENSORS, load, save
from fxprune.errors import CheckpointError
from tests.resealing import reseal


class ConvNet(nn.Module):
    """A convolution, a normalisation with buffers, and a classifier."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class TiedNet(nn.Module):
    """An embedding that is also the output layer."""

    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.embedding(tokens))))


@dataclass(frozen=True)
class Case:
    factory: Callable[[], nn.Module]
    inputs: Tensor


CONV = Case(ConvNet, torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6))
TIED = Case(TiedNet, torch.arange(10).reshape(2, 5))


def pruned(case: Case) -> fxprune.PruneResult:
    torch.manual_seed(1)
    model = case.factory()
    for name, buffer in model.named_buffers():  # else the running statistics are those of any net
        if name.endswith("mean"):
            buffer.uniform_(-1, 0)  # not above zero, or the ReLU behind it lets nothing through
        elif name.endswith("var"):
            buffer.uniform_(0.5, 1.5)
    result = fxprune.prune(model.eval(), case.inputs, sparsity=0.5)
    first, second = result.module.eval()(case.inputs)
    assert not torch.allclose(first, second), "the outputs say nothing: they ignore the inputs"
    return result


@pytest.mark.parametrize("case", [CONV, TIED], ids=["conv", "tied"])
def test_round_trip(case: Case, tmp_path: Path) -> None:
    result = pruned(case)
    save(result, tmp_path / "new" / "folder")
    torch.manual_seed(2)  # other initial weights
    loaded = load(tmp_path / "new" / "folder", case.factory, case.inputs)
    expected = result.module.state_dict()
    actual = loaded.state_dict()
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
    assert torch.equal(loaded.eval()(case.inputs), result.module.eval()(case.inputs))


def test_a_module_that_was_trained_further_is_saved_as_it_is(tmp_path: Path) -> None:
    result = pruned(CONV)
    with torch.no_grad():
        for parameter in result.module.parameters():
            parameter.mul_(1.5)
    save((result.module, result.plan), tmp_path)
    loaded = load(tmp_path, ConvNet, CONV.inputs)
    assert torch.equal(loaded.eval()(CONV.inputs), result.module.eval()(CONV.inputs))
    assert all(p.requires_grad for p in loaded.parameters())


def test_saving_twice_replaces_the_files(tmp_path: Path) -> None:
    save(pruned(TIED), tmp_path)
    result = pruned(CONV)
    save(result, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([TENSORS, PLAN, GRAPH])
    loaded = load(tmp_path, ConvNet, CONV.inputs)
    assert torch.equal(loaded.eval()(CONV.inputs), result.module.eval()(CONV.inputs))


def test_tied_parameters_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    save(pruned(TIED), tmp_path)
    names = set(load_file(tmp_path / TENSORS))
    assert len(names & {"embedding.weight", "head.weight"}) == 1
    loaded = load(tmp_path, TiedNet, TIED.inputs)
    assert loaded.get_parameter("embedding.weight") is loaded.get_parameter("head.weight")


def test_the_files_hold_no_pickle(tmp_path: Path) -> None:
    save(pruned(CONV), tmp_path)
    json.loads((tmp_path / PLAN).read_text())
    for file in tmp_path.iterdir():
        with pytest.raises((pickle.UnpicklingError, ValueError, EOFError, IndexError, KeyError)):
            pickle.loads(file.read_bytes())


@pytest.mark.parametrize("file", [TENSORS, PLAN, GRAPH])
def test_a_missing_file(file: str, tmp_path: Path) -> None:
    save(pruned(CONV), tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(
        CheckpointError, match=rf"Cannot read .*{file}.*holds {TENSORS}, {PLAN} and {GRAPH}"
    ):
        load(tmp_path, ConvNet, CONV.inputs)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (TENSORS, rf"{TENSORS} is not the file that was saved"),
        (PLAN, rf"{PLAN} is not the file that was saved"),
        (GRAPH, "is not valid JSON"),
    ],
)
def test_a_damaged_file(file: str, message: str, tmp_path: Path) -> None:
    save(pruned(CONV), tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, ConvNet, CONV.inputs)


def test_files_of_two_saves(tmp_path: Path) -> None:
    save(pruned(CONV), tmp_path / "a")
    save(pruned(TIED), tmp_path / "b")
    (tmp_path / "a" / PLAN).write_text((tmp_path / "b" / PLAN).read_text())
    with pytest.raises(CheckpointError, match=r"plan.json is not the file that was saved"):
        load(tmp_path / "a", ConvNet, CONV.inputs)
    reseal(tmp_path / "a")
    with pytest.raises(CheckpointError, match="belongs to another plan"):
        load(tmp_path / "a", ConvNet, CONV.inputs)


def test_tensors_that_fxprune_did_not_write(tmp_path: Path) -> None:
    save(pruned(CONV), tmp_path)
    save_file(load_file(tmp_path / TENSORS), tmp_path / TENSORS)
    reseal(tmp_path)
    with pytest.raises(CheckpointError, match="its format is None"):
        load(tmp_path, ConvNet, CONV.inputs)


def test_another_model(tmp_path: Path) -> None:
    save(pruned(CONV), tmp_path)
    with pytest.raises(CheckpointError, match="does not fit the model that model_factory made"):
        load(tmp_path, lambda: ConvNet(width=16), CONV.inputs)
    with pytest.raises(CheckpointError, match="does not fit the model that model_factory made"):
        load(tmp_path, TiedNet, TIED.inputs)


def test_another_dtype(tmp_path: Path) -> None:
    save(pruned(CONV), tmp_path)
    with pytest.raises(CheckpointError, match=r"conv.weight is torch.float32 .* and torch.float64"):
        load(tmp_path, lambda: ConvNet().double(), CONV.inputs.double())


def rewrite_tensors(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the stored tensors and keep the metadata."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)
    reseal(path.parent)


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors["norm.running_var"]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["stray"] = torch.zeros(1)


def reshape(tensors: dict[str, Tensor]) -> None:
    tensors["classifier.weight"] = torch.zeros(4, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"missing \['norm.running_var'\], superfluous none"),
        (add, r"missing none, superfluous \['stray'\]"),
        (reshape, r"classifier.weight is torch.float32 \[4, 8\] .* torch.float32 \[4, 4\]"),
    ],
)
def test_tensors_that_do_not_fit(
    change: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    save(pruned(CONV), tmp_path)
    rewrite_tensors(tmp_path / TENSORS, change)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, ConvNet, CONV.inputs)


def test_a_weight_that_was_untied(tmp_path: Path) -> None:
    result = pruned(TIED)
    head = result.module.get_submodule("head")
    head.weight = nn.Parameter(head.weight.detach().clone())
    save(result, tmp_path)
    with pytest.raises(CheckpointError, match=r"missing none, superfluous \['(head|embedding).wei"):
        load(tmp_path, TiedNet, TIED.inputs)


def test_a_module_without_data_is_not_saved(tmp_path: Path) -> None:
    result = pruned(CONV)
    with pytest.raises(CheckpointError, match="on the meta device and has no data to save"):
        save((result.module.to("meta"), result.plan), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_factory_of_a_model_without_data(tmp_path: Path) -> None:
    save(pruned(CONV), tmp_path)

    def on_meta() -> nn.Module:
        with torch.device("meta"):
            return ConvNet()

    with pytest.raises(CheckpointError, match="make it on a real device"):
        load(tmp_path, on_meta, CONV.inputs)


class ExtraState(nn.Module):
    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}


def test_state_that_is_not_a_tensor_is_not_saved(tmp_path: Path) -> None:
    result = pruned(CONV)
    result.module.add_module("counter", ExtraState())
    with pytest.raises(CheckpointError, match=r"counter._extra_state is a dict, not a tensor"):
        save(result, tmp_path)
