"""torch's ``scaled_dot_product_attention``: no mask or a flag where structure proves it, else a dense boolean."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmod.algebra import Mask, Sizes
from maskmod.backends import Backend, Request
from maskmod.bands import band_of
from maskmod.empty_rows import check_absorbs, fill_empty_rows
from maskmod.readers import bias_from_bool, dense_mask
from maskmod.tracing import known_true

__all__ = ["BACKEND", "SdpaArgs"]


class SdpaArgs(NamedTuple):
    """attn_mask is bool (B, H, q_len, kv_len), True = attend, or a bias of that shape; None where none is needed."""

    attn_mask: Tensor | None
    is_causal: bool
    why: str

    def kwargs(self) -> dict[str, Any]:
        """For ``F.scaled_dot_product_attention(q, k, v, **kwargs)``."""
        return {"attn_mask": self.attn_mask, "is_causal": self.is_causal}


def maskless(mask: Mask, sizes: Sizes) -> SdpaArgs | None:
    """The arguments without a mask, where structure and static lengths prove that none is needed, or None."""
    q_len, kv_len = sizes.q_len, sizes.kv_len
    band = band_of(mask, q_len, kv_len)
    if band is None or known_true(kv_len == 0):
        return None
    if band.is_full(q_len, kv_len):
        return SdpaArgs(None, False, "structure and static lengths prove that it hides nothing: no mask")
    if band.is_causal(q_len):
        return SdpaArgs(None, True, "structure and static lengths prove it top-left causal: the flag, no mask")
    return None


def lower(
    mask: Mask, sizes: Sizes, *, dtype: torch.dtype, device: torch.device | None, empty_rows: str = "keep"
) -> SdpaArgs:
    args = maskless(mask, sizes)
    if args is not None:
        return args
    visible = dense_mask(mask, *sizes, device=device)
    if empty_rows == "keep":
        return SdpaArgs(
            visible, False, "structure and static lengths prove it neither causal nor full: a dense boolean"
        )
    check_absorbs('lower(mask, "sdpa"', dtype)
    bias = bias_from_bool(visible, dtype, torch.finfo(dtype).min)
    return SdpaArgs(bias, False, "a bias: a row of minima is a row of uniform weights")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    args: SdpaArgs,
    *,
    scale: float | None,
    enable_gqa: bool,
    empty_rows: str,
) -> Tensor:
    if args.attn_mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=args.is_causal, scale=scale, enable_gqa=enable_gqa)
    sees_something = args.attn_mask.any(-1, keepdim=True)
    opened = args.attn_mask | (sees_something ^ True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=opened, scale=scale, enable_gqa=enable_gqa)
    return fill_empty_rows(out, sees_something, v, empty_rows)


def refuse(mask: Mask, request: Request) -> str | None:
    return None


BACKEND = Backend("sdpa", lower, attend, refuse)
