"""Idioms of real models: numbers from elsewhere, paths for compilers."""

from __future__ import annotations

import functools
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import fxprune
from fxprune import trace
from fxprune.errors import TraceError


def check(model: nn.Module, *shape: int) -> Any:
    """Trace at batch 2 and compare at batch 3."""
    gm = trace(model.eval(), torch.randn(2, *shape))
    x = torch.randn(3, *shape)
    assert torch.equal(gm(x), model(x))
    return gm


class NumpyNames(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, x * np.float64(0.5)], axis=1)  # type: ignore[call-overload]
        total: Tensor = y.sum(axis=np.int64(1), keepdims=True) ** np.float32(2)
        return total


def test_numbers_and_names_of_numpy_become_pythons_and_torchs() -> None:
    gm = check(NumpyNames(), 5)
    assert "np." not in gm.code
    assert "axis" not in gm.code
    assert "keepdims" not in gm.code


class PythonsTypes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[0], dtype=int)  # type: ignore[call-overload]
        both = x.to(float) + ones[:, None]  # type: ignore[call-overload]
        return torch.where(x.to(dtype=bool), both, 0.5)  # type: ignore[call-overload,no-any-return]


def test_pythons_types_stand_for_torchs() -> None:
    gm = check(PythonsTypes(), 5)
    assert "torch.int64" in gm.code
    assert "<class" not in gm.code


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.fft.fft(x)
        return mixed.real + 2 * mixed.imag


def test_real_and_imaginary_parts() -> None:
    check(Spectrum(), 8)


