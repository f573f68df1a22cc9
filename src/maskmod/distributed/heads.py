"""Every rank takes some heads of the whole sequence (Ulysses, arXiv 2309.14509), attends, and gives the rows back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from maskmod.distributed.exchange import exchange
from maskmod.distributed.local import Local

__all__ = ["Heads", "heads_divide", "kv_heads_of"]


class Heads(NamedTuple):
    """Attention between two exchanges."""

    group: ProcessGroup
    lengths: tuple[int, ...]
    order: Tensor | None  # None where the gathered order is that of the sequence
    restore: Tensor | None
    local: Local

    @property
    def received(self) -> int:
        return 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        world, rank = self.group.size(), self.group.rank()
        B, H, n, D = q.shape
        Hkv, Dv = k.shape[1], v.shape[-1]
        width, kv_width = H // world, len(kv_heads_of(0, world, H, Hkv))
        parts = []
        for other in range(world):  # what another rank gets: its heads of this rank's tokens
            theirs = list(kv_heads_of(other, world, H, Hkv))
            begin, end = theirs[0], theirs[-1] + 1
            mine = (q[:, other * width : (other + 1) * width], k[:, begin:end], v[:, begin:end])
            parts.append(torch.cat([x.permute(2, 0, 1, 3).flatten(2) for x in mine], dim=-1))
        sent = [self.lengths[rank]] * world
        rows = reorder(exchange(torch.cat(parts), sent, self.lengths, self.group), self.restore)
        q, k, v = (
            part.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3).contiguous()  # (B, heads, length, size)
            for part, heads in zip(
                rows.split([width * D, kv_width * D, kv_width * Dv], dim=-1), (width, kv_width, kv_width), strict=True
            )
        )
        out = reorder(self.local.attend(q, k, v, scale).permute(2, 0, 1, 3), self.order)  # (length, B, width, Dv)
        back = exchange(out, self.lengths, sent, self.group).unflatten(0, (world, -1))  # (world, n, B, width, Dv)
        return back.permute(2, 0, 3, 1, 4).reshape(B, H, n, Dv)


def kv_heads_of(rank: int, world: int, H: int, Hkv: int) -> range:
    """The kv heads that a rank's query heads read."""
    width, groups = H // world, H // Hkv
    return range(rank * width // groups, (rank * width + width - 1) // groups + 1)


def heads_divide(world: int, H: int, Hkv: int) -> bool:
    """Whether every rank can take as many query heads as any other, and the kv heads that these read."""
    return H > 0 and H % world == 0 and Hkv > 0 and H % Hkv == 0 and (Hkv % world == 0 or world % Hkv == 0)


def reorder(rows: Tensor, index: Tensor | None) -> Tensor:
    """Rows (n, B, ...) taken by (n,) or, each batch row by its own, (B, n)."""
    if index is None:
        return rows
    if index.dim() == 1:
        return rows.index_select(0, index)
    wide = index.mT.reshape(*rows.shape[:2], *[1] * (rows.dim() - 2)).expand_as(rows)
    return rows.gather(0, wide)
