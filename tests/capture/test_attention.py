"""nn.MultiheadAttention in plain operations equals the original, whatever its settings."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.capture import trace


class Attention(nn.Module):
    def __init__(self, settings: dict[str, Any], call: dict[str, Any]) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, **settings)
        self.call = call
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-0.5, 0.5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **masks: Tensor) -> Any:
        return self.attention(q, k, v, **masks, **self.call)


def inputs(batch: int, settings: dict[str, Any], mask: str, padding: bool) -> dict[str, Tensor]:
    length, source = 5, 7
    q = torch.randn(batch, length, 16)
    k = torch.randn(batch, source, settings.get("kdim", 16))
    v = torch.randn(batch, source, settings.get("vdim", 16))
    given = {"q": q, "k": k, "v": v}
    if not settings["batch_first"]:
        given = {name: x.transpose(0, 1) for name, x in given.items()}
    keep_first = torch.arange(source) > 0
    if mask == "bool":
        given["attn_mask"] = (torch.rand(length, source) > 0.7) & keep_first
    elif mask == "float":
        given["attn_mask"] = torch.randn(length, source)
    elif mask == "heads":
        given["attn_mask"] = torch.randn(batch * 4, length, source)
    if padding:
        lost = (torch.rand(batch, source) > 0.7) & keep_first
        # Masks of two kinds are deprecated together: padding has the kind of the other mask.
        float_mask = torch.zeros(batch, source).masked_fill(lost, float("-inf"))
        given["key_padding_mask"] = float_mask if mask in ("float", "heads") else lost
    return {n: x.double() if x.is_floating_point() else x for n, x in given.items()}


GRID = list(
    itertools.product(
        (True, False), (True, False), (True, False), (True, False), (True, False),
        ("weights", "average", "none"), ("no", "bool", "float", "heads"), (True, False),
    )
)[::13]  # fmt: skip


@pytest.mark.parametrize(
    ("batch_first", "bias", "bias_kv", "zero", "own_dims", "weights", "mask", "padding"), GRID
)
def test_module(
    batch_first: bool,
    bias: bool,
    bias_kv: bool,
    zero: bool,
    own_dims: bool,
    weights: str,
    mask: str,
    padding: bool,
) -> None:
    settings: dict[str, Any] = {
        "batch_first": batch_first, "bias": bias, "add_bias_kv": bias_kv, "add_zero_attn": zero,
        "dropout": 0.1, **({"kdim": 12, "vdim": 20} if own_dims else {}),
    }  # fmt: skip
    call = {"need_weights": weights != "none", "average_attn_weights": weights == "average"}
    model = Attention(settings, call).double().eval()
    gm = trace(model, inputs(2, settings, mask, padding))
    assert not any(n.op == "call_module" and n.target == "attention" for n in gm.graph.nodes)
    batch = 3 if mask != "heads" else 2
    given = inputs(batch, settings, mask, padding)
    got, want = gm(**given), model(**given)
    assert torch.allclose(got[0], want[0], rtol=0, atol=1e-13)
    assert (got[1] is None) == (want[1] is None)
    if want[1] is not None:
        assert torch.allclose(got[1], want[1], rtol=0, atol=1e-13)


def test_without_batch() -> None:
    model = Attention({"batch_first": False}, {}).double().eval()
    x = torch.randn(5, 16).double()
    gm = trace(model, {"q": x, "k": x, "v": x})
    for got, want in zip(gm(x, x, x), model(x, x, x), strict=True):
        assert torch.allclose(got, want, rtol=0, atol=1e-13)


def test_dropout_follows_the_mode() -> None:
    model = Attention({"batch_first": True, "dropout": 0.5}, {"need_weights": False}).double()
    x = torch.randn(2, 6, 16).double()
    gm = trace(model, {"q": x, "k": x, "v": x})
    torch.manual_seed(3)
    want = model.train()(x, x, x)[0]
    torch.manual_seed(3)
    assert torch.allclose(gm.train()(x, x, x)[0], want, rtol=0, atol=1e-13)
    assert torch.allclose(gm.eval()(x, x, x)[0], model.eval()(x, x, x)[0], rtol=0, atol=1e-13)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.multi_head_attention_forward(
            x[:1], x, x, 8, 2, None, torch.cat([self.q.bias, self.k.bias, self.v.bias]),
            None, None, False, 0.0, self.out.weight, self.out.bias,
            training=self.training, need_weights=False, use_separate_proj_weight=True,
            q_proj_weight=self.q.weight, k_proj_weight=self.k.weight, v_proj_weight=self.v.weight,
        )[0]  # fmt: skip


def test_function() -> None:
    model = Functional().double().eval()
    gm = trace(model, torch.randn(5, 2, 8).double())
    assert F.multi_head_attention_forward not in {n.target for n in gm.graph.nodes}
    x = torch.randn(7, 3, 8).double()
    assert torch.allclose(gm(x), model(x), rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("batch_first", [True, False])
def test_transformer(batch_first: bool) -> None:
    model = nn.Transformer(16, 4, 1, 1, 32, batch_first=batch_first).double().eval()
    shapes = ((2, 5, 16), (2, 7, 16)) if batch_first else ((5, 2, 16), (7, 2, 16))
    gm = trace(model, tuple(torch.randn(s).double() for s in shapes))
    other = ((3, 4, 16), (3, 9, 16)) if batch_first else ((4, 3, 16), (9, 3, 16))
    given = [torch.randn(s).double() for s in other]
    assert torch.allclose(gm(*given), model(*given), rtol=0, atol=1e-12)
