"""`trace` on models that are awkward in one way each: same outputs, same parameters."""

from __future__ import annotations

import collections
import copy
import dataclasses
import operator
import pickle
import re
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, parametrize

from fxprune.capture import TraceInfo, trace
from fxprune.errors import TraceError


def info(gm: fx.GraphModule) -> TraceInfo:
    found = gm.meta["fxprune"]
    assert isinstance(found, TraceInfo)
    return found


def targets(gm: fx.GraphModule, op: str) -> list[str]:
    return [str(n.target) for n in gm.graph.nodes if n.op == op]


def calls(gm: fx.GraphModule, target: Any) -> int:
    return sum(n.target is target or n.target == target for n in gm.graph.nodes)


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.conv(x)))
        return self.head(y.mean((2, 3)))


def test_the_graph_shares_parameters_under_their_names_and_leaves_the_model_alone() -> None:
    model = Block().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gm = trace(model, torch.randn(2, 3, 8, 8))
    own = dict(model.named_parameters())
    assert {n: own[n] is p for n, p in gm.named_parameters()} == dict.fromkeys(
        [n for n in own if not n.startswith("unused")], True
    )
    assert gm.get_buffer("bn.running_mean") is model.bn.running_mean
    assert targets(gm, "call_module") == ["conv", "bn", "head"]
    assert info(gm).dropped == ("unused",)
    assert info(gm).dynamic == {"x": (0, 2, 3)}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.conv.weight.device.type == "cpu"
    x = torch.randn(3, 3, 11, 6)
    assert torch.equal(gm(x), model(x))


def test_placeholders_have_forwards_names_and_meta_values() -> None:
    gm = trace(Block(), torch.randn(2, 3, 8, 8))
    (node,) = [n for n in gm.graph.nodes if n.op == "placeholder"]
    assert node.name == "x"
    assert node.meta["val"].is_meta
    assert tuple(node.meta["val"].shape) == (2, 3, 8, 8)
    (conv,) = [n for n in gm.graph.nodes if n.target == "conv"]
    assert conv.meta["source"] == "conv"
    assert conv.meta["line"].startswith(__file__)


def test_the_mode_of_the_model_is_kept_and_batch_norm_follows_it() -> None:
    model = Block().train()
    model.head.eval()
    gm = trace(model, torch.randn(2, 3, 8, 8))
    assert gm.training
    assert gm.get_submodule("bn").training
    assert not gm.get_submodule("head").training
    mean = model.bn.running_mean.clone()
    gm.eval()(torch.randn(2, 3, 8, 8))
    assert torch.equal(model.bn.running_mean, mean)
    gm.train()(torch.randn(2, 3, 8, 8))
    assert not torch.equal(model.bn.running_mean, mean)


