"""What becomes a group, what its members do for it, and which contexts it gets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fxprune import Analysis, rewrite, slicing, verify
from fxprune.analysis import analysis_of
from tests.masking import alive, random_plan, traced
from tests.rules.samples.contractions import grouped_mm
from tests.rules.samples.vision import ops


def analysed(model: nn.Module, *inputs: Tensor) -> Analysis:
    return traced(alive(model), *(x.double() for x in inputs))[1]


class Layers(nn.Module):
    """A bias that is reshaped before it is added, a normalisation, weights on either side."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.shift, self.gain = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4, 1, 1))
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.norm(self.first(x)) + self.shift.view(1, -1, 1, 1)) * self.gain
        return self.last(x)


def test_roles() -> None:
    (group,) = analysed(Layers(), torch.randn(2, 3, 5, 5)).groups
    assert {member.parameter: member.role for member in group.members} == {
        "first.weight": "producer",
        "first.bias": "bias",
        "norm.weight": "norm",
        "norm.bias": "norm",
        "norm.running_mean": "norm",
        "norm.running_var": "norm",
        "shift": "bias",
        "gain": "norm",
        "last.weight": "consumer",
    }


class Matrix(nn.Module):
    """A weight whose rows, not columns, read the units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.matrix = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) @ self.matrix


def test_a_weight_that_reads_along_its_first_dimension_consumes() -> None:
    (group,) = analysed(Matrix(), torch.randn(2, 3)).groups
    roles = {member.parameter: member.role for member in group.members}
    assert roles == {"first.weight": "producer", "first.bias": "bias", "matrix": "consumer"}


class WithConstants(nn.Module):
    """Parameters that meet tensors of ones and twos before anything of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(8, 3))
        self.scale, self.shift = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x @ (self.first * torch.full((1,), 2.0)).T
        return self.last(
            x * (torch.ones(8) + self.scale) + self.shift * torch.ones_like(self.shift)
        )


def test_constants_say_nothing_of_roles() -> None:
    (group,) = analysed(WithConstants(), torch.randn(2, 3)).groups
    roles = {member.parameter: member.role for member in group.members}
    expected = {"first": "producer", "scale": "norm", "shift": "bias", "last.weight": "consumer"}
    assert roles == expected


class Deformable(nn.Module):
    """A convolution whose taps are displaced, between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(6, 2, 1)
        self.weight, self.shift = nn.Parameter(torch.randn(6, 4, 1, 1)), nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        moved, none = x[:, :2].sigmoid(), x.new_zeros(0, 1)
        sizes = (1, 1, 0, 0, 1, 1, 1, 1, False)
        x = self.first(x)
        return self.last(ops.deform_conv2d(x, self.weight, moved, none, self.shift, *sizes))


def test_a_deformable_convolution_reads_channels_and_makes_others() -> None:
    groups = analysed(Deformable(), torch.randn(2, 3, 5, 5)).groups
    after, before = ({m.parameter: m.role for m in group.members} for group in groups)
    assert before == {"first.weight": "producer", "first.bias": "bias", "weight": "consumer"}
    assert after == {"weight": "producer", "shift": "bias", "last.weight": "consumer"}


class Recurrent(nn.Module):
    """Hidden units, and a vector that weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.weigh = nn.GRU(3, 4, batch_first=True), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x)[0][:, -1] @ self.weigh


def test_the_vectors_of_a_recurrent_layer_are_biases() -> None:
    (group,) = analysed(Recurrent(), torch.randn(2, 5, 3)).groups
    roles = {member.parameter: member.role for member in group.members}
    assert {name for name, role in roles.items() if role == "bias"} == {
        "cells.bias_ih_l0",
        "cells.bias_hh_l0",
    }
    assert roles["weigh"] == "consumer"


class SortedByExpert(nn.Module):
    """Two matrices for each of three experts, whose rows stand side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 4, 8)), nn.Parameter(torch.randn(3, 8, 2))
        self.register_buffer("ends", torch.tensor([1, 4, 5]))

    def forward(self, x: Tensor) -> Tensor:
        return grouped_mm(grouped_mm(x, self.up, self.ends).relu(), self.down, self.ends)


def test_matrices_of_experts_make_units_and_read_them() -> None:
    (group,) = analysed(SortedByExpert(), torch.randn(5, 4)).groups
    assert {m.parameter: m.role for m in group.members} == {"up": "producer", "down": "consumer"}


class HeadsReadAlone(nn.Module):
    """Two of the four heads are read alone, so that they stay."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Conv1d(3, 12, 1), nn.Conv1d(12, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.features(x).unflatten(1, (4, 3))
        scale = heads[:, :1].amax((1, 2)) + heads[:, 1:2].amax((1, 2))
        return self.head(heads.flatten(1, 2)) * scale[:, None]


