"""What each rank would have to do under a layout: counted from the mask, no process group needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from maskmod.algebra import Mask, MaskMod, as_mask
from maskmod.blocks.classify import classify_blocks
from maskmod.distributed.layouts import Layout, offsets
from maskmod.distributed.routes import counts, needed
from maskmod.distributed.shard import length_of, shard
from maskmod.distributed.work import row_work

__all__ = ["Load", "load"]


class Load(NamedTuple):
    """Figures of each rank, in the order of the ranks.

    Attributes:
        tokens: how many it holds.
        area: visible (query, key) pairs of its queries, over all batch rows and heads, exactly.
        blocks: blocks of its shard that are not empty, which is what a block-sparse kernel runs.
        keys: keys of other ranks that its queries may see, in whole blocks.
        bytes: what fetching their keys and values moves for one layer. gathered: what an all-gather would.
    """

    mask: Mask
    layout: Layout
    tokens: tuple[int, ...]
    area: tuple[int, ...]
    blocks: tuple[int, ...] | None
    keys: tuple[int, ...] | None
    bytes: tuple[int, ...] | None
    gathered: tuple[int, ...]

    @property
    def imbalance(self) -> float:
        """The largest area over the mean: 1 is even, and the step takes that much longer."""
        return _imbalance(self.area)

    @property
    def block_imbalance(self) -> float | None:
        """The same of `blocks`."""
        return None if self.blocks is None else _imbalance(self.blocks)

    def to_json(self) -> str:
        """The figures as JSON."""
        figures = {name: getattr(self, name) for name in ("tokens", "area", "blocks", "keys", "bytes", "gathered")}
        named = {"mask": repr(self.mask), "layout": repr(self.layout), "imbalance": self.imbalance}
        return json.dumps({**named, "block_imbalance": self.block_imbalance, **figures}, indent=2)

    def __str__(self) -> str:
        columns = {
            name: getattr(self, name)
            for name in ("tokens", "area", "blocks", "keys", "bytes", "gathered")
            if getattr(self, name) is not None
        }
        rows = [("rank", *columns)]
        rows += [(str(rank), *(f"{c[rank]:,}" for c in columns.values())) for rank in range(len(self.tokens))]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        blocks = "" if self.block_imbalance is None else f", {self.block_imbalance:.4f} of blocks"
        return "\n".join([f"{self.layout!r}: max/mean {self.imbalance:.4f} of area{blocks}", *lines])


def load(
    mask: MaskMod,
    layout: Layout,
    world: int,
    B: int | None = None,
    H: int | None = None,
    length: int | None = None,
    *,
    kv_heads: int | None = None,
    head_dim: int = 128,
    itemsize: int = 2,
    block: int = 128,
    traffic: bool = True,
) -> Load:
    """The work and the traffic of every rank under a layout, counted on this process alone.

    Args:
        B, H: batch rows and query heads; None is 1. length: None where the layout knows it.
        kv_heads: None is H. head_dim, itemsize: numbers of a key (and of a value), and bytes of each.
        block: tokens of a block, for `Load.blocks` and for what is proven invisible.
        traffic: False leaves out blocks, keys and bytes, which read every rank's shard of the mask.

    >>> from maskmod import causal
    >>> from maskmod.distributed import Contiguous, HeadTail
    >>> [load(causal(), layout, 2, length=8).imbalance for layout in (Contiguous(), HeadTail())]
    [1.4444444444444444, 1.0]
    """
    mask, length = as_mask(mask), length_of(layout, length)
    B, H = 1 if B is None else B, 1 if H is None else H
    lengths = layout.lengths(world, length)
    work = row_work(mask, B, H, length, length).work
    order = layout.order(world, length).cpu()
    if order.dim() == 2:  # other tokens in each batch row: each row's own work
        rows = row_work(mask, B, H, length, length, by_row=True).work
        dealt = rows.expand(order.shape).gather(1, order).sum(0)
    else:
        dealt = work[order]
    area = tuple(int(part.sum()) for part in dealt.split(list(lengths)))
    row = (H if kv_heads is None else kv_heads) * B * head_dim * 2 * itemsize
    gathered = tuple((length - own) * row for own in lengths)
    if not traffic:
        return Load(mask, layout, lengths, area, None, None, None, gathered)
    blocks, keys = _traffic(mask, layout, world, B, H, length, block)
    return Load(mask, layout, lengths, area, blocks, keys, tuple(n * row for n in keys), gathered)


def _traffic(
    mask: Mask, layout: Layout, world: int, B: int, H: int, length: int, block: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    lengths = layout.lengths(world, length)
    begin, blocks, keys = offsets(lengths), [], []
    for rank in range(world):
        needs = needed(mask, layout, rank, world, B, H, length, block)
        own = counts(needs[None], lengths, block)[0]
        keys.append(int(own.sum() - own[rank]))
        if lengths[rank] == 0 or not length:
            blocks.append(0)
            continue
        mine = shard(mask, layout, rank, world, length, keys="global")
        classes = classify_blocks(mine, B, H, begin[rank + 1] - begin[rank], length, block_size=block)
        blocks.append(int((~classes.empty).sum()))
    return tuple(blocks), tuple(keys)


def _imbalance(figures: Sequence[int]) -> float:
    total = sum(figures)
    return max(figures) * len(figures) / total if total else 1.0
