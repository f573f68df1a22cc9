"""torch's ``scaled_dot_product_attention``: no mask or a flag where structure proves it, else a dense boolean."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.algebra import Sizes
from maskmod.analyser.reading import Reading
from maskmod.backends.dense_holder import DenseHolder
from maskmod.backends.empty_rows import check_absorbs, fill_empty_rows
from maskmod.backends.protocol import Backend, Bid, Holder, Request, Step
from maskmod.dense import bias_from_bool, dense_of, shared
from maskmod.facts.structure import band_of

__all__ = ["Sdpa", "SdpaArgs"]


class SdpaArgs(NamedTuple):
    """attn_mask is bool (B, H, q_len, kv_len), True = attend, or a bias of that shape; None where none is needed."""

    attn_mask: Tensor | None
    is_causal: bool
    why: str
    sizes: Sizes | None = None

    def kwargs(self) -> dict[str, Any]:
        """For ``F.scaled_dot_product_attention(q, k, v, **kwargs)``."""
        return {"attn_mask": self.attn_mask, "is_causal": self.is_causal}


_DENSE_LIMIT = 1 << 30  # bytes of a dense mask past which a backend without one is to be preferred


class Sdpa(Backend):
    name = "sdpa"

    def lower(self, reading: Reading, *, dtype: torch.dtype, empty_rows: str = "keep") -> SdpaArgs:
        args = _maskless(reading)
        if args is not None:
            return args
        visible = dense_of(reading)
        if empty_rows == "keep":
            return SdpaArgs(
                visible, False, "structure and static lengths prove it neither causal nor full: a dense boolean"
            )
        check_absorbs('lower(mask, "sdpa"', dtype)
        bias = bias_from_bool(visible, dtype, torch.finfo(dtype).min)
        return SdpaArgs(bias, False, "a bias: a row of minima is a row of uniform weights")

    def read_back(self, args: SdpaArgs) -> Tensor:
        if args.attn_mask is None and args.sizes is not None:
            seen = torch.ones(args.sizes, dtype=torch.bool)
            return seen.tril() if args.is_causal else seen
        if args.attn_mask is None or args.attn_mask.dtype == torch.bool:
            return args.attn_mask  # pyright: ignore[reportReturnType]
        return args.attn_mask == 0

    def bid(self, reading: Reading, request: Request) -> Bid | str:
        args = _maskless(reading)
        if args is not None:
            return Bid(0.0, args.why)
        B, H, q_len, kv_len = reading.sizes
        if known_true(B * H * q_len * kv_len > _DENSE_LIMIT):  # at most; one mask may serve all rows or heads
            B, H, q_len, kv_len = shared(reading).sizes
            if known_true(B * H * q_len * kv_len > _DENSE_LIMIT):
                return Bid(4.0, f"a dense mask would take {B * H * q_len * kv_len / 2**30:.1f} GiB")
        return Bid(2.0, "a dense boolean mask; no cheaper form is proven")

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        reading: Reading,
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

    def holder(self, step: Step) -> Holder:
        return _BooleanHolder(step)


def _maskless(reading: Reading) -> SdpaArgs | None:
    """The arguments without a mask, where structure and static lengths prove that none is needed, or None."""
    q_len, kv_len = reading.sizes.q_len, reading.sizes.kv_len
    band = band_of(reading.mask, q_len, kv_len)
    if band is None or known_true(kv_len == 0):
        return None
    if band.is_full(q_len, kv_len):
        why = "structure and static lengths prove that it hides nothing: no mask"
        return SdpaArgs(None, False, why, reading.sizes)
    if band.is_causal(q_len):
        return SdpaArgs(
            None, True, "structure and static lengths prove it top-left causal: the flag, no mask", reading.sizes
        )
    return None


class _BooleanHolder(DenseHolder):
    def __init__(self, step: Step):
        super().__init__(step)
        self.args = SdpaArgs(self.visible, False, "a boolean at a fixed address, rewritten each step")
