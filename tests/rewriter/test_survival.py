"""What a rewrite must leave as it was, and what the result must still be able to do."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune import Analysis, PruningPlan, rewrite, slicing, verify
from tests.masking import TOLERANCE, alive, error, masked_error, random_plan, traced


class Net(nn.Module):
    """A residual network with a concatenation, a grouped convolution, dropout and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.back = nn.Conv2d(12, 8, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 5)
        self.register_buffer("gain", torch.rand(8) + 0.5)
        self.register_buffer("hidden", torch.rand(8) + 0.5, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.back(torch.relu(self.grouped(x)))
        y = x.mean((2, 3))
        return self.head(self.drop(torch.cat([y * self.gain, y.sin() * self.hidden], 1)))


IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double() - 0.5
Made = tuple[nn.Module, fx.GraphModule, Analysis, PruningPlan, fx.GraphModule]


@pytest.fixture
def made() -> Made:
    model = alive(Net())
    graph, analysis = traced(model, IMAGES)
    plan = random_plan(analysis)
    return model, graph, analysis, plan, rewrite(graph, plan)


# -- the original ----------------------------------------------------------------------------------


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in [*module.named_parameters(), *module.named_buffers()]}


def same(before: dict[str, Tensor], module: nn.Module) -> bool:
    after = snapshot(module)
    return before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_the_originals_are_untouched() -> None:
    model = alive(Net())
    model.train()
    state, attributes = snapshot(model), {n: set(vars(m)) for n, m in model.named_modules()}
    ids = {name: id(parameter) for name, parameter in model.named_parameters()}
    graph = fxprune.trace(model, IMAGES)
    known, code = {n: set(vars(m)) for n, m in graph.named_modules()}, graph.code
    analysis = fxprune.analyze(graph)
    pruned = rewrite(graph, random_plan(analysis))
    pruned.train()
    pruned(IMAGES).sum().backward()
    with torch.no_grad():
        for tensor in pruned.state_dict().values():
            tensor.zero_()
    assert same(state, model)
    assert same(state, graph)
    assert {n: set(vars(m)) for n, m in model.named_modules()} == attributes
    assert {n: set(vars(m)) for n, m in graph.named_modules()} == known
    assert graph.code == code
    assert ids == {name: id(parameter) for name, parameter in model.named_parameters()}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_names_stay(made: Made) -> None:
    model, _, _, _, pruned = made
    assert pruned.state_dict().keys() == model.state_dict().keys()
    assert [n for n, _ in pruned.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert "hidden" in dict(pruned.named_buffers())
    assert "hidden" not in pruned.state_dict()


def test_an_empty_plan_is_the_identity_to_the_bit(made: Made) -> None:
    model, graph, analysis, _, _ = made
    twin = rewrite(graph, PruningPlan.build(analysis, {}))
    assert torch.equal(twin(IMAGES), model(IMAGES))
    assert same(snapshot(model), twin)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    assert [n.name for n in twin.graph.nodes] == [n.name for n in graph.graph.nodes]


def test_sharing(made: Made) -> None:
    """With share=True what keeps all entries is the same object; without, nothing is."""
    model, graph, analysis, _, _ = made
    name = "grouped.weight:0"
    (group,) = [g for g in analysis.groups if g.name == name]
    plan = random_plan(analysis, 0, lambda g: g.name == name)
    changed = {member.parameter for member in group.members}
    assert changed == {"grouped.weight", "grouped.bias", "back.weight"}
    originals = dict([*model.named_parameters(), *model.named_buffers()])
    for share in (True, False):
        pruned = rewrite(graph, plan, share=share)
        now = dict([*pruned.named_parameters(), *pruned.named_buffers()])
        same_object = {n for n in originals if now[n] is originals[n]}
        same_memory = {n for n in originals if now[n].data_ptr() == originals[n].data_ptr()}
        assert same_object == same_memory == ((set(originals) - changed) if share else set())
        assert masked_error(model, plan, pruned, IMAGES) <= TOLERANCE


# -- state -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)).to(dtype)
    inputs = torch.randn(4, 5, dtype=dtype)
    graph = fxprune.trace(model, inputs)
    plan = random_plan(fxprune.analyze(graph))
    pruned = rewrite(graph, plan)
    assert {p.dtype for p in pruned.parameters()} == {dtype}
    assert pruned(inputs).dtype == dtype
    report = verify(graph, plan, pruned, inputs)
    assert report.ok, report


def test_mixed_dtypes() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8, dtype=torch.bfloat16), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.bfloat16()).float())

    graph = fxprune.trace(Mixed(), torch.randn(2, 5))
    pruned = rewrite(graph, random_plan(fxprune.analyze(graph)))
    assert (pruned.a.weight.dtype, pruned.b.weight.dtype) == (torch.bfloat16, torch.float32)


