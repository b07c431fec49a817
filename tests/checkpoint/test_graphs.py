"""Graphs from their descriptions: what comes back, and what is refused."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune import CheckpointError
from fxprune.checkpoint import GRAPH, PLAN, TENSORS, vocabulary
from fxprune.checkpoint.values import Unknown, decode, encode
from fxprune.modules import DropPath
from tests.resealing import reseal


class Block(nn.Module):
    """A recurrent layer, tied parameters, a table, a mode, and an output class of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.recurrent = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.mix = nn.Linear(16, 8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("order", torch.arange(8).flip(0), persistent=False)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        found, _ = self.recurrent(self.embedding(tokens))
        hidden = torch.relu(self.mix(found))
        return {"logits": self.head(self.drop(hidden)), "hidden": hidden[..., self.order]}


TOKENS = torch.arange(10).reshape(2, 5)


def saved(folder: Path, model: nn.Module | None = None) -> fxprune.PruneResult:
    torch.manual_seed(3)
    result = fxprune.prune((model or Block()).eval(), TOKENS, sparsity=0.5)
    assert fxprune.save(result, folder) == ()
    return result


class Narrow(nn.Module):
    """Scales two heads of x: [batch, length, 8] of 15 to 33 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.scale = nn.Parameter(torch.randn(33, 8)), nn.Parameter(torch.randn(2, 1))
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, length = x.shape[:2]
        h = self.scale * self.first(x + self.table[:length]).view(batch, length, 2, 4)
        h = self.last(h.reshape(batch, length, -1))
        return h + F.max_pool1d(x.transpose(1, 2), 15).mean()


def test_groups_of_views_come_back_where_no_other_sizes_can_be_tried(tmp_path: Path) -> None:
    # 20 positions can be neither doubled nor halved: that no view regroups was seen at capture.
    result = fxprune.prune(Narrow().eval(), torch.randn(2, 20, 8), sparsity=0.5)
    assert result.module.meta["fxprune"].dynamic == {"x": (0, 1)}
    assert fxprune.save(result, tmp_path) == ()
    expected, loaded = (fxprune.analyze(m) for m in (result.module, fxprune.load(tmp_path)))
    assert expected.groups
    assert [(g.name, g.size) for g in loaded.groups] == [(g.name, g.size) for g in expected.groups]


def test_everything_of_a_graph_comes_back(tmp_path: Path) -> None:
    result = saved(tmp_path)
    loaded = fxprune.load(tmp_path)
    expected, actual = result.module(TOKENS), loaded(TOKENS)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert list(loaded.state_dict()) == list(result.module.state_dict())
    assert loaded.get_parameter("head.weight") is loaded.get_parameter("embedding.weight")
    assert not loaded.training
    assert loaded.train().get_submodule("drop").training
    assert str(loaded.get_submodule("recurrent")) == str(result.module.get_submodule("recurrent"))
    assert "order" not in loaded.state_dict()


def test_what_was_loaded_can_be_pruned_again(tmp_path: Path) -> None:
    saved(tmp_path)
    loaded = fxprune.load(tmp_path)
    analysis = fxprune.analyze(loaded)
    again = fxprune.plan(analysis, sparsity=0.5)
    smaller = fxprune.rewrite(loaded, again)
    assert fxprune.verify(loaded, again, smaller, TOKENS).ok


def test_memory_format_and_frozen_parameters_survive(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    model = model.to(memory_format=torch.channels_last)
    model[0].weight.requires_grad_(False)
    images = torch.randn(2, 3, 8, 8)
    result = fxprune.prune(model, images, sparsity=0.5)
    fxprune.save(result, tmp_path)
    for loaded in (fxprune.load(tmp_path), fxprune.load(tmp_path, lambda: model)):
        first, last = loaded.get_parameter("0.weight"), loaded.get_parameter("2.weight")
        assert not first.requires_grad
        assert last.requires_grad
        assert last.stride() == result.module.get_parameter("2.weight").stride()
        assert torch.equal(loaded(images), result.module(images))


def test_the_class_is_made_without_memory_for_its_parameters(tmp_path: Path) -> None:
    result = saved(tmp_path)
    made: list[nn.Module] = []

    def factory() -> nn.Module:
        made.append(Block())
        return made[-1]

    loaded = fxprune.load(tmp_path, factory)
    full = [p.untyped_storage().nbytes() for p in made[0].parameters()]
    assert max(full) <= 8, "a parameter of the original took memory"
    assert torch.equal(loaded(TOKENS)["logits"], result.module(TOKENS)["logits"])


class Mixed(nn.Module):
    """Two floating dtypes and a complex one, a guard on a size, a free length."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(4, 8, dtype=torch.bfloat16)
        self.wide = nn.Linear(8, 2, dtype=torch.float64)
        self.phase = nn.Parameter(torch.randn(2, dtype=torch.complex64))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("mask", torch.tensor([True, False]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(torch.relu(self.narrow(x)).double()) + self.count
        return torch.where(self.mask, y, y * self.phase.abs())


@pytest.mark.parametrize("factory", [None, Mixed])
def test_dtypes_guards_and_free_sizes_survive(factory: Any, tmp_path: Path) -> None:
    def inputs(length: int, features: int = 4) -> Tensor:
        return torch.randn(length, features, dtype=torch.bfloat16)

    result = fxprune.prune(Mixed(), inputs(3), sparsity=0.5)
    fxprune.save(result, tmp_path)
    loaded = fxprune.load(tmp_path, factory)
    for name, tensor in result.module.state_dict().items():
        found = loaded.state_dict()[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found, tensor), name
    assert "mask" not in loaded.state_dict()
    longer = inputs(7)
    assert torch.equal(loaded(longer), result.module(longer))
    messages = []
    for module in (result.module, loaded):
        with pytest.raises(fxprune.TraceError) as refused:
            module(inputs(3, 5))
        messages.append(str(refused.value))
    assert messages[0] == messages[1]


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class NeedsItsClass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Doubled.apply(self.a(x))  # type: ignore[no-untyped-call]
        return self.b(y)


def test_a_graph_that_needs_its_class(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    result = fxprune.prune(NeedsItsClass(), x, sparsity=0.5)
    with pytest.warns(fxprune.ClassNeededWarning, match="CustomGradient"):
        reasons = fxprune.save(result, tmp_path)
    assert len(reasons) == 1
    with pytest.raises(CheckpointError, match="needs its class"):
        fxprune.load(tmp_path)
    assert torch.equal(fxprune.load(tmp_path, NeedsItsClass)(x), result.module(x))


# -- Changes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [None, Block])
def test_one_changed_byte_is_refused(factory: Any, tmp_path: Path) -> None:
    saved(tmp_path)
    whole = (tmp_path / TENSORS).read_bytes()
    for place in (len(whole) - 1, len(whole) - 100):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (tmp_path / TENSORS).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="was changed"):
            fxprune.load(tmp_path, factory)
    (tmp_path / TENSORS).write_bytes(whole)
    fxprune.load(tmp_path, factory)


@pytest.mark.parametrize("factory", [None, Block])
def test_one_changed_index_is_refused(factory: Any, tmp_path: Path) -> None:
    saved(tmp_path)
    plan = json.loads((tmp_path / PLAN).read_text())
    kept = next(iter(plan["kept"].values()))
    kept[0] = next(i for i in range(8) if i not in kept and i < kept[1]) if kept[0] else 1
    (tmp_path / PLAN).write_text(json.dumps(plan))
    with pytest.raises(CheckpointError, match="was changed"):
        fxprune.load(tmp_path, factory)


def first_node(content: dict[str, Any], op: str) -> list[Any]:
    return next(row for row in content["graph"]["nodes"] if row[0] == op)


def call(target: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        first_node(content, "call_function")[2] = target

    return change


def method(name: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        first_node(content, "call_function")[0:3:2] = ["call_method", name]

    return change


def rename(content: dict[str, Any]) -> None:
    first_node(content, "call_module")[1] = "x = 1\nimport os\ny"


def keyword(content: dict[str, Any]) -> None:
    first_node(content, "call_module")[4] = {"a=1)\nimport os\n(b": 1}


def path(content: dict[str, Any]) -> None:
    first_node(content, "call_module")[2] = 'mix")\nimport os\n("'


def module_class(content: dict[str, Any]) -> None:
    content["graph"]["modules"]["mix"]["class"] = "torch.nn.Sequential"


def module_state(content: dict[str, Any]) -> None:
    content["graph"]["modules"]["mix"]["state"]["forward"] = {"function": "torch.relu"}


def class_name(content: dict[str, Any]) -> None:
    content["graph"]["class"] = "A:\n import os\nclass B"


def hook(content: dict[str, Any]) -> None:
    content["graph"]["modules"]["mix"]["state"]["_forward_hooks"] = {"dict": []}


def attribute_name(content: dict[str, Any]) -> None:
    content["graph"]["attributes"]["__dict__"] = {"value": {"dict": []}}


def attribute(content: dict[str, Any]) -> None:
    row = first_node(content, "call_function")
    row[2:4] = ["builtins.getattr", [row[3][0], "__class__"]]


def escape(*rows: list[Any]) -> Callable[[dict[str, Any]], None]:
    """Nodes before the output that would reach Python's builtins when the module runs."""

    def change(content: dict[str, Any]) -> None:
        content["graph"]["nodes"][-1:-1] = [[*row, {}, {}] for row in rows]

    return change


def deep(content: dict[str, Any]) -> None:
    value: list[Any] = []
    for _ in range(300):  # JSON and Python's functions can do it; its compiler cannot
        value = [value]
    first_node(content, "call_function")[3].append(value)


GLOBALS = escape(["get_attr", "escape", "mix.reset_parameters.__globals__", []])
CLASS = escape(["get_attr", "escape", "mix.__class__", []])
METHOD = escape(["call_module", "escape", "mix.reset_parameters", []])
INSIDE = escape(
    ["call_function", "escape", "builtins.max", [[1], {"function": "builtins.getattr"}]]
)
OBJECT = escape(
    ["call_function", "escape", "fxprune.new_object", [{"function": "torch.relu"}, {"dict": []}]]
)
UNCHECKED = escape(["call_function", "escape", "ops.aten._unsafe_index.Tensor", []])


@pytest.mark.parametrize(
    "change",
    [
        *(GLOBALS, CLASS, METHOD, INSIDE, OBJECT, UNCHECKED, deep),
        *map(call, ("os.system", "builtins.eval", "builtins.exec", "torch.load", "torch.save")),
        *map(call, ("torch.hub.load", "operator.methodcaller", "ops.aten.from_file", "ops.x.y")),
        *map(call, ({"output": "A(object):\n"}, {"namedtuple": ["A", ["import os"]]}, 3, None)),
        *map(method, ("__reduce__", "apply_", "register_hook", "untyped_storage", "numpy", "")),
        rename,
        keyword,
        path,
        module_class,
        module_state,
        class_name,
        hook,
        attribute,
        attribute_name,
    ],
)
def test_a_graph_may_not_say_everything(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    saved(tmp_path)
    content = json.loads((tmp_path / GRAPH).read_text())
    change(content)
    (tmp_path / GRAPH).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="changed after it was saved"):
        fxprune.load(tmp_path)
    saved(tmp_path)
    reseal(tmp_path, change)
    with pytest.raises(CheckpointError) as refused:
        fxprune.load(tmp_path)
    assert "fingerprint" not in str(refused.value), "which an attacker can make fit"


def test_an_honest_change_is_read_but_not_the_saved_graph(tmp_path: Path) -> None:
    """The control of the test above: it is not the sealing that is refused."""
    saved(tmp_path)
    reseal(tmp_path)
    fxprune.load(tmp_path)
    reseal(tmp_path, call("operator.truediv"))
    with pytest.raises(CheckpointError, match="fingerprints differ"):
        fxprune.load(tmp_path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    reseal(tmp_path, lambda content: content.update(version=99))
    with pytest.raises(CheckpointError, match="version 99, and this fxprune reads version 1"):
        fxprune.load(tmp_path)


# -- Values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, -1.5, float("inf"), 2 + 1j, "a'b", (1, (2, [3])), {"a": 1, 2: (3,)}),
        *(slice(None, 3), ..., torch.float16, torch.device("cpu"), torch.channels_last),
        *(
            torch.Size((2, 3)),
            range(2, 9, 3),
            torch.relu,
            operator.add,
            torch.ops.aten.view.default,
        ),
    ],
)
def test_values_survive(value: Any) -> None:
    found = decode(json.loads(json.dumps(encode(value))))
    assert type(found) is type(value)
    assert found == value


def test_a_value_that_only_code_can_make() -> None:
    for value in (object(), print, torch.load, lambda x: x, DropPath(0.1)):
        with pytest.raises(Unknown):
            encode(value)


def test_every_module_of_the_vocabulary_has_attributes() -> None:
    for name, kind in vocabulary.modules().items():
        assert "forward" not in vocabulary.attributes(kind), name


def test_nothing_in_the_vocabulary_reads_or_writes_files() -> None:
    names = {*vocabulary.methods(), *vocabulary._functions_by_name()}
    for word in ("load", "save", "file", "eval", "exec", "import", "hook", "storage", "numpy"):
        assert {n for n in names if word in n} <= {"storage_offset"}, word


def test_a_file_may_call_pythons_operators_but_those_that_reach_attributes_or_call() -> None:
    never = """attrgetter call concat countOf delitem iconcat ilshift indexOf irshift is_ is_not
    itemgetter length_hint methodcaller""".split()
    newer = {"is_none", "is_not_none"}  # of Python 3.14
    allowed = {
        n.removeprefix("operator.") for n in vocabulary._functions_by_name() if "operator." in n
    }
    assert allowed == set(operator.__all__) - set(never) - newer
