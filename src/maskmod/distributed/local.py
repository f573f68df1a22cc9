"""One rank's attention over the keys it has: a mask at known sizes, and the kernel that reads it. It knows no ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import Mask
from maskmod.attention import attention
from maskmod.dense import dense_mask
from maskmod.distributed.partial import partial_attention

__all__ = ["Local"]


class Local(NamedTuple):
    """A mask over local rows and columns."""

    mask: Mask
    backend: str

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """(B, H, q_len, Dv); rows that see nothing are zero."""
        if q.shape[2] == 0 or k.shape[2] == 0:
            return q.new_zeros(*q.shape[:3], v.shape[3]) + _tie(q, k, v)
        gqa = q.shape[1] != k.shape[1]
        out = attention(q, k, v, self.mask, backend=self.backend, scale=scale, enable_gqa=gqa)
        return out + _tie(q, k, v)

    def partial(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
        """(B, H, q_len, Dv) and the log-sum-exp (B, H, q_len) of each row, -inf where it sees nothing."""
        if q.shape[2] == 0 or k.shape[2] == 0:
            wide = torch.promote_types(q.dtype, torch.float32)
            out = q.new_zeros(*q.shape[:3], v.shape[3], dtype=wide) + _tie(q, k, v)
            return out, q.new_full(q.shape[:3], -torch.inf, dtype=wide)
        visible = dense_mask(self.mask, q.shape[0], q.shape[1], q.shape[2], k.shape[2], device=q.device)
        return partial_attention(q, k, v, visible, scale)


def _tie(*tensors: Tensor) -> Tensor:
    """Zero, and part of the graph of each: a rank that sees nothing must send its (zero) gradients like the others."""
    return sum((tensor[..., :0].sum() for tensor in tensors[1:]), tensors[0][..., :0].sum())
