"""Every module that has sizes among its attributes: they follow, and `repr` tells the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fxprune import Analysis, rewrite, verify
from fxprune.rewriter.modules import FIXES
from tests.masking import TOLERANCE, alive, as_written, error, masked_error, random_plan, traced

WIDTH = 12


class Channels(nn.Module):
    """Conv over [batch, 5, positions…], the module on 12 channels, Conv."""

    def __init__(self, rank: int, module: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        self.first, self.module, self.last = conv(5, WIDTH, 1), module, conv(width, 3, 1)
        self.shape = (5, 4, 4, 4)[: rank + 1]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.module(self.first(x)))


class Features(nn.Module):
    """Linear over [batch, 4, 5], the module on 12 features, Linear."""

    shape = (4, 5)

    def __init__(self, module: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.first, self.module, self.last = nn.Linear(5, WIDTH), module, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.module(self.first(x))
        return self.last(y[0] if isinstance(y, tuple) else y)


class Step(Features):
    """One vector per sample, for modules that take no sequences."""

    shape = (5,)


class Two(Features):
    """The module takes two inputs."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.module(x, x.sin()))


class Words(nn.Module):
    """An embedding of the positions of the largest entries."""

    shape = (4, 5)

    def __init__(self) -> None:
        super().__init__()
        self.module, self.last = nn.Embedding(5, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.module(x.argmax(-1)))


class Bags(nn.Module):
    """An embedding of bags of the positions of the largest entries."""

    shape = (4, 5)

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.module, self.last = nn.EmbeddingBag(5, WIDTH, mode=mode), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.module(x.argmax(-1)))