class Bounds(nn.Module):
    """Tensors where numbers are expected, as in DeBERTa's attention span."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("width", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        span = self.width - 1
        x = torch.clamp(x, 0, span * 2)
        return torch.nn.functional.pad(x[:, 1 - span + 1 : 4 + span], (0, span))


def test_tensors_that_stand_for_numbers_are_read() -> None:
    check(Bounds(), 8)


class BoundsByInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, : x.argmax()]


def test_bounds_that_depend_on_the_input_are_refused_with_their_line() -> None:
    with pytest.raises(TraceError, match=r"test_idioms.py:\d+: the model reads values .*inputs"):
        trace(BoundsByInput(), torch.randn(2, 5))


class WithIdentities(nn.Module):
    """What comes in goes on, and may be written to; a hook makes it something else."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.plain, self.hooked = nn.Linear(4, 6), nn.Identity(), nn.Identity(3)
        self.hooked.register_forward_hook(lambda module, args, output: output * 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear(x)
        self.plain(hidden).add_(1)
        return self.hooked(hidden) + self.plain(x).sum()


def test_identities_leave_no_node() -> None:
    model, inputs = WithIdentities(), torch.randn(2, 4)
    graph = fxprune.trace(model, inputs)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["linear"]
    assert torch.equal(graph(inputs), model(inputs))


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("kind", [nn.Identity, nn.ReLU, nn.Unflatten])
def test_a_forward_of_an_instances_own_is_traced_through(kind: type, bound: bool) -> None:
    def doubled(self: nn.Module, x: Tensor) -> Tensor:
        return x.softmax(1) * 2

    layer = kind(1, (2, 3)) if kind is nn.Unflatten else kind()
    own = types.MethodType(doubled, layer) if bound else functools.partial(doubled, layer)
    layer.forward = own
    graph = check(nn.Sequential(nn.Linear(5, 6), layer), 5)
    assert "1" not in [node.target for node in graph.graph.nodes]


class ForCompilers(nn.Module):
    """Takes a path that no graph holds when it is compiled, as Mamba's associative scan."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return torch.vmap(torch.sin)(x)
        return torch.sin(x)


class ForEager(nn.Module):
    """Reads values unless it is compiled, as BERT's mask does."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and bool((x == 0).all()):
            return x
        return torch.sin(x)


@pytest.mark.parametrize("model", [ForCompilers(), ForEager()])
def test_the_path_that_can_be_captured_is_taken(model: nn.Module) -> None:
    check(model, 4)


class ForNobody(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            raise RuntimeError("not for compilers")
        return x if bool((x == 0).all()) else torch.sin(x)


def test_a_model_that_fails_on_both_paths_is_refused_for_what_eager_mode_does() -> None:
    with pytest.raises(TraceError, match="the model reads values"):
        trace(ForNobody(), torch.randn(2, 4))


class AnyRank(_BatchNorm):
    """Normalises inputs of any rank: torch's class without a rank cannot run by itself."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 3, 4):
            raise ValueError(f"{input.dim()} dimensions")


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((4,), nn.BatchNorm1d),
        ((4, 5), nn.BatchNorm1d),
        ((4, 5, 6), nn.BatchNorm2d),
    ],
)
def test_a_batch_norm_of_any_rank_becomes_one_of_the_rank_of_its_input(
    shape: tuple[int, ...], kind: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), AnyRank(4))
    nn.init.normal_(model[1].weight)
    gm = check(model, *shape)
    assert type(gm.get_submodule("1")) is kind
    assert gm.meta["fxprune"].mode_notes == ()


class TwoRanks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = AnyRank(4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x) + self.norm(x.mean(-1))[..., None]
        return result


def test_a_batch_norm_of_inputs_of_two_ranks_is_called_as_a_function() -> None:
    check(TwoRanks(), 4, 5)


class ByConstructor(nn.Module):
    """`torch.Tensor(x)` is x itself, and no function that torch lets anybody see."""

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.Tensor(torch.zeros(x.shape[0], 2)).type(x.dtype).to(x.device)
        return torch.cat([torch.Tensor(x * 2), padding], 1)


def test_tensors_made_of_tensors_are_the_same_tensors() -> None:
    check(ByConstructor(), 3)


class ByVariable(nn.Module):
    """What torch.autograd.Variable makes of a buffer or a parameter is another object, too."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.arange(1.0, 5.0))
        self.register_buffer("order", torch.tensor([2, 0, 3, 1]))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.autograd.Variable(x))
        x = x.index_select(1, torch.autograd.Variable(self.order))
        return x * torch.autograd.Variable(self.scale)


def test_variables_of_what_a_model_holds_are_the_same_tensors() -> None:
    gm = check(ByVariable(), 4)
    assert {n.target for n in gm.graph.nodes if n.op == "get_attr"} == {"order", "scale"}


class Repeats(nn.Module):
    """Entries repeated as often as a tensor says, whose values are known without any input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("often", torch.tensor([3, 2]))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "listed":
            return x[:, torch.repeat_interleave(repeats=self.often)]
        if self.kind == "one":
            return x.repeat_interleave(torch.tensor([2]), 1)
        if self.kind == "size":
            often = torch.tensor([3, x.shape[0] * 2])
            return x[:, :2].repeat_interleave(repeats=often, dim=1)[:, :4]
        if self.kind == "where":
            return x[:, torch.where(self.often == 2)[0]]
        return x[:, :2].repeat_interleave(self.often, 1)


@pytest.mark.parametrize("kind", ["listed", "one", "size", "where", "entries"])
def test_repeats_in_constants_are_followed(kind: str) -> None:
    check(Repeats(kind), 4)


class ByTheInput(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(x)
        return result


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.repeat_interleave((x[0] > 0).long(), 1),
        lambda x: x[:, torch.where(x[0] > 0)[0]],
    ],
)
def test_shapes_by_values_of_the_input_are_refused(function: Any) -> None:
    with pytest.raises(TraceError, match="the model reads values of a tensor of shape"):
        trace(ByTheInput(function), torch.randn(2, 4))


class ByTypeName(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[0], 1).type(x.type())
        return torch.cat([x, ones, x.long().type("torch.FloatTensor")], 1)


def test_types_by_name_are_those_of_the_device() -> None:
    gm = check(ByTypeName(), 3)
    assert "meta" not in gm.code


class Resynthesis(nn.Module):
    """Masks of a spectrogram: the inverse transform makes sure that its windows overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Conv1d(17, 8, 1), nn.Conv1d(8, 17, 1)

    def forward(self, x: Tensor) -> Tensor:
        window = torch.hann_window(32, dtype=x.dtype, device=x.device)
        spectrum = torch.stft(x, 32, 8, window=window, return_complex=True)
        mask = self.last(self.inner(spectrum.abs()).relu()).sigmoid()
        return torch.istft(spectrum * mask, 32, 8, window=window, length=x.shape[-1])


def test_the_inverse_of_a_spectrogram_is_captured_and_pruned() -> None:
    torch.manual_seed(0)
    model = Resynthesis().double().eval()
    traced = trace(model, torch.randn(2, 120, dtype=torch.float64))
    plan = fxprune.plan(fxprune.analyze(traced), criterion="random", sparsity=0.5)
    assert list(plan.kept_units) == ["inner.weight:0"]
    pruned = fxprune.rewrite(traced, plan)
    x = torch.randn(3, 120, dtype=torch.float64)
    torch.testing.assert_close(traced(x), model(x))
    assert fxprune.verify(traced, plan, pruned, x).ok


class ByCounts(nn.Module):
    """Slices by entries of a tensor of numbers, one of them after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        counts = torch.LongTensor([3, 2])
        h = self.first(x)
        result: Tensor = self.last(h[:, : counts[0]].mean(1) + h[:, : counts[1]].mean(1))
        return result


def test_all_entries_of_a_constant_are_read_as_numbers() -> None:
    # The second one stayed a tensor, which the analysis could not read.
    gm = check(ByCounts(), 5, 4)
    assert "_constant" not in gm.code
    assert [group.name for group in fxprune.analyze(gm).groups] == ["first.weight:0"]


def test_what_compiles_itself_is_refused_by_name() -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    model = ByTheInput(lambda x: flex.flex_attention(x, x, x))
    message = r"test_idioms\.py:\d+: ByTheInput compiles a part of itself as it runs"
    with pytest.raises(TraceError, match=message):
        trace(model, torch.randn(2, 4, 8, 16))