def test_frozen_weights_stay_frozen() -> None:
    model = alive(Net())
    model.stem.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    graph, analysis = traced(model, IMAGES)
    pruned = rewrite(graph, random_plan(analysis))
    flags = {name: p.requires_grad for name, p in pruned.named_parameters()}
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert not all(flags.values())
    assert all(p.is_leaf and isinstance(p, nn.Parameter) for p in pruned.parameters())


def test_memory_formats() -> None:
    model = alive(Net()).to(memory_format=torch.channels_last)
    graph, analysis = traced(model, IMAGES.to(memory_format=torch.channels_last))
    pruned = rewrite(graph, random_plan(analysis))
    weight = pruned.stem.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    plain, analysis = traced(alive(Net()), IMAGES)
    assert rewrite(plain, random_plan(analysis)).stem.weight.is_contiguous()


def test_the_memory_format_of_a_large_pointwise_convolution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its weight has either format; its strides decide which one the images have after it."""
    monkeypatch.setattr(slicing, "_BLOCK", 1)
    graph, analysis = traced(alive(Net()), IMAGES)
    pruned = rewrite(graph, random_plan(analysis))
    weight = pruned.back.weight
    assert weight.stride() == torch.empty(weight.shape).stride()
    images = torch.rand(2, weight.shape[1], 8, 8, dtype=torch.float64)
    assert pruned.back(images).is_contiguous()


def test_results_own_their_memory(made: Made) -> None:
    """No pruned tensor is a view that keeps the dense storage alive."""
    for tensor in made[4].state_dict().values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


class Tied(nn.Module):
    """One matrix embeds and reads out; one block is used twice; two layers share a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.block = nn.Linear(8, 8)
        self.left, self.right = nn.Linear(8, 6), nn.Linear(8, 6)
        self.right.bias = self.left.bias
        self.join = nn.Linear(6, 8)
        self.read = nn.Linear(8, 11, bias=False)
        self.read.weight = self.words.weight
        self.again = self.block

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x)
        x = x + self.block(x)
        x = x + self.again(x)
        return self.read(x + self.join(self.left(x) * self.right(x)))


def test_ties_survive() -> None:
    model = alive(Tied())
    words = torch.randint(0, 11, (2, 7))
    graph, analysis = traced(model, words)
    plan = random_plan(analysis)
    pruned = rewrite(graph, plan)
    assert pruned.read.weight is pruned.words.weight
    assert pruned.left.bias is pruned.right.bias
    assert len(list(pruned.parameters())) == len(list(model.parameters()))
    modules = [n.target for n in pruned.graph.nodes if n.op == "call_module"]
    used = {id(pruned.get_submodule(str(t))) for t in modules if t in ("block", "again")}
    assert len(used) == 1
    assert masked_error(model, plan, pruned, torch.randint(0, 11, (3, 7))) <= TOLERANCE
    assert pruned.words.embedding_dim == 4


def test_training_flags_and_settings() -> None:
    model = alive(Net())
    graph, analysis = traced(model, IMAGES)
    graph.train()
    graph.norm.eval()
    graph.norm.momentum = 0.25
    graph.drop.p = 0.125
    graph.stem.note = {"kept": [1, 2]}
    pruned = rewrite(graph, random_plan(analysis))
    flags = {name: module.training for name, module in graph.named_modules()}
    assert {name: module.training for name, module in pruned.named_modules()} == flags
    assert not pruned.norm.training
    assert pruned.drop.training
    assert (pruned.norm.momentum, pruned.drop.p) == (0.25, 0.125)
    assert pruned.stem.note == {"kept": [1, 2]}
    assert pruned.stem.note is not graph.stem.note


def test_hooks_do_not_come_along() -> None:
    graph, analysis = traced(alive(Net()), IMAGES)
    calls: list[int] = []
    graph.stem.register_forward_hook(lambda *_: calls.append(1))
    pruned = rewrite(graph, random_plan(analysis))
    calls.clear()
    pruned(IMAGES)
    assert not calls
    graph(IMAGES)
    assert calls == [1]


# -- what the result can do ------------------------------------------------------------------------


