"""torch's ``scaled_dot_product_attention``: no mask or a flag where structure proves it, else a dense boolean."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmod._torch.tracing import known_true, readable
from maskmod.algebra import Sizes
from maskmod.analyser.reading import Reading
from maskmod.backends.costs import pairs, rates
from maskmod.backends.dense_holder import DenseHolder
from maskmod.backends.empty_rows import check_absorbs, fill_empty_rows
from maskmod.backends.protocol import Backend, Bid, Call, Holder, Request, Step
from maskmod.dense import bias_from_bool, dense_of
from maskmod.facts.recognise import proven_band
from maskmod.facts.structure import band_of

__all__ = ["Sdpa", "SdpaArgs"]


class SdpaArgs(NamedTuple):
    """attn_mask is bool (B, H, q_len, kv_len), True = attend, or a bias of that shape; None where none is needed.

    sees: bool (B, H, q_len, 1), set where `attn_mask` was opened in rows that see nothing, whose output is replaced.
    """

    attn_mask: Tensor | None
    is_causal: bool
    why: str
    sizes: Sizes | None = None
    sees: Tensor | None = None

    def kwargs(self) -> dict[str, Any]:
        """For ``F.scaled_dot_product_attention(q, k, v, **kwargs)``."""
        return {"attn_mask": self.attn_mask, "is_causal": self.is_causal}


_DENSE_LIMIT = 1 << 30  # bytes of a dense mask past which a backend without one is to be preferred
_WHY = "every pair is computed, under a dense boolean mask"
_TOO_LARGE = 1000.0  # how much dearer it is taken to be beyond


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
            seen = args.attn_mask
            return seen if args.sees is None else seen & args.sees  # pyright: ignore
        return args.attn_mask == 0

    def bid(self, reading: Reading, request: Request) -> Bid | str:
        B, H, q_len, kv_len = reading.sizes
        args = _maskless(reading)
        if reading.traced:  # a rank
            too_large = known_true(B * H * q_len * kv_len > _DENSE_LIMIT)
            return Bid(0.0, args.why) if args is not None else Bid(4.0 if too_large else 2.0, _WHY)
        rate, every = rates(request.device), request.B * request.H * q_len * kv_len
        if args is not None:
            return Bid(pairs(request, every * rate.causal) if args.is_causal else pairs(request, every), args.why)
        cost = pairs(request, every) * rate.masked + rate.entry * B * H * q_len * kv_len
        cost += rate.launch + rate.read / request.calls
        if B * H * q_len * kv_len > _DENSE_LIMIT:
            return Bid(_TOO_LARGE * cost, f"a dense mask would take {B * H * q_len * kv_len / 2**30:.1f} GiB")
        return Bid(cost, _WHY)

    def prepare(self, reading: Reading, request: Request, **options: Any) -> SdpaArgs:
        args = self.lower(reading, dtype=request.dtype, **options)
        if args.attn_mask is None:
            return args
        sees = args.attn_mask.any(-1, keepdim=True)
        if readable(sees) and bool(sees.all()):
            return args
        return args._replace(attn_mask=args.attn_mask | (sees ^ True), sees=sees)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, args: SdpaArgs, call: Call) -> Tensor | tuple[Tensor, Tensor]:
        mask, is_causal = args.attn_mask, args.is_causal
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=is_causal, scale=call.scale, enable_gqa=call.enable_gqa
        )
        return out if args.sees is None else fill_empty_rows(out, args.sees, v, call.empty_rows)

    def holder(self, step: Step) -> Holder:
        return _BooleanHolder(step)


def _maskless(reading: Reading) -> SdpaArgs | None:
    """The arguments without a mask, where structure and static lengths prove that none is needed, or None."""
    q_len, kv_len = reading.sizes.q_len, reading.sizes.kv_len
    band, how = band_of(reading.mask, q_len, kv_len), "structure and static lengths prove"
    if band is None and not known_true(q_len == 1):  # a step of one query builds its row sooner than a proof
        band, how = proven_band(reading), "outside a trace, its tiles prove"
    if band is None or known_true(kv_len == 0):
        return None
    if band.is_full(q_len, kv_len):
        why = f"{how} that it hides nothing: no mask"
        return SdpaArgs(None, False, why, reading.sizes)
    if band.is_causal(q_len):
        return SdpaArgs(None, True, f"{how} it top-left causal: the flag, no mask", reading.sizes)
    return None


class _BooleanHolder(DenseHolder):
    def __init__(self, step: Step):
        super().__init__(step)
        self.args = SdpaArgs(self.visible, False, "a boolean at a fixed address, rewritten each step")