def test_a_deep_copy_keeps_what_the_trace_knows() -> None:
    gm = trace(Block().eval(), torch.randn(2, 3, 8, 8))
    twin = copy.deepcopy(gm)
    assert info(twin) == info(gm)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(twin(x), gm(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.embed(ids))


def test_tied_weights_stay_tied() -> None:
    gm = trace(Tied(), torch.randint(0, 11, (2, 4)))
    assert gm.get_parameter("embed.weight") is gm.get_parameter("out.weight")
    assert info(gm).dynamic == {"ids": (0, 1)}


class Several(nn.Module):
    def forward(self, x: Tensor, pair: tuple[Tensor, Tensor], scale: float = 2.0) -> Tensor:
        return (x + pair[0] * pair[1]) * scale


def test_inputs_may_be_nested_and_hold_values() -> None:
    model, ones = Several(), torch.ones(2, 3)
    gm = trace(model, {"x": ones, "pair": (ones, ones), "scale": 3.0})
    x = torch.randn(4, 7)
    assert torch.equal(gm(x, (x, x), 3.0), model(x, (x, x), 3.0))
    assert set(info(gm).dynamic) == {"x", "pair[0]", "pair[1]"}
    with pytest.raises(TraceError, match=r"input 'scale' is 2\.0, but the model was traced with 3"):
        gm(x, (x, x), 2.0)
    with pytest.raises(TraceError, match=r"dimension 0 of 'pair\[1\]' has size 3 and dimension 0"):
        gm(x, (x, x[:3]), 3.0)


class Star(nn.Module):
    def forward(self, *xs: Tensor, **named: Tensor) -> Tensor:
        return sum(xs[1:], xs[0]) * named["k"]


def test_star_arguments_become_placeholders_of_their_own() -> None:
    x = torch.randn(3, 4)
    model = trace_star = Star()
    graph = trace(_Call(trace_star), (x, x))
    assert torch.equal(graph(x, x), model(x, x, k=x))
    gm = trace(_Positional(), (x, x, x))
    assert [n.name for n in gm.graph.nodes if n.op == "placeholder"] == ["xs_0", "xs_1", "xs_2"]


class _Call(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.inner(a, b, k=a)


class _Positional(nn.Module):
    def forward(self, *xs: Tensor) -> Tensor:
        return torch.stack(xs)


class Point(NamedTuple):
    a: Tensor
    b: Tensor


@dataclasses.dataclass
class Result:
    a: Tensor
    parts: list[Tensor]
    note: str = "n"
    nothing: Tensor | None = None


class Holder:
    def __init__(self, inside: Tensor) -> None:
        self.inside, self.label = inside, "kept"


class Outputs(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x + 1, x * 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: (a, [b, None, 3]),
        lambda a, b: {"a": a, "b": (b, "s")},
        Point,
        lambda a, b: Result(a, [a, b]),
        lambda a, b: collections.OrderedDict(a=a, b=b),
        lambda a, b: a.max(1),
        lambda a, b: tuple(a.shape),
    ],
    ids=["tuple", "dict", "namedtuple", "dataclass", "ordered", "return_type", "sizes"],
)
def test_outputs_keep_their_structure(make: Any) -> None:
    model = Outputs(make)
    gm = trace(model, torch.randn(2, 3))
    x = torch.randn(5, 4)
    got, want = gm(x), model(x)
    assert type(got) is type(want)
    assert str(got) == str(want)


def test_an_output_object_is_rebuilt_with_its_attributes() -> None:
    model = Outputs(lambda a, b: Holder(b))
    gm = trace(model, torch.randn(2, 3))
    x = torch.randn(5, 4)
    got = gm(x)
    assert isinstance(got, Holder)
    assert got.label == "kept"
    assert torch.equal(got.inside, x * 2)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))
        self.table = torch.arange(4.0)
        self.listed = [torch.ones(4)]
        self.p = 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.weight) + self.table + self.listed[0]
        x = F.batch_norm(x, self.mean, self.var, training=self.training)
        x = F.dropout(x, self.p, self.training)
        return x * torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_literals_that_depend_on_the_mode_follow_it() -> None:
    model = Functional().double()
    x = torch.randn(6, 4).double()
    gm = trace(model, torch.randn(2, 4).double())
    assert info(gm).mode_notes == ()
    for mode in (True, False):
        torch.manual_seed(1)
        want = model.train(mode)(x)
        model.mean.zero_()
        model.var.fill_(1)
        torch.manual_seed(1)
        assert torch.equal(gm.train(mode)(x), want)
        model.mean.zero_()
        model.var.fill_(1)


def test_plain_tensors_become_buffers_that_are_not_saved() -> None:
    model = Functional()
    gm = trace(model, torch.randn(2, 4))
    names = dict(gm.named_buffers())
    assert names["table"] is model.table
    assert names["listed_0"] is model.listed[0]
    assert torch.equal(names["_constant0"], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert set(gm.state_dict()) == {"weight", "mean", "var"}


class Drop(nn.Module):
    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0.0:
            return x
        keep = 1 - self.drop_prob
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep) / keep


class MyDropPath(Drop):
    pass


class Residual(nn.Module):
    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.fc, self.drop = nn.Linear(4, 4), drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y + self.drop(y)


def test_stochastic_depth_becomes_a_module_of_ours() -> None:
    model = Residual(MyDropPath(0.5))
    gm = trace(model, torch.randn(2, 4))
    assert type(gm.get_submodule("drop")).__module__ == "fxprune.modules"
    assert info(gm).mode_notes == ()
    x = torch.randn(64, 4)
    assert torch.equal(gm.eval()(x), model.eval()(x))
    ratio = gm.train()(x) / model.fc(x)
    rows = ratio.mean(1)
    assert set(rows.detach().round().tolist()) == {1.0, 3.0}