def test_features_of_heads_that_stay_are_inside_the_others() -> None:
    inputs = torch.randn(2, 3, 5).double()
    graph, analysis = traced(alive(HeadsReadAlone()), inputs)
    heads, features = analysis.groups
    assert (heads.size, features.size, features.outer) == (2, 3, heads.name)
    plan = random_plan(analysis)
    assert verify(graph, plan, rewrite(graph, plan), inputs).ok


class WithMemory(nn.Module):
    """A parameter that only says of what type the memory is that ones are written to."""

    def __init__(self) -> None:
        super().__init__()
        self.like = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.like.new_empty_strided((8,), (1,)).fill_(1.0)


def test_what_only_lends_its_type_is_no_bias() -> None:
    (group,) = (g for g in analysed(WithMemory(), torch.randn(2, 8)).frozen if g.name == "like:0")
    assert [member.role for member in group.members] == ["producer"]


class Tables(nn.Module):
    """A product of buffers, whose inner dimension belongs to no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("left", torch.randn(5, 4))
        self.register_buffer("right", torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.left @ self.right)


def test_what_only_buffers_have_is_frozen() -> None:
    analysis = analysed(Tables(), torch.randn(2, 5))
    reasons = {group.name: group.reason for group in analysis.frozen}
    assert not analysis.groups
    assert reasons["left:1"] == "only buffers or empty tensors: there is no parameter to prune"


class BesideTheInput(nn.Module):
    """A buffer added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.offset)


def test_a_buffer_that_is_frozen_anyway_names_that_reason() -> None:
    (group,) = analysed(BesideTheInput(), torch.randn(2, 5)).frozen
    assert group.reason == "model input"
    assert not group.maskable


class WithoutEntries(nn.Module):
    """A parameter of no rows, as tables of extra tokens have by default."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.extra = nn.Parameter(torch.zeros(0, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)) + self.extra.sum()


def test_an_empty_parameter_has_no_units_to_prune() -> None:
    analysis = analysed(WithoutEntries(), torch.randn(2, 5))
    assert [group.name for group in analysis.groups] == ["first.weight:0"]


class FirstAlone(nn.Module):
    """The first of five units goes another way than the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x[:, 1:] * x[:, :1])


def test_a_single_unit_is_no_group() -> None:
    analysis = analysed(FirstAlone(), torch.randn(2, 3))
    assert [group.size for group in analysis.groups] == [4]
    assert all(group.size > 1 for group in analysis.frozen)


class Blocks(nn.Module):
    """Units in blocks, whose numbers are fixed, since an input has them; any units in each."""

    def __init__(self, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4 * math.prod(blocks)), nn.Linear(120, 2)
        self.blocks = blocks

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        return self.last((self.first(x).view(-1, *self.blocks, 4) + offset).flatten(1))


@pytest.mark.parametrize("blocks", [(2, 3, 5), (5, 3, 2), (3, 5, 2), (2, 5, 3)], ids=str)
def test_of_several_contexts_the_largest_is_chosen(blocks: tuple[int, ...]) -> None:
    analysis = analysed(Blocks(blocks), torch.randn(2, 3), torch.randn(*blocks, 1))
    (group,) = analysis.groups
    assert group.shape == (5, 4)


class Steps(nn.Module):
    """As many steps as four for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[0] * 4).view(x.shape[0], 4)
        return self.last(self.first(x) * steps)


def test_a_sequence_as_long_as_the_inputs_say_keeps_its_entries() -> None:
    analysis = analysed(Steps(), torch.randn(2, 3))
    assert not analysis.groups
    reasons = {group.name: str(group.reason) for group in analysis.frozen}
    assert "values depend on the index" in reasons["first.weight:0"]


def test_what_is_sliced_stays_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a tensor that is sliced in blocks of rows."""
    monkeypatch.setattr(slicing, "_BLOCK", 1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    graph, analysis = traced(model, torch.randn(2, 3))
    plan = random_plan(analysis)
    pruned = rewrite(graph.to("meta"), plan)
    assert {p.device.type for p in pruned.parameters()} == {"meta"}


def test_a_graph_is_analysed_once() -> None:
    graph, analysis = traced(alive(Layers()), torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert analysis_of(graph) is analysis
