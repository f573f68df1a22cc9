"""Plain softmax attention in torch operations: the numerical reference, on every device and dtype, with gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod.analyser.reading import Reading
from maskmod.backends.costs import pairs, rates
from maskmod.backends.dense_holder import DenseHolder
from maskmod.backends.empty_rows import check_absorbs, fill_empty_rows
from maskmod.backends.protocol import Backend, Bid, Call, Holder, Request, Step
from maskmod.dense import bias_from_bool, dense_of
from maskmod.errors import MaskTypeError

__all__ = ["Eager", "EagerArgs", "eager_attention"]


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
    return _attend(q, k, v, attn_bias, Call(scale=scale, enable_gqa=enable_gqa))[0]


def _attend(q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """The output, and the scores that the weights are of, the sink's last where there is one."""
    if call.enable_gqa:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    factor = q.shape[-1] ** -0.5 if call.scale is None else call.scale
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ k.transpose(-2, -1)).to(wide) * factor
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    scores = scores + attn_bias
    if call.sink_logits is not None:
        sink = call.sink_logits.to(wide).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], -1)
    weights = scores.softmax(-1)[..., : k.shape[-2]]
    return (weights.to(v.dtype) @ v).to(q.dtype), scores


_WHY = "the reference, in plain torch operations"
_SLOWER = 4.0  # than a fused kernel


class Eager(Backend):
    name = "eager"
    takes = frozenset({"return_lse", "softcap", "sink_logits"})

    def lower(self, reading: Reading, *, dtype: torch.dtype, empty_rows: str = "keep") -> EagerArgs:
        if empty_rows == "uniform":  # a row of minima is one of uniform weights: the bias itself is that of "keep"
            check_absorbs('lower(mask, "eager"', dtype)
        bias = bias_from_bool(dense_of(reading), dtype, torch.finfo(dtype).min)
        return EagerArgs(bias, "a bias: the reference adds it to the scores")

    def read_back(self, args: EagerArgs) -> Tensor:
        return args.attn_bias == 0

    def bid(self, reading: Reading, request: Request) -> Bid | str:
        if reading.traced:  # a rank
            return Bid(64.0, _WHY)
        B, H, q_len, kv_len = reading.sizes
        every = request.B * request.H * q_len * kv_len
        rate = rates(request.device)
        cost = _SLOWER * pairs(request, every) + 4 * rate.entry * B * H * q_len * kv_len
        return Bid(cost + 6 * rate.launch + rate.read / request.calls, _WHY)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, args: EagerArgs, call: Call) -> Tensor | tuple[Tensor, Tensor]:
        out, scores = _attend(q, k, v, args.attn_bias, call)
        visible = args.attn_bias == 0
        out = fill_empty_rows(out, visible.any(-1, keepdim=True), v, call.empty_rows)
        if not call.return_lse:
            return out
        if call.sink_logits is not None:
            visible = torch.nn.functional.pad(visible, (0, 1), value=True)
        # A row without a score keeps one that is -inf, so that its gradient is zero and no NaN.
        lse = scores.masked_fill(~visible & visible.any(-1, keepdim=True), -torch.inf).logsumexp(-1)
        return out, lse.masked_fill(~visible.any(-1), -torch.inf)

    def holder(self, step: Step) -> Holder:
        return _BiasHolder(step)


class _BiasHolder(DenseHolder):
    """A bias (B, H|1, q_len, kv_len): 0 where visible, the dtype's minimum where hidden."""

    def __init__(self, step: Step):
        if not step.dtype.is_floating_point:
            written = f'DecodePlan({step.written!r}, backend="eager", dtype={step.dtype})'
            raise MaskTypeError(written, "a bias is added to scores", "Pass a floating dtype.")
        super().__init__(step)
        self.bias = self.visible = torch.zeros(step.sizes, dtype=step.dtype, device=step.device)
        self.args = EagerArgs(self.bias, "a bias at a fixed address, rewritten each step")

    def buffers(self) -> list[Tensor]:
        return [self.bias]

    def lines(self) -> list[str]:
        return [line.replace("boolean", f"bias {self.bias.dtype}", 1) for line in super().lines()]

    def write_(self) -> None:
        self.bias.copy_(bias_from_bool(self.read(), self.bias.dtype, torch.finfo(self.bias.dtype).min))
