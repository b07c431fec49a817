"""A network's positive, homogeneous counterpart: what SynFlow runs instead of the network.

`Linearized` is a mode: while it is on, torch functions run by the rows of a table, whether a
module, a function or a method calls them, so a captured graph needs no change. With non-negative
parameters and inputs every tensor is non-negative, and scaling a layer's output scales all that
it leads to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Row = Callable[..., Any]


class Linearized(TorchFunctionMode):
    """Runs activations as identities, norms as scales, and gates as constants of their value.

    Gates (sigmoid, softmax) keep their value, which bounds the numbers, and pass gradients as if
    they were proportional to their input: a saturated gate would pass none.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        row = _BY_FUNCTION.get(func) or _BY_NAME.get(getattr(func, "__name__", ""))
        return (func if row is None else row)(*args, **(kwargs or {}))


def _identity(input: Any, *args: Any, **kwargs: Any) -> Any:
    return input


def _unclamped(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return input if input.is_floating_point() else torch.clamp(input, *args, **kwargs)


def _double(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return input.double()


def _to(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A cast; what becomes a floating number becomes float64, as all others are."""
    cast = input.to(*args, **kwargs)
    return input.double() if cast.is_floating_point() else cast


def _scaled(input: Tensor, scale: Tensor | None, dim: int) -> Tensor:
    """`input` times the non-negative per-channel `scale` along `dim`."""
    if scale is None:
        return input
    shape = [1] * input.dim()
    shape[dim] = len(scale)
    return input * scale.reshape(shape)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    scaled = _scaled(input, weight, 1)
    return scaled if running_var is None else _scaled(scaled, (running_var + eps).rsqrt(), 1)


def _torch_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *cudnn: Any,
) -> Tensor:
    return _batch_norm(input, mean, var, weight, eps=eps)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    return _scaled(input, weight, 1)


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    return input if weight is None else input * weight


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    return _scaled(input, weight, 1)


def _rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """As models that write it by hand run here: a normaliser is a constant (see `rsqrt`)."""
    dims = tuple(range(-len(normalized_shape), 0))
    small = torch.finfo(input.dtype).eps if eps is None else eps
    normal = input * (input.square().mean(dims, keepdim=True) + small).rsqrt().detach()
    return normal if weight is None else normal * weight


def _detached(function: Callable[..., Tensor]) -> Row:
    """A factor that normalises: a constant."""
    return lambda *args, **kwargs: function(*args, **kwargs).detach()


def _proportional(gate: Tensor, input: Tensor) -> Tensor:
    """The value of `gate` with the gradient of a function proportional to `input`."""
    known = input.detach()
    usable = known.isfinite() & (known != 0)
    ratio = torch.where(usable, input / torch.where(usable, known, 1), 1)
    return gate.detach() * ratio


def _gate(function: Callable[..., Tensor]) -> Row:
    return lambda input, *args, **kwargs: _proportional(function(input, *args, **kwargs), input)


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    value, gate = input.chunk(2, dim)
    return value * _proportional(gate.sigmoid(), gate)


def _softmax(input: Tensor, dim: int, *args: Any, **kwargs: Any) -> Tensor:
    return _proportional(input.softmax(dim), input)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        repeats = query.size(-3) // key.size(-3)
        key, value = (t.repeat_interleave(repeats, -3) for t in (key, value))
    factor = 1 / math.sqrt(query.size(-1)) if scale is None else scale
    logits = query @ key.mT * factor
    masked = logits
    if is_causal:
        future = torch.ones_like(logits, dtype=torch.bool).triu(1)
        masked = masked.masked_fill(future, -math.inf)
    if attn_mask is not None:
        boolean = attn_mask.dtype == torch.bool
        masked = masked.masked_fill(~attn_mask, -math.inf) if boolean else masked + attn_mask
    return _proportional(masked.softmax(-1), logits) @ value


def _multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`F.multi_head_attention_forward` without its masks, biases and weights' average."""
    weights = (
        in_proj_weight.chunk(3)
        if in_proj_weight is not None
        else [options[f"{name}_proj_weight"] for name in "qkv"]
    )
    # (length, batch, embedding) or (length, embedding) → (..., head, length, dimension)
    heads = [
        F.linear(x, w).unflatten(-1, (num_heads, -1)).movedim(0, -2)
        for x, w in zip((query, key, value), weights, strict=True)
    ]
    mixed = _attention(*heads).movedim(-2, 0).flatten(-2)
    return F.linear(mixed, out_proj_weight), None


def _embedding(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Every row to the same part: the indices as one-hot vectors, replaced by a constant."""
    return weight.mean(0).expand(*input.shape, weight.shape[1])


def _embedding_bag(input: Tensor, weight: Tensor, offsets: Any = None, *args: Any, **k: Any) -> Any:
    bags = len(input) if offsets is None else len(offsets)
    return weight.mean(0).expand(bags, weight.shape[1])


# Smooth activations, and those with a ceiling: positive numbers pass unchanged.
_IDENTITIES = """gelu silu mish elu selu celu softplus softsign hardswish tanh log_softmax
relu6 hardtanh normalize local_response_norm
gelu_ silu_ elu_ selu_ celu_ hardswish_ tanh_ relu6_ hardtanh_"""

_BY_NAME: Mapping[str, Row] = MappingProxyType(
    {
        **dict.fromkeys(_IDENTITIES.split(), _identity),
        **dict.fromkeys("clamp clip clamp_max clamp_ clip_ clamp_max_".split(), _unclamped),
        **dict.fromkeys("float double half bfloat16".split(), _double),
        "to": _to,
        "rsqrt": _detached(torch.rsqrt),
        "sigmoid": _gate(torch.sigmoid),
        "hardsigmoid": _gate(F.hardsigmoid),
        "softmax": _softmax,
        "_softmax.default": _softmax,  # as recorded inside modules
        "_safe_softmax.default": _softmax,
        "glu": _glu,
        "scaled_dot_product_attention": _attention,
        "multi_head_attention_forward": _multi_head_attention,
        "embedding_bag": _embedding_bag,
        "layer_norm": _layer_norm,
        "rms_norm": _rms_norm,
        "group_norm": _group_norm,
        "instance_norm": _instance_norm,
    }
)
_BY_FUNCTION: Mapping[Any, Row] = MappingProxyType(
    {
        F.batch_norm: _batch_norm,
        torch.batch_norm: _torch_batch_norm,
        F.embedding: _embedding,
        torch.embedding: lambda weight, indices, *args, **kwargs: _embedding(indices, weight),
    }
)
