"""ATen operators are captured as the functions of torch's that run them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import fxprune
from fxprune.capture.lowerings import lowered
from fxprune.capture.operators import LOWERED, function_of

aten = torch.ops.aten


def real(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


IMAGE, ROWS = real(2, 6, 5, 4), real(2, 5, 6)
QUERY, KEY, VALUE = real(2, 3, 4, 6), real(2, 3, 5, 6), real(2, 3, 5, 7)

CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (aten.view.default, (ROWS, [2, 30]), {}),
    (aten._unsafe_view.default, (ROWS, [10, -1]), {}),
    (aten.expand.default, (real(1, 4), [3, -1]), {}),
    (aten.permute.default, (ROWS, [2, 0, 1]), {}),
    (aten.select.int, (ROWS, 1, -1), {}),
    (aten.slice.Tensor, (ROWS, 1, 0, 9223372036854775807), {}),
    (aten.slice.Tensor, (ROWS, -1, 1, 5, 2), {}),
    (aten.slice.Tensor, (ROWS,), {"dim": 2, "end": -1}),
    (aten.index.Tensor, (ROWS, [None, torch.tensor([2, 0])]), {}),
    (aten.index_put.default, (ROWS, [None, torch.tensor([2, 0])], real(2, 2, 6)), {}),
    (aten.index_put.default, (ROWS, [torch.tensor([1, 1])], real(2, 5, 6), True), {}),
    (aten.index_put_.default, (real(3, 4), [torch.tensor([2, 0])], real(2, 4)), {}),
    (aten.split.Tensor, (ROWS, 2, 2), {}),
    (aten.split_with_sizes.default, (ROWS, [1, 5], -1), {}),
    (aten.chunk.default, (ROWS, 3, 2), {}),
    (aten.cat.default, ([ROWS, ROWS], 1), {}),
    (aten.stack.default, ([ROWS, ROWS], -1), {}),
    (aten.add.Tensor, (ROWS, ROWS), {"alpha": 2}),
    (aten.mul.Scalar, (ROWS, 2.0), {}),
    (aten.pow.Scalar, (2.0, ROWS), {}),
    (aten.rsub.Scalar, (ROWS, 1.0), {}),
    (aten.where.self, (ROWS > 0, ROWS, ROWS * 2), {}),
    (aten.sum.dim_IntList, (ROWS, [1], True), {}),
    (aten.var.correction, (ROWS, [1]), {"correction": 0, "keepdim": True}),
    (aten.max.dim, (ROWS, 1), {}),
    (aten.full.default, ([2, 3], 1.5), {"dtype": torch.float64, "pin_memory": False}),
    (aten.arange.start_step, (1, 9, 2), {"device": torch.device("cpu"), "pin_memory": False}),
    (aten.linalg_vector_norm.default, (ROWS, 2, [-1], True), {}),
    (aten.embedding.default, (real(9, 4), torch.tensor([[1, 2]])), {}),
    (aten.gelu.default, (ROWS,), {"approximate": "tanh"}),
    (aten.adaptive_avg_pool2d.default, (IMAGE, [1, 1]), {}),
    (aten.max_pool2d.default, (IMAGE, [2, 2], [2, 2]), {}),
    (aten.upsample_nearest2d.vec, (IMAGE, None, [2.0, 2.0]), {}),
    (aten.pixel_shuffle.default, (real(1, 8, 2, 2), 2), {}),
    (aten.conv2d.default, (IMAGE, real(4, 3, 2, 2), None, [1, 1], [0, 0], [1, 1], 2), {}),
    (aten.layer_norm.default, (ROWS, [6], real(6), real(6), 1e-5), {}),
    (aten.group_norm.default, (IMAGE, 3, real(6), real(6)), {}),
    (aten.batch_norm.default, (IMAGE, real(6), real(6), real(6), real(6).abs(), False, 0.1, 1e-5,
                               True), {}),
    (aten.scaled_dot_product_attention.default, (QUERY, KEY, VALUE), {"scale": 0.5}),
    (aten.linear.default, (ROWS, real(3, 6)), {}),
    (aten.to.dtype, (ROWS, torch.float32), {}),
    (aten.to.dtype_layout, (ROWS,), {"dtype": torch.float32, "layout": torch.strided,
                                     "device": torch.device("cpu")}),
    (aten._to_copy.default, (ROWS,), {"dtype": torch.float32}),
    (aten._to_copy.default, (ROWS.transpose(0, 1),), {"memory_format": torch.contiguous_format}),
    (aten.lift_fresh_copy.default, (ROWS,), {}),
    (aten.sym_size.int, (ROWS, 1), {}),
    (aten.sym_numel.default, (ROWS,), {}),
    (aten.convolution.default,
     (IMAGE, real(4, 3, 2, 2), real(4), [2], [1, 0], [1, 1], False, [0, 0], 2), {}),
    (aten.convolution.default,
     (IMAGE, real(6, 2, 3, 2), None, [2, 1], [1, 0], [1, 2], True, [1, 0], 3), {}),
    (aten.convolution.default,
     (ROWS.mT, real(4, 6, 2), None, [1], [0], [1], False, [0], 1), {}),
    (aten.native_layer_norm.default, (IMAGE, [5, 4], real(5, 4), None, 1e-3), {}),
    (aten.native_group_norm.default, (IMAGE, real(6), real(6), 2, 6, 20, 3, 1e-3), {}),
    (aten._scaled_dot_product_flash_attention_for_cpu.default, (QUERY, KEY, VALUE[..., :6]), {}),
    (aten._scaled_dot_product_flash_attention_for_cpu.default, (QUERY, KEY[:, :, :4],
     VALUE[:, :, :4, :6], 0.0, True), {"scale": 0.3}),
    (aten._scaled_dot_product_flash_attention_for_cpu.default, (QUERY, KEY, VALUE[..., :6]),
     {"attn_mask": real(1, 1, 4, 5)}),
]  # fmt: skip


IDS = [f"{place}-{operator}" for place, (operator, *_) in enumerate(CALLS)]


@pytest.mark.parametrize(("operator", "args", "kwargs"), CALLS, ids=IDS)
def test_a_function_computes_what_its_operator_does(
    operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    function = lowered(operator, args)
    assert function is not None
    ours, theirs = copy.deepcopy((args, args))
    torch.testing.assert_close(function(*ours, **kwargs), operator(*theirs, **kwargs))
    if isinstance(ours[0], Tensor):  # it may write to the first one
        torch.testing.assert_close(ours[0], theirs[0])


def test_every_lowering_is_called_here() -> None:
    assert set(LOWERED) <= {operator for operator, *_ in CALLS}


@pytest.mark.parametrize(
    ("operator", "args"),
    [
        (torch.ops.prims.broadcast_in_dim.default, (ROWS, [2, 5, 6], [0, 1, 2])),
        # These functions of torch's are called in other ways.
        (aten.stft.default, (real(40), 8, 4)),
        (aten.tensordot.default, (real(2, 3), real(3, 4), [1], [0])),
        (aten.block_diag.default, ([real(2, 3), real(1, 2)],)),
        (aten.index_put.default, (ROWS, [None, torch.tensor([0])], real(2, 1, 6), True)),
    ],
    ids=["broadcast", "stft", "tensordot", "block_diag", "index_put"],
)
def test_operators_without_a_function_stay(operator: Any, args: tuple[Any, ...]) -> None:
    assert function_of(operator, args) is operator
    assert lowered(operator, args) is None


class Called(nn.Module):
    """Calls `body` between two layers."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.body = nn.Linear(4, 6), nn.Linear(6, 3), body

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(torch.tanh(self.first(x))))