def test_a_module_of_another_name_that_passes_its_input_on_is_passed_by() -> None:
    model = Residual(Drop(0.5))
    x = torch.randn(5, 4)
    assert torch.equal(trace(model, x).eval()(x), model.eval()(x))


def test_a_dropout_that_passes_its_input_on_is_still_called_in_train_mode() -> None:
    gm = trace(Residual(nn.Dropout(0.999)), torch.randn(2, 4)).train()
    x = torch.randn(50, 4)
    # Only the branch is dropped, not the residual beside it.
    assert torch.allclose(gm(x), gm.get_submodule("fc")(x), atol=1e-6, rtol=0) or (
        (gm(x) - gm.get_submodule("fc")(x)).abs().gt(1e-6).float().mean() < 0.05
    )


def test_what_train_mode_does_besides_is_listed() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x) if self.training else x * 1

    gm = trace(Noisy(), torch.randn(2, 4))
    assert len(info(gm).mode_notes) == 1
    assert "train mode differs by mul, +randn_like, +add" in info(gm).mode_notes[0]


class Normed(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        fc = nn.Linear(4, 6)
        if kind == "hooks":
            with pytest.warns(FutureWarning):
                fc = nn.utils.weight_norm(fc)
        else:
            fc = getattr(parametrizations, kind)(fc)
        self.fc = fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


@pytest.mark.parametrize("kind", ["hooks", "weight_norm", "orthogonal"])
def test_computed_weights_are_nodes(kind: str) -> None:
    model = Normed(kind).eval().double()
    gm = trace(model, torch.randn(2, 4).double())
    assert "fc" not in targets(gm, "call_module")
    assert calls(gm, F.linear) == 1
    x = torch.randn(3, 4).double()
    assert torch.equal(gm(x), model(x))
    assert set(dict(gm.named_parameters())) == set(dict(model.named_parameters()))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def test_a_parametrised_leaf_is_traced_through() -> None:
    conv = nn.Conv2d(3, 4, 1)
    parametrize.register_parametrization(conv, "weight", Doubled())
    model = nn.Sequential(conv).eval()
    gm = trace(model, torch.randn(2, 3, 4, 4))
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(gm(x), model(x))


class NamedLinear(nn.Linear):
    """Inherits everything that computes."""

    def extra_repr(self) -> str:
        return "mine"


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Padded(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight * 2, bias)


class ActNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        training = self.training
        if training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training,
            self.momentum, self.eps,
        )  # fmt: skip
        return F.relu(x)


def test_a_subclass_that_inherits_forward_becomes_the_torch_class() -> None:
    gm = trace(nn.Sequential(NamedLinear(3, 4)), torch.randn(2, 3))
    assert type(gm.get_submodule("0")) is nn.Linear


@pytest.mark.parametrize(
    ("module", "shape"), [(Scaled(3, 4), (2, 3)), (Padded(3, 4, 1), (2, 3, 5, 5))]
)
def test_a_subclass_that_computes_otherwise_is_traced_through(
    module: nn.Module, shape: tuple[int, ...]
) -> None:
    model = nn.Sequential(module)
    gm = trace(model, torch.randn(shape))
    assert targets(gm, "call_module") == []
    x = torch.randn(3, *shape[1:])
    assert torch.equal(gm(x), model(x))


def test_a_batch_norm_subclass_becomes_a_batch_norm_and_functions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), ActNorm(4))
    gm = trace(model, torch.randn(2, 3, 5, 5))
    assert type(gm.get_submodule("1")) is nn.BatchNorm2d
    assert info(gm).mode_notes == ()
    x = torch.randn(3, 3, 5, 5)
    assert torch.equal(gm.eval()(x), model.eval()(x))
    before = model[1].running_mean.clone()
    gm.train()(x)
    assert not torch.equal(model[1].running_mean, before)


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.fc.register_forward_hook(lambda module, args, out: out * 2)
        self.fc.register_forward_pre_hook(lambda module, args: (args[0] + 1,))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def test_hooks_become_nodes_and_leave_the_module() -> None:
    model = Hooked()
    gm = trace(model, torch.randn(2, 3))
    x = torch.randn(4, 3)
    assert torch.equal(gm(x), model(x))
    assert not gm.get_submodule("fc")._forward_hooks
    assert calls(gm, operator.add) == 1


