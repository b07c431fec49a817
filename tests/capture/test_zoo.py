"""Models as people write them: captured, and equal to eager at other sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capture import trace

transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")


def worst(got: Any, want: Any) -> float:
    """The largest relative error over all tensors of two outputs of the same structure."""
    a, spec = pytree.tree_flatten(got)
    b, other = pytree.tree_flatten(want)
    assert type(got) is type(want)
    assert spec == other
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if isinstance(x, Tensor)]
    assert pairs
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in pairs)


def alive(model: nn.Module) -> nn.Module:
    """The model in float64 and eval mode, with no parameter constant: zeros would hide faults."""
    model = model.eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def check(model: nn.Module, example: Any, *others: Any) -> None:
    model = alive(model)
    gm = trace(model, example)
    for other in others:
        with torch.no_grad():
            if isinstance(other, Mapping):
                assert worst(gm(**other), model(**other)) <= 1e-12
            else:
                assert worst(gm(other), model(other)) <= 1e-12


def image(*shape: int) -> Tensor:
    return torch.randn(shape).double()


CONVOLUTIONAL = [
    "resnet18", "densenet121", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf",
    "shufflenet_v2_x1_0", "squeezenet1_1", "convnext_tiny",
]  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_torchvision_at_another_batch_and_image_size(name: str) -> None:
    model = getattr(torchvision.models, name)(weights=None)
    check(model, image(2, 3, 64, 64), image(3, 3, 64, 64), image(1, 3, 96, 80))


@pytest.mark.parametrize(("name", "size"), [("swin_t", 64), ("swin_v2_t", 64), ("vit_b_16", 224)])
def test_torchvision_transformers_at_another_batch(name: str, size: int) -> None:
    model = getattr(torchvision.models, name)(weights=None)
    check(model, image(2, 3, size, size), image(3, 3, size, size))


def test_segmentation_returns_its_ordered_dict() -> None:
    make = torchvision.models.segmentation.deeplabv3_resnet50
    model = make(weights=None, weights_backbone=None)
    check(model, image(2, 3, 64, 64), image(3, 3, 64, 96))


TIMM = ["test_vit", "test_byobnet", "test_nfnet", "test_mambaout", "test_resnet", "levit_128s"]


@pytest.mark.parametrize("name", TIMM)
def test_timm_at_another_batch(name: str) -> None:
    model = timm.create_model(name)
    size = model.default_cfg["input_size"][-1]
    check(model, image(2, 3, size, size), image(3, 3, size, size))


SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64
}  # fmt: skip


def words(batch: int, length: int) -> dict[str, Tensor]:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, length - 2 :] = 0
    return {"input_ids": torch.randint(3, 90, (batch, length)), "attention_mask": mask}


def bert() -> nn.Module:
    config = transformers.BertConfig(vocab_size=99, max_position_embeddings=64, **SMALL)
    return transformers.BertModel(config)  # type: ignore[no-any-return]


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=99, n_positions=64, n_embd=32, n_layer=2, n_head=4, use_cache=False,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=99, num_key_value_heads=2, max_position_embeddings=64, use_cache=False, **SMALL
    )
    return transformers.LlamaForCausalLM(config)  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_language_models_at_another_batch_and_length(make: Callable[[], nn.Module]) -> None:
    check(make(), words(2, 12), words(5, 12), words(3, 17), words(1, 40))


def test_a_cache_among_the_outputs_is_rebuilt() -> None:
    model = llama().eval().double()
    model.config.use_cache = True
    gm = trace(model, words(2, 12))
    given = words(3, 9)
    got, want = gm(**given).past_key_values, model(**given).past_key_values
    assert type(got) is type(want)
    for a, b in zip(got.layers, want.layers, strict=True):
        assert torch.equal(a.keys, b.keys)
        assert torch.equal(a.values, b.values)


def test_an_image_transformer() -> None:
    config = transformers.ViTConfig(image_size=32, patch_size=8, **SMALL)
    example = {"pixel_values": image(2, 3, 32, 32)}
    check(transformers.ViTModel(config), example, {"pixel_values": image(5, 3, 32, 32)})


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers() if b.is_floating_point()}


@pytest.mark.parametrize("name", ["swin_t", "efficientnet_b0"])
def test_train_mode_draws_and_counts_as_the_model_does(name: str) -> None:
    model = alive(getattr(torchvision.models, name)(weights=None))
    gm = trace(model, image(2, 3, 64, 64))
    twin, x = copy.deepcopy(model).train(), image(3, 3, 64, 64)
    torch.manual_seed(5)
    want = twin(x)
    torch.manual_seed(5)
    assert torch.equal(gm.train()(x), want)
    assert not torch.equal(gm.eval()(x), want)
    mine, theirs = buffers(gm), buffers(twin)
    assert all(torch.equal(mine[n], theirs[n]) for n in mine if n in theirs)


def test_train_mode_of_a_language_model() -> None:
    model = alive(bert())
    gm = trace(model, words(2, 12))
    given = words(3, 9)
    torch.manual_seed(5)
    want = model.train()(**given)
    torch.manual_seed(5)
    assert torch.equal(gm.train()(**given)[0], want[0])