@torch.library.custom_op("fxprune_tests::scale_", mutates_args=("x",))
def scale_(x: Tensor, by: float) -> None:
    x.mul_(by)


@scale_.register_fake
def _(x: Tensor, by: float) -> None:
    return None


@torch.library.custom_op("fxprune_tests::scale_into", mutates_args=("out",))
def scale_into(x: Tensor, out: Tensor) -> None:
    out.copy_(x * 2)


@scale_into.register_fake
def _(x: Tensor, out: Tensor) -> None:
    return None


def scaled(call: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def body(x: Tensor) -> Tensor:
        x = x * 1
        call(x)
        return x

    return body


ops = torch.ops.fxprune_tests
BODIES: dict[str, Callable[[Tensor], Tensor]] = {
    "a number first": lambda x: aten.sub.Tensor(1, x) * aten.mul.Tensor(2.0, x),
    "all by name": lambda x: aten.add.Tensor(self=x, other=x),
    "a part by name": lambda x: aten.slice.Tensor(self=x, dim=1, start=0) * 2,
    "a norm by name": lambda x: aten.native_layer_norm.default(
        x, normalized_shape=[6], weight=None, bias=None, eps=1e-5
    )[0],
    "out": lambda x: aten.add.out(x.detach(), x.detach(), out=torch.empty_like(x)),
    "in place": scaled(lambda x: aten.mul_.Tensor(x, 2.0)),
    "scaled": scaled(lambda x: scale_(x, 2.0)),
    "scaled by packet": scaled(lambda x: ops.scale_(x, 2.0)),
    "scaled by name": scaled(lambda x: ops.scale_.default(x=x, by=2.0)),
}


@pytest.mark.parametrize("name", BODIES)
def test_operators_that_a_model_calls_are_followed(name: str) -> None:
    model, x = Called(BODIES[name]).double().eval(), real(4, 4)
    traced = fxprune.trace(model, x)
    other = real(7, 4)
    torch.testing.assert_close(traced(other), model(other))


def test_writes_into_other_arguments_than_the_first_are_refused() -> None:
    model = Called(scaled(lambda x: scale_into(torch.ones_like(x), x))).eval()
    message = r"test_operators.py:\d+: the model calls fxprune_tests::scale_into, .* argument 'out'"
    with pytest.raises(fxprune.TraceError, match=message):
        fxprune.trace(model, torch.randn(4, 4))


class Convolutions(nn.Module):
    """Grouped and transposed convolutions, norms, and a view at the channels' width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm, self.groups = nn.BatchNorm2d(8), nn.GroupNorm(2, 8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.scale = nn.LayerNorm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.stem(x)))
        x = self.up(torch.relu(self.groups(self.grouped(x))))
        rows = x.view(x.shape[0], 6, -1).transpose(1, 2)
        return self.head(self.scale(rows)[:, 1:].mean(1))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=4,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


MODELS: dict[str, tuple[Any, Tensor]] = {
    "convolutions": (Convolutions, real(2, 3, 8, 8)),
    "transformer": (transformer, real(2, 7, 16)),
    "bert": (bert, torch.randint(50, (2, 9))),
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1),
        real(2, 3, 32, 32),
    ),
    "swin": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(2, 1, 1, 1)
        ),
        real(2, 3, 56, 56),
    ),
    "shufflenet": (lambda: timm.create_model("ghostnet_050"), real(2, 3, 32, 32)),
}


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")
@pytest.mark.parametrize("decomposed", [False, True], ids=["exported", "decomposed"])
@pytest.mark.parametrize("name", MODELS)
def test_exported_programs_are_pruned_as_their_models(name: str, decomposed: bool) -> None:
    torch.manual_seed(0)
    build, x = MODELS[name]
    model = build().double().eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    if decomposed:
        program = program.run_decompositions()
    traced = fxprune.trace(program, x)
    analysis = fxprune.analyze(traced)
    own = fxprune.analyze(fxprune.trace(model, x))
    assert analysis.coverage().share == pytest.approx(own.coverage().share)
    plan = fxprune.plan(analysis, sparsity=0.5)
    pruned = fxprune.rewrite(traced, plan)
    found = fxprune.verify(traced, plan, pruned, torch.cat([x, x[:1]]))
    assert found.ok
    assert not math.isnan(found.max_error)
