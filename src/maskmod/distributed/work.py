"""The work of each query: how many keys it sees. The one place that asks the library for it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from maskmod.algebra import MaskMod
from maskmod.facts.tiles import classify_tiles

__all__ = ["RowWork", "row_work"]


class RowWork(NamedTuple):
    """Visible pairs of each query (q_len,), over all heads and batch rows; its first and last key where asked for.

    A query that sees nothing has a first key past its last.
    """

    work: Tensor
    first: Tensor | None
    last: Tensor | None


def row_work(
    mask: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    hulls: bool = False,
    by_row: bool = False,
) -> RowWork:
    """How many keys each query sees, exactly.

    Args:
        hulls: whether the first and the last visible key are wanted too.
        by_row: keep batch rows apart: (B, q_len).
    """
    count, first, last = classify_tiles(mask, B, H, q_len, kv_len)._rows()
    if by_row:
        return RowWork(count.sum(1).cpu(), None, None)
    work = count.sum((0, 1)).cpu()
    if not hulls:
        return RowWork(work, None, None)
    return RowWork(work, first.amin((0, 1)).cpu(), last.amax((0, 1)).cpu())