class Summed(Features):
    """What comes out is summed over a dimension that was split off."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.module(self.first(x)).sum(-1))


@dataclass(frozen=True)
class Case:
    """A model with the module at `.module`, and attributes after half of all units are removed."""

    make: Callable[[], nn.Module]
    expect: Mapping[str, object] = field(default_factory=dict)


CONVOLUTIONS = {
    f"{transposed}{rank}": (rank, getattr(nn, f"Conv{transposed}{rank}d"))
    for transposed in ("", "Transpose")
    for rank in (1, 2, 3)
}


def convolution(rank: int, make: Callable[..., nn.Module], groups: int) -> Case:
    out = WIDTH if groups == WIDTH else 8
    kept = {1: (6, 4, 1), 4: (4, 2, 2), WIDTH: (6, 6, 6)}[groups]
    names = ("in_channels", "out_channels", "groups")
    return Case(
        lambda: Channels(rank, make(WIDTH, out, 3, groups=groups), out),
        dict(zip(names, kept, strict=True)),
    )


CASES: dict[type, list[Case]] = {
    **{
        make: [convolution(rank, make, groups) for groups in (1, 4, WIDTH)]
        for rank, make in CONVOLUTIONS.values()
    },
    nn.Linear: [
        Case(lambda: Features(nn.Linear(WIDTH, 8), 8), {"in_features": 6, "out_features": 4})
    ],
    NonDynamicallyQuantizableLinear: [
        Case(
            lambda: Features(NonDynamicallyQuantizableLinear(WIDTH, 8), 8),
            {"in_features": 6, "out_features": 4},
        )
    ],
    nn.Bilinear: [
        Case(
            lambda: Two(nn.Bilinear(WIDTH, WIDTH, 8), 8),
            {"in1_features": 6, "in2_features": 6, "out_features": 4},
        )
    ],
    **{
        norm: [
            Case(lambda norm=norm, rank=rank: Channels(rank, norm(WIDTH)), {"num_features": 6}),
            Case(lambda norm=norm, rank=rank: Channels(rank, norm(WIDTH, affine=False)), {}),
        ]
        for rank, norm in enumerate((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), 1)
    },
    nn.SyncBatchNorm: [Case(lambda: Channels(2, nn.SyncBatchNorm(WIDTH)), {"num_features": 6})],
    **{
        norm: [
            Case(
                lambda norm=norm, rank=rank: Channels(rank, norm(WIDTH, affine=True)),
                {"num_features": 6},
            ),
            Case(
                lambda norm=norm, rank=rank: Channels(
                    rank, norm(WIDTH, affine=True, track_running_stats=True)
                ),
                {"num_features": 6},
            ),
            Case(lambda norm=norm, rank=rank: Channels(rank, norm(WIDTH)), {"num_features": 6}),
        ]
        for rank, norm in enumerate((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), 1)
    },
    nn.LayerNorm: [
        Case(lambda: Features(nn.LayerNorm(WIDTH)), {"normalized_shape": (6,)}),
        Case(lambda: Features(nn.LayerNorm((4, WIDTH))), {"normalized_shape": (4, 6)}),
        Case(
            lambda: Features(nn.LayerNorm(WIDTH, elementwise_affine=False)),
            {"normalized_shape": (6,)},
        ),
        Case(lambda: Features(nn.LayerNorm(WIDTH, bias=False)), {"normalized_shape": (6,)}),
    ],
    nn.RMSNorm: [Case(lambda: Features(nn.RMSNorm(WIDTH)), {"normalized_shape": (6,)})],
    nn.GroupNorm: [
        Case(lambda: Channels(2, nn.GroupNorm(6, WIDTH)), {"num_groups": 3, "num_channels": 3}),
        Case(
            lambda: Channels(1, nn.GroupNorm(2, WIDTH, affine=False)),
            {"num_groups": 1, "num_channels": 3},
        ),
        Case(lambda: Channels(2, nn.GroupNorm(1, WIDTH)), {"num_groups": 1, "num_channels": 6}),
    ],
    nn.Embedding: [Case(Words, {"num_embeddings": 5, "embedding_dim": 6})],
    nn.EmbeddingBag: [
        Case(lambda: Bags("sum"), {"num_embeddings": 5, "embedding_dim": 6}),
        Case(lambda: Bags("mean"), {"num_embeddings": 5, "embedding_dim": 6}),
    ],
    nn.PReLU: [
        Case(lambda: Channels(2, nn.PReLU(WIDTH)), {"num_parameters": 6}),
        Case(lambda: Channels(2, nn.PReLU()), {"num_parameters": 1}),
    ],
    nn.LSTM: [
        Case(
            lambda: Features(nn.LSTM(WIDTH, 8, batch_first=True), 8),
            {"input_size": 6, "hidden_size": 4},
        ),
        Case(
            lambda: Features(nn.LSTM(WIDTH, 8, batch_first=True, proj_size=6), 6),
            {"input_size": 6, "hidden_size": 8, "proj_size": 3},
        ),
    ],
    nn.GRU: [
        Case(
            lambda: Features(nn.GRU(WIDTH, 8, batch_first=True, bias=False), 8),
            {"input_size": 6, "hidden_size": 4},
        )
    ],
    nn.RNN: [
        Case(
            lambda: Features(nn.RNN(WIDTH, 8, batch_first=True), 8),
            {"input_size": 6, "hidden_size": 4},
        )
    ],
    **{
        cell: [Case(lambda cell=cell: Step(cell(WIDTH, 8), 8), {"input_size": 6, "hidden_size": 4})]
        for cell in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
    },
    nn.Unflatten: [
        Case(lambda: Summed(nn.Unflatten(2, (3, 4)), 3), {"unflattened_size": (2, 2)}),
        Case(lambda: Summed(nn.Unflatten(-1, (3, -1)), 3), {}),
    ],
}

REPLACED_BY_TRACE = (nn.ChannelShuffle, nn.Unflatten)
"""`trace` turns these into functions; graphs that come from elsewhere may contain the module."""


def captured(kind: type, model: nn.Module) -> tuple[fx.GraphModule, Analysis]:
    capture = as_written if kind in REPLACED_BY_TRACE else traced
    return capture(model, torch.randn(2, *model.shape).double())


EACH = [(kind, case) for kind, cases in CASES.items() for case in cases]
IDS = [f"{kind.__name__}-{i}" for kind, cases in CASES.items() for i in range(len(cases))]


def test_every_fix_has_a_case() -> None:
    assert {*CASES, nn.ChannelShuffle} == set(FIXES)


def rebuilt(module: nn.Module) -> nn.Module:
    """A module made by running the text that `repr` shows."""
    names = {**vars(nn), NonDynamicallyQuantizableLinear.__name__: NonDynamicallyQuantizableLinear}
    return eval(repr(module), {**names, "torch": torch})


@pytest.mark.parametrize(("kind", "case"), EACH, ids=IDS)
def test_module(kind: type, case: Case) -> None:
    model = alive(case.make())
    graph, analysis = captured(kind, model)
    original = graph.get_submodule("module")
    assert type(original) is kind
    before = repr(original)
    plan = random_plan(analysis)
    pruned = rewrite(graph, plan)
    module = pruned.get_submodule("module")
    inputs = torch.randn(3, *model.shape).double()
    if all(plan.group(name).maskable for name in plan.kept_units):
        assert masked_error(model, plan, pruned, inputs) <= TOLERANCE
    report = verify(graph, plan, pruned, inputs)
    assert report.ok, report
    assert {name: getattr(module, name) for name in case.expect} == case.expect
    assert repr(original) == before
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    fresh = rebuilt(module)
    assert {name: tensor.shape for name, tensor in fresh.state_dict().items()} == shapes


@pytest.mark.parametrize(("kind", "case"), EACH, ids=IDS)
def test_a_module_rebuilt_from_its_repr_computes_the_same(kind: type, case: Case) -> None:
    """Whatever decides the result is an attribute that tells the truth."""
    model = alive(case.make())
    graph, analysis = captured(kind, model)
    pruned = rewrite(graph, random_plan(analysis, 1, keep=0.3))
    inputs = torch.randn(3, *model.shape).double()
    expected = pruned(inputs).detach()
    fresh = rebuilt(pruned.module).double().eval()
    fresh.load_state_dict(pruned.module.state_dict())
    pruned.module = fresh
    assert error(pruned(inputs).detach(), expected) <= TOLERANCE


def test_layers_of_a_recurrent_module() -> None:
    """Two layers and two directions: every layer's weights, and the flat list that torch reads."""
    model = alive(Features(nn.LSTM(WIDTH, 8, 2, batch_first=True, bidirectional=True), 16))
    graph, analysis = traced(model, torch.randn(2, 4, 5).double())
    plan = random_plan(analysis)
    pruned, inputs = rewrite(graph, plan), torch.randn(3, 4, 5).double()
    assert verify(graph, plan, pruned, inputs).ok
    lstm = pruned.module
    assert all(a is b for a, b in zip(lstm._flat_weights, lstm.parameters(), strict=True))
    names = ("weight_ih_l1", "weight_hh_l0_reverse", "bias_ih_l1_reverse")
    sizes = [tuple(getattr(lstm, name).shape) for name in names]
    hidden = lstm.hidden_size
    assert sizes == [(4 * hidden, 2 * hidden), (4 * hidden, hidden), (4 * hidden,)]


def test_a_channel_shuffle_becomes_an_index() -> None:
    """After pruning the groups are no longer equal: the module gives way to its permutation."""
    model = alive(Channels(2, nn.ChannelShuffle(3)))
    graph, analysis = captured(nn.ChannelShuffle, model)
    plan = random_plan(analysis)
    pruned = rewrite(graph, plan)
    assert masked_error(model, plan, pruned, torch.randn(3, *model.shape).double()) <= TOLERANCE
    assert not any(isinstance(module, nn.ChannelShuffle) for module in pruned.modules())
    (node,) = [n for n in pruned.graph.nodes if n.target is torch.index_select]
    assert pruned.get_buffer(str(node.args[2].target)).numel() == 6
