"""A dense mask painted from blocks: whole blocks are filled, partial ones evaluated. The same bits as the vmap lift.

Small masks are evaluated at once, by broadcasting the recorded expression. A predicate that is not understood is not
painted: the caller lifts it by vmap.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod.analyser.expression import evaluate
from maskmod.analyser.reading import Reading
from maskmod.analyser.settle import TileList

__all__ = ["paint"]

BLOCK = 32  # tokens; smaller blocks have less boundary to evaluate, larger ones less to decide
BROADCAST_TOKENS = 1 << 16  # masks of at most so many tokens are evaluated at once


def paint(reading: Reading) -> Tensor | None:  # bool (B, H, q_len, kv_len)
    """The mask, or None if the predicate is not understood. The result may be a view: clone it before writing."""
    sizes, device = reading.sizes, reading.device
    if reading.is_empty:
        return torch.empty(sizes, dtype=torch.bool, device=device)
    analysis = reading.analysis((BLOCK, BLOCK), looks=True)
    if analysis.root is None:
        return None
    shape = (*analysis.lanes, sizes.q_len, sizes.kv_len)
    if sizes.q_len * sizes.kv_len * analysis.lanes[0] * analysis.lanes[1] <= BROADCAST_TOKENS:
        return evaluate(analysis.root, lambda node: node.value).expand(sizes)
    must, may = analysis.grid()
    rows, columns = analysis.counts
    painted = torch.empty((*analysis.lanes, rows, BLOCK, columns * BLOCK), dtype=torch.bool, device=device)
    painted.copy_(must.repeat_interleave(BLOCK, -1).unsqueeze(3))
    words = painted.view(torch.int64).view(-1, BLOCK // 8)  # eight tokens at a time, one row of a block each
    open_ = (may & ~must).nonzero()
    step = torch.arange(BLOCK, device=device)
    for part in open_.split(analysis.at_once(BLOCK**2)) if open_.shape[0] else ():
        b, h, q, kv = part.unbind(1)
        visible = analysis.tokens(TileList(b, h, q, kv), *analysis.inside(TileList(b, h, q, kv)))
        block_row = ((b * analysis.lanes[1] + h) * rows + q).view(-1, 1) * BLOCK + step
        place = block_row * columns + kv.view(-1, 1)
        words.index_copy_(0, place.view(-1), visible.contiguous().view(torch.int64).view(-1, BLOCK // 8))
    painted = painted.view(*analysis.lanes, rows * BLOCK, columns * BLOCK)
    return painted[..., : shape[2], : shape[3]].expand(sizes)
