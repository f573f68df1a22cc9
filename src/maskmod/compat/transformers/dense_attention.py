"""Attention under a mask that is a tensor already, or none: one step's row, a model's own mask, a bias of positions.

Shapes: query (B, Hq, q_len, D), key (B, Hkv, kv_len, D), value (B, Hkv, kv_len, Dv), mask (B, 1 or Hq, q_len, kv_len),
bool or to be added -> (B, Hq, q_len, Dv). This module knows nothing of expressions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmod._torch.tracing import known_true

__all__ = ["fused_attention", "softmax_attention"]


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scaling: float | None
) -> Tensor:
    """SDPA over grouped heads, without repeating a key where a kernel can do without."""
    causal = causal and mask is None
    B, Hq, q_len, _ = query.shape
    groups = Hq // key.shape[1]
    if groups > 1 and known_true(q_len == 1) and (mask is None or known_true(mask.shape[1] == 1)):
        # The queries of a group are rows of one attention: no key is repeated or read twice.
        rows = query.reshape(B, key.shape[1], groups, -1)
        out = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
        return out.reshape(B, Hq, 1, -1)
    if groups > 1 and mask is not None and query.device.type != "cpu":  # grouped heads and a mask leave fused kernels
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        groups = 1
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=groups > 1
    )


def softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention in plain operations, the softmax in float32 or better: where a step's mask is a tensor already."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query @ key.transpose(2, 3)).to(wide) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
    if mask is not None:
        scores = scores.masked_fill(mask ^ True, torch.finfo(wide).min) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        column = sinks.to(wide).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], -1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    if mask is not None and mask.dtype == torch.bool:
        weights = weights.where(mask, 0)  # a row that sees nothing is zeros, as everywhere
    return weights.to(value.dtype) @ value
