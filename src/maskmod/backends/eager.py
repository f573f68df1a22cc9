"""Plain softmax attention in torch operations: the numerical reference, on every device and dtype, with gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import Mask, Sizes
from maskmod.backends import Backend, Request
from maskmod.empty_rows import check_absorbs, fill_empty_rows
from maskmod.readers import additive_bias

__all__ = ["BACKEND", "EagerArgs", "eager_attention"]


class EagerArgs(NamedTuple):
    """A bias to add to the scores: 0 where visible, ``finfo(dtype).min`` where hidden, (B, H, q_len, kv_len)."""

    attn_bias: Tensor
    why: str

    def kwargs(self) -> dict[str, Any]:
        """For `eager_attention` (q, k, v, **kwargs)."""
        return {"attn_bias": self.attn_bias}


def eager_attention(
    q: Tensor, k: Tensor, v: Tensor, *, attn_bias: Tensor, scale: float | None = None, enable_gqa: bool = False
) -> Tensor:
    """``softmax(q @ k.T * scale + attn_bias) @ v``, the softmax in float32 or better.

    Shapes: q (B, Hq, q_len, D), k (B, Hkv, kv_len, D), v (B, Hkv, kv_len, Dv) -> (B, Hq, q_len, Dv). A row whose bias
    is ``finfo.min`` everywhere gets uniform weights (not in float16, whose minimum does not absorb the scores).
    """
    if enable_gqa:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ k.transpose(-2, -1)).to(wide) * factor + attn_bias
    return (scores.softmax(-1).to(v.dtype) @ v).to(q.dtype)


def lower(
    mask: Mask, sizes: Sizes, *, dtype: torch.dtype, device: torch.device | None, empty_rows: str = "keep"
) -> EagerArgs:
    if empty_rows == "uniform":  # a row of minima is one of uniform weights: the bias itself is the same as for "keep"
        check_absorbs('lower(mask, "eager"', dtype)
    return EagerArgs(
        additive_bias(mask, *sizes, dtype=dtype, device=device), "a bias: the reference adds it to the scores"
    )


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    args: EagerArgs,
    *,
    scale: float | None,
    enable_gqa: bool,
    empty_rows: str,
) -> Tensor:
    out = eager_attention(q, k, v, attn_bias=args.attn_bias, scale=scale, enable_gqa=enable_gqa)
    return fill_empty_rows(out, (args.attn_bias == 0).any(-1, keepdim=True), v, empty_rows)


def refuse(mask: Mask, request: Request) -> str | None:
    return None


BACKEND = Backend("eager", lower, attend, refuse)
