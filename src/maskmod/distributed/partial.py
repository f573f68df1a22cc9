"""Attention over a part of the keys, with the log-sum-exp that lets parts be merged. It knows no ranks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["merge", "partial_attention"]

_NOTHING = -1e30  # in place of -inf, whose differences are NaN


def partial_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """``(out, lse)`` of queries over some keys: (B, H, q_len, Dv) and (B, H, q_len); a row that sees nothing 0, -inf.

    Args:
        visible: bool, broadcasts to (B, H, q_len, kv_len).
    """
    B, H, q_len, D = q.shape
    groups = H // max(k.shape[1], 1)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("bgrqd,bgkd->bgrqk", q.view(B, k.shape[1], groups, q_len, D).to(wide), k.to(wide)) * (
        1 / math.sqrt(D) if scale is None else scale
    )
    scores = scores.reshape(B, H, q_len, k.shape[2]).masked_fill(visible ^ True, -torch.inf)
    top = scores.detach().amax(-1, keepdim=True) if k.shape[2] else scores.new_full((B, H, q_len, 1), -torch.inf)
    top = torch.where(top == -torch.inf, 0.0, top)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    some = total > 0
    weights = weights / torch.where(some, total, 1.0)
    out = torch.einsum("bgrqk,bgkd->bgrqd", weights.view(B, k.shape[1], groups, q_len, -1), v.to(wide))
    lse = torch.where(some, torch.where(some, total, 1.0).log() + top, -torch.inf).squeeze(-1)
    return out.reshape(B, H, q_len, v.shape[-1]), lse


def merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two partial results over different keys as one; differentiable, rows that see nothing included."""
    left, right = (torch.where(part[1] == -torch.inf, _NOTHING, part[1]) for part in (a, b))
    lse = torch.logaddexp(left, right)
    out = a[0] * (left - lse).exp().unsqueeze(-1) + b[0] * (right - lse).exp().unsqueeze(-1)
    return out, torch.where(lse < _NOTHING / 2, -torch.inf, lse)
