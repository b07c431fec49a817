"""Modules and functions that capture replaces by plainer ones.

A lowering is ordinary torch code: it runs in the place of the module's forward and is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload

from fxprune.capture.operators import function_of


@dataclass(frozen=True)
class _Heads:
    """The settings of an attention: `batch_first` says which of the first dimensions is batch."""

    count: int
    width: int
    dropout: float
    training: bool
    batch_first: bool
    need_weights: bool
    average: bool
    add_zero: bool
    causal: bool

    @property
    def batch_dim(self) -> int:
        return 0 if self.batch_first else 1

    def split(self, x: Tensor) -> Tensor:
        """(batch, length, heads * width) in either order -> (batch, heads, length, width)."""
        x = torch.unflatten(x, -1, (self.count, self.width))
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `split`."""
        x = x.transpose(1, 2) if self.batch_first else x.permute(2, 0, 1, 3)
        return x.flatten(2)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def _mask(
    heads: _Heads, q: Tensor, attn_mask: Tensor | None, padding: Tensor | None, extra: int
) -> Tensor | None:
    """The mask to add to the scores: broadcastable to (batch, heads, length, source)."""
    if attn_mask is not None:
        attn_mask = _additive(attn_mask, q.dtype)
        if extra:
            attn_mask = F.pad(attn_mask, (0, extra))
        if attn_mask.dim() == 3:
            attn_mask = torch.unflatten(attn_mask, 0, (-1, heads.count))
    if padding is None:
        return attn_mask
    padding = _additive(padding, q.dtype)
    if extra:
        padding = F.pad(padding, (0, extra))
    padding = padding[:, None, None, :]
    return padding if attn_mask is None else attn_mask + padding


def _attend(
    heads: _Heads, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor | None]:
    """Attention of (batch, heads, length, width) tensors; the weights where they are needed."""
    scale = 1.0 / math.sqrt(heads.width)
    if not heads.need_weights:
        p = heads.dropout if heads.training else 0.0
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=p, is_causal=causal and mask is None, scale=scale
        )
        return heads.join(out), None
    scores = torch.matmul(q * scale, k.transpose(-2, -1))
    weights = torch.softmax(scores if mask is None else scores + mask, -1)
    if heads.dropout > 0.0:
        weights = F.dropout(weights, heads.dropout, training=heads.training)
    out = heads.join(torch.matmul(weights, v))
    return out, weights.mean(1) if heads.average else weights


def _attention(
    heads: _Heads,
    projected: tuple[Tensor, Tensor, Tensor],
    biases: tuple[Tensor | None, Tensor | None],
    attn_mask: Tensor | None,
    padding: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Attention behind the input projections and before the output projection."""
    q, k, v = projected
    extra = 0
    bias_k, bias_v = biases
    if bias_k is not None and bias_v is not None:
        batch, along = k.size(heads.batch_dim), 1 - heads.batch_dim
        shape = (batch, 1, -1) if heads.batch_first else (1, batch, -1)
        k = torch.cat([k, bias_k.expand(*shape)], dim=along)
        v = torch.cat([v, bias_v.expand(*shape)], dim=along)
        extra += 1
    q, k, v = heads.split(q), heads.split(k), heads.split(v)
    if heads.add_zero:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        extra += 1
    causal = heads.causal and padding is None and not heads.need_weights
    mask = None if causal else _mask(heads, q, attn_mask, padding, extra)
    return _attend(heads, q, k, v, mask, causal)


def _project(
    inputs: tuple[Tensor, Tensor, Tensor],
    weights: tuple[Tensor, ...],
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    parts: tuple[Tensor | None, ...] = (None,) * 3 if bias is None else bias.chunk(3)
    q, k, v = (F.linear(x, w, b) for x, w, b in zip(inputs, weights, parts, strict=True))
    return q, k, v


def _weights(packed: Tensor | None, separate: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    found = tuple(w for w in separate if w is not None)
    return packed.chunk(3) if packed is not None and not found else found


def multi_head_attention_forward(
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
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    batch_first: bool = False,
    output: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`F.multi_head_attention_forward` in plain operations.

    query, key, value: (length, batch, embed), (batch, length, embed) with `batch_first`, or
    without batch. `output` is the output projection, instead of its weights.
    """
    if static_k is not None or static_v is not None:
        raise NotImplementedError("attention with static_k or static_v has no plain form")
    width = int(embed_dim_to_check) // num_heads
    unbatched = query.dim() == 2
    if unbatched:
        at = 0 if batch_first else 1
        query, key, value = query.unsqueeze(at), key.unsqueeze(at), value.unsqueeze(at)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    separate = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else ()
    weights = _weights(in_proj_weight, separate)
    heads = _Heads(
        num_heads, width, dropout_p, training, batch_first, need_weights, average_attn_weights,
        add_zero_attn, is_causal,
    )  # fmt: skip
    projected = _project((query, key, value), weights, in_proj_bias)
    out, scores = _attention(heads, projected, (bias_k, bias_v), attn_mask, key_padding_mask)
    out = F.linear(out, out_proj_weight, out_proj_bias) if output is None else output(out)
    if unbatched:
        out = out.squeeze(heads.batch_dim)
        scores = None if scores is None else scores.squeeze(0)
    return out, scores


def _multihead(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    return multi_head_attention_forward(
        query, key, value, module.embed_dim, module.num_heads,
        module.in_proj_weight, module.in_proj_bias, module.bias_k, module.bias_v,
        module.add_zero_attn, module.dropout, module.out_proj.weight, module.out_proj.bias,
        training=module.training, key_padding_mask=key_padding_mask, need_weights=need_weights,
        attn_mask=attn_mask, use_separate_proj_weight=not module._qkv_same_embed_dim,
        q_proj_weight=module.q_proj_weight, k_proj_weight=module.k_proj_weight,
        v_proj_weight=module.v_proj_weight, average_attn_weights=average_attn_weights,
        is_causal=is_causal, batch_first=module.batch_first, output=module.out_proj,
    )  # fmt: skip


def _channel_shuffle(module: nn.ChannelShuffle, x: Tensor) -> Tensor:
    return F.channel_shuffle(x, module.groups)


def _unflatten(module: nn.Unflatten, x: Tensor) -> Tensor:
    return torch.unflatten(x, module.dim, tuple(module.unflattened_size))


def _identity(module: nn.Identity, input: Any) -> Any:
    """Nothing: what comes in goes on."""
    return input


#: module class -> torch code that runs in the place of its forward
LOWERINGS: dict[type, Callable[..., Any]] = {
    nn.Identity: _identity,
    nn.MultiheadAttention: _multihead,
    nn.ChannelShuffle: _channel_shuffle,
    nn.Unflatten: _unflatten,
}
#: function -> torch code that runs in its place
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.multi_head_attention_forward: multi_head_attention_forward,
}


def lowered(function: Any, args: Sequence[Any]) -> Callable[..., Any] | None:
    """The torch code that runs in the place of a function or an operator; None for most."""
    if isinstance(function, OpOverload):
        found = function_of(function, args)
        return None if found is function else found
    return FUNCTIONS.get(function)