def test_it_trains(made: Made) -> None:
    """One step in train mode changes every parameter; batch norm follows, dropout drops."""
    pruned = made[4]
    pruned.train()
    before = snapshot(pruned)
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    loss = pruned(IMAGES).square().sum()
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in pruned.parameters())
    optimizer.step()
    after = snapshot(pruned)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {*dict(pruned.named_parameters()), "norm.running_mean", "norm.running_var"}
    assert moved >= expected - {"stem.bias"}  # batch norm takes the mean, and with it the bias
    assert int(after["norm.num_batches_tracked"]) == int(before["norm.num_batches_tracked"]) + 1
    assert not torch.equal(pruned(IMAGES), pruned(IMAGES))
    pruned.eval()
    assert torch.equal(pruned(IMAGES), pruned(IMAGES))


def test_it_copies_and_pickles(made: Made) -> None:
    pruned = made[4]
    expected = pruned(IMAGES)
    clone = copy.deepcopy(pruned)
    again = pickle.loads(pickle.dumps(pruned))
    for twin in (clone, again):
        assert torch.equal(twin(IMAGES), expected)
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in pruned.parameters()}


def test_its_state_round_trips(made: Made) -> None:
    _, graph, _, plan, pruned = made
    file = io.BytesIO()
    torch.save(pruned.state_dict(), file)
    file.seek(0)
    other = rewrite(graph, plan)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(other(IMAGES), pruned(IMAGES))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore")
def test_it_compiles(made: Made, backend: str) -> None:
    pruned = made[4]
    compiled = torch.compile(pruned, backend=backend, fullgraph=True)
    for batch in (2, 5):
        inputs = torch.randn(batch, 3, 8, 8).double()
        assert error(compiled(inputs).detach(), pruned(inputs).detach()) <= TOLERANCE


@pytest.mark.filterwarnings("ignore")
def test_it_exports_with_a_dynamic_batch(made: Made) -> None:
    pruned = made[4]
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(pruned, (IMAGES,), dynamic_shapes=({0: batch},))
    inputs = torch.randn(7, 3, 8, 8).double()
    assert error(program.module()(inputs).detach(), pruned(inputs).detach()) <= TOLERANCE


def test_it_can_be_pruned_again(made: Made) -> None:
    """A second round on the pruned graph itself, and on a fresh trace of it."""
    pruned = made[4]
    for graph in (pruned, fxprune.trace(pruned, IMAGES)):
        analysis = fxprune.analyze(graph, strict=True)
        plan = random_plan(analysis, 3)
        slim = rewrite(graph, plan)
        assert masked_error(graph, plan, slim, torch.randn(5, 3, 8, 8).double()) <= TOLERANCE
        assert slim.stem.out_channels < pruned.stem.out_channels < 8
        assert verify(graph, plan, slim, IMAGES).ok


def test_two_rounds_of_prune() -> None:
    model = alive(Net())
    first = fxprune.prune(model, IMAGES, sparsity=0.25)
    second = fxprune.prune(first.module, IMAGES, sparsity=0.5)
    assert first.module.stem.out_channels == 6  # 3 of 4 in both conv groups
    assert second.module.stem.out_channels == 4
    assert second.report.parameters_before == first.report.parameters_after


class Outputs(nn.Module):
    """A dictionary with a tuple in it, and an argument with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, scale: float = 2.0) -> dict[str, object]:
        y = self.b(torch.relu(self.a(x))) * scale
        return {"logits": y, "more": (y.sum(), [y.exp()])}


def test_inputs_and_outputs_keep_their_structure() -> None:
    model = alive(Outputs())
    graph, analysis = traced(model, torch.randn(2, 5).double())
    pruned = rewrite(graph, random_plan(analysis))
    result = pruned(x=torch.randn(3, 5).double())
    assert list(result) == ["logits", "more"]
    assert isinstance(result["more"], tuple)
    assert isinstance(result["more"][1], list)
    assert result["logits"].shape == (3, 3)


def per_head() -> nn.Module:
    return nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(per_head, (2, 5, 12)), (lambda: nn.MultiheadAttention(12, 3, batch_first=True), (2, 5, 12))],
)
def test_attention_modules(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """Fewer and narrower heads, in each head other dimensions; two rounds."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(12, 12), make(), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            attention = isinstance(self.inner, nn.MultiheadAttention)
            y = self.inner(x, x, x, need_weights=False)[0] if attention else self.inner(x)
            return self.last(y)

    graph, analysis = traced(alive(Wrapped()), torch.randn(*shape).double())
    assert max(group.contexts for group in analysis.groups) == 3
    inputs = torch.randn(3, *shape[1:]).double()
    for seed in range(3):
        plan = random_plan(analysis, seed, keep=0.6)
        pruned = rewrite(graph, plan)
        report = verify(graph, plan, pruned, inputs)
        assert report.ok, report
    again = fxprune.analyze(pruned)
    plan = random_plan(again, 1)
    assert verify(pruned, plan, rewrite(pruned, plan), inputs).ok