class Making(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.Softmax(dim=-1)(x)


def test_modules_made_in_forward_move_into_the_graph() -> None:
    model = Making()
    gm = trace(model, torch.randn(2, 3))
    assert targets(gm, "call_module") == ["_created0"]
    x = torch.randn(4, 5)
    assert torch.equal(gm(x), model(x))


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(x.shape[0], 4)
        y[:, :2] = x
        y[:, 2:].add_(1)
        z = x.clone()
        z.clamp_(min=0).mul_(2)
        return torch.cat([y, z], 1)


def test_writes_into_tensors_and_views_survive() -> None:
    model = InPlace()
    gm = trace(model, torch.randn(3, 2))
    gm.graph.lint()
    x = torch.randn(5, 2)
    assert torch.equal(gm(x), model(x))


class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sizes", torch.tensor([2, 3]))
        self.register_buffer("mask", torch.tensor([True, False, True, True, False]))

    def forward(self, x: Tensor) -> Tensor:
        a, b = (int(v) for v in self.sizes.tolist())
        if (self.sizes + 1).max().item() == 4:
            x = x * a + b
        return x[:, self.mask] * len(torch.linspace(0, 1, 3).nonzero())


def test_values_of_constants_may_be_read() -> None:
    model = Constants()
    gm = trace(model, torch.randn(2, 5))
    x = torch.randn(4, 5)
    assert torch.equal(gm(x), model(x))


class Devices(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert not x.is_cuda
        assert not x.is_meta
        assert x.device.type == "cpu"
        steps = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        return (x + steps.to("cpu")).to(torch.float64).cpu()


def test_device_questions_get_the_real_answer() -> None:
    model = Devices()
    gm = trace(model, torch.randn(2, 5))
    x = torch.randn(4, 7)
    assert torch.equal(gm(x), model(x))


class Dunders(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = 2 - x
        y = 1 / (y * y + 1) + (-x) ** 2 + 2**x - abs(x) + x // 2 + x % 3
        y += 1
        return torch.where((x > 0) & ~(x >= 1) | (x == 0), y, x.T.mT.t() @ x.t() @ x)


def test_operators_mean_the_same() -> None:
    model = Dunders()
    x = torch.randn(4, 4)
    assert torch.equal(trace(model, torch.randn(4, 4))(x), model(x))


def test_a_users_graph_module_is_captured_again() -> None:
    model = Block().eval()
    again = trace(fx.symbolic_trace(model), torch.randn(2, 3, 8, 8))
    x = torch.randn(3, 3, 9, 9)
    assert torch.equal(again(x), model(x))
    assert targets(again, "call_module") == ["conv", "bn", "head"]
    twice = trace(trace(model, torch.randn(2, 3, 8, 8)), torch.randn(2, 3, 8, 8))
    assert torch.equal(twice(x), model(x))
    assert info(twice).dynamic == {"x": (0, 2, 3)}


def test_an_exported_program_is_captured() -> None:
    model = Block().eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        model, (torch.randn(4, 3, 8, 8),), dynamic_shapes={"x": {0: batch}}
    )
    gm = trace(program, torch.randn(4, 3, 8, 8))
    x = torch.randn(6, 3, 8, 8)
    assert torch.allclose(gm(x), model(x), atol=1e-6)
    assert 0 in info(gm).dynamic["x"]
    assert "conv.weight" in dict(gm.named_parameters())


# Errors --------------------------------------------------------------------------------------


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def test_a_branch_on_values_names_its_line_and_the_remedy() -> None:
    with pytest.raises(TraceError) as caught:
        trace(Branching(), torch.randn(2, 3))
    message = str(caught.value)
    line = Branching.forward.__code__.co_firstlineno + 1
    assert message.startswith(f"{__file__}:{line}: the model reads values")
    assert "torch.where" in message


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TraceError, match=r"do not fit Block\.forward.*too many positional"):
        trace(Block(), (torch.randn(2, 3, 8, 8), 1))
    line = Block.forward.__code__.co_firstlineno + 1
    expected = rf"^{re.escape(__file__)}:{line}: .* on the example inputs \(x: \(2, 4, 8, 8\)\)"
    with pytest.raises(TraceError, match=expected):
        trace(Block(), torch.randn(2, 4, 8, 8))
    with pytest.raises(TraceError, match="hold no tensor"):
        trace(_Positional(), ())
    with pytest.raises(TraceError, match="not a function"):
        trace(lambda x: x, torch.randn(2))  # type: ignore[arg-type,return-value]


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = (i for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_model_that_cannot_be_copied_says_what_to_do() -> None:
    with pytest.raises(TraceError, match=r"Locked cannot be copied.*__deepcopy__"):
        trace(Locked(), torch.randn(2))


def test_lazy_modules_are_refused() -> None:
    with pytest.raises(TraceError, match="Run the model once"):
        trace(nn.Sequential(nn.LazyLinear(3)), torch.randn(2, 3))


def test_torchscript_is_refused() -> None:
    model = nn.Sequential(torch.jit.trace(nn.Linear(3, 3), torch.randn(2, 3)))
    with pytest.raises(TraceError, match="module '0' is TorchScript"):
        trace(model, torch.randn(2, 3))


@torch.jit.script
def clamped(x: Tensor, limit: float) -> Tensor:
    return (x / limit).tanh() * limit


@torch.jit.script
def gated(x: Tensor, gate: Tensor) -> Tensor:
    return clamped(x, 5.0) * gate.sigmoid()


class Scripted(nn.Module):
    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.first, self.last, self.activation = nn.Linear(5, 6), nn.Linear(6, 3), activation

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(self.activation(h, h))


def test_scripted_functions_are_recorded_as_their_source_is_written() -> None:
    # Torch's decompositions on meta were recorded, whose primitives have no gradients.
    model, x = Scripted(gated), torch.randn(4, 5)
    graph = trace(model, x[:2])
    assert "prims" not in graph.code
    torch.testing.assert_close(graph(x), model(x))
    graph(x).sum().backward()


def test_functions_of_the_torchscript_tracer_are_refused() -> None:
    product = torch.jit.trace(lambda x, y: x * y, (torch.ones(2), torch.ones(2)))
    with pytest.raises(TraceError, match="TorchScript function"):
        trace(Scripted(product), torch.randn(2, 5))


def test_autocast_inside_forward_is_refused() -> None:
    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return x @ x

    with pytest.raises(TraceError, match="turns on autocast inside its forward"):
        trace(Cast(), torch.randn(3, 3))


# What the result can be used for ---------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(10, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, (h, _) = self.lstm(x)
        return self.gru(y)[0], h


def test_recurrent_modules_are_leaves_that_survive_a_change_of_dtype() -> None:
    model = Recurrent()
    gm = trace(model, torch.randn(2, 7, 6))
    assert targets(gm, "call_module") == ["lstm", "gru"]
    assert info(gm).dynamic == {"x": (0, 1)}
    x = torch.randn(3, 9, 6).double()
    want = copy.deepcopy(model).double()(x)
    for got, expected in zip(copy.deepcopy(gm).double()(x), want, strict=True):
        assert torch.equal(got, expected)


def test_no_grad_regions_stop_gradients() -> None:
    class Stopped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.a(x) * 2
            return self.b(x) + y

    gm = trace(Stopped(), torch.randn(2, 3))
    gm(torch.randn(2, 3)).sum().backward()
    assert gm.get_parameter("a.weight").grad is None
    assert gm.get_parameter("b.weight").grad is not None


def test_factories_follow_the_device_of_the_input() -> None:
    gm = trace(Devices(), torch.randn(2, 5))
    assert all(n.kwargs.get("device") != torch.device("cpu") for n in gm.graph.nodes)
    (device,) = [n for n in gm.graph.nodes if n.target is getattr]
    assert device.args[1] == "device"


def test_the_graph_compiles_exports_pickles_and_is_traced_again() -> None:
    model = Block().eval()
    gm = trace(model, torch.randn(2, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    want = model(x)
    assert torch.equal(torch.compile(gm, backend="eager", fullgraph=True)(x), want)
    assert torch.equal(torch.export.export(gm, (x,)).module()(x), want)
    assert torch.equal(pickle.loads(pickle.dumps(gm))(x), want)
    assert torch.equal(fx.symbolic_trace(gm)(x), want)


def test_a_model_on_the_meta_device_is_captured() -> None:
    with torch.device("meta"):
        model = Block()
    gm = trace(model, torch.empty(2, 3, 8, 8, device="meta"))
    assert gm.get_parameter("conv.weight") is model.conv.weight
