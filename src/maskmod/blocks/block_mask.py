"""torch's `BlockMask`, equal entry by entry to `create_block_mask`, without evaluating tokens needlessly."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskmod.algebra import MaskMod, Sizes
from maskmod.analyser.reading import Reading, read
from maskmod.analyser.settle import Analysis
from maskmod.blocks.classify import classes_of, is_long
from maskmod.blocks.index_tables import COMPACT_BYTES, Runs, compacted, from_classes, from_runs
from maskmod.errors import MaskValueError
from maskmod.facts.tiles import Rectangles, checked_block_size, descend, rectangles

__all__ = ["block_mask", "block_mask_of"]


def block_mask(
    mask: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    device: torch.device | str | None = None,
    block_size: int | tuple[int, int] = 128,
    exact: bool | None = None,
    compact: bool | None = None,
    q_blocks: bool = True,
) -> BlockMask:
    """torch's `BlockMask`, equal entry by entry to `create_block_mask`, without evaluating tokens needlessly.

    Args:
        mask: any callable ``(b, h, q_idx, kv_idx) -> bool``; it becomes the `mask_mod` unmodified.
        B, H: sizes; None means 1.
        device: None takes the device of the mask's own tensors, else torch's default.
        block_size: tokens in a block, or (queries, keys).
        exact: see `classify_blocks`.
        compact: True stores tables only as wide as their widest row, behind a view of the full logical width; such
            tables are read-only. None does so once a full table would pass 64 MiB; inside a trace it is False.
        q_blocks: False leaves out the transposed tables, which only a backward needs.

    >>> from maskmod import causal
    >>> block_mask(causal(), 1, 1, 512, 512).kv_num_blocks.tolist()
    [[[1, 1, 1, 1]]]
    """
    reading, block_size = read(mask, B, H, q_len, kv_len, device=device), checked_block_size(block_size)
    return block_mask_of(reading, block_size, exact=exact, compact=compact, q_blocks=q_blocks)


def block_mask_of(
    reading: Reading,
    block_size: tuple[int, int],
    *,
    exact: bool | None = None,
    compact: bool | None = None,
    q_blocks: bool = True,
) -> BlockMask:
    """`block_mask` of a mask that was read."""
    sizes = reading.sizes
    counts = [-(-n // s) for n, s in zip(sizes[2:], block_size, strict=True)]
    if reading.traced:
        if compact:
            raise MaskValueError(
                "block_mask(compact=True) inside a trace", "its width depends on values", "Leave compact=None there."
            )
        compact = False
    elif compact is None:
        compact = sizes.B * sizes.H * counts[0] * counts[1] * 4 > COMPACT_BYTES
    if is_long(reading, block_size):
        tables = _long_tables(reading, block_size, exact is not False, compact, q_blocks)
    else:
        tables = _tables(reading, block_size, exact, compact, q_blocks)
    expanded = [None if t is None else _expanded(t, sizes) for t in tables]
    lengths, mask = (sizes.q_len, sizes.kv_len), reading.written
    return BlockMask(lengths, *expanded, BLOCK_SIZE=block_size, mask_mod=mask)  # pyright: ignore


def _expanded(table: Tensor, sizes: Sizes) -> Tensor:
    """Every lane of its own where that is small, since kernels like it; otherwise one entry shared by all lanes."""
    shape = (sizes.B, sizes.H, *table.shape[2:])
    if table.shape == shape:
        return table
    table = table.expand(shape)
    return table.contiguous() if table.numel() * 4 <= COMPACT_BYTES else table


def _tables(
    reading: Reading, block_size: tuple[int, int], exact: bool | None, compact: bool, q_blocks: bool
) -> list[Tensor | None]:
    full, partial = classes_of(reading, block_size, exact=exact)
    tables: list[Tensor | None] = []
    for transposed in (False, True):
        for blocks in (partial, full):
            if transposed and not q_blocks:
                tables += [None, None]
                continue
            blocks = blocks.mT if transposed else blocks
            tables += compacted(blocks) if compact else from_classes(blocks)
    return tables


def _long_tables(
    reading: Reading, block_size: tuple[int, int], exact: bool, compact: bool, q_blocks: bool
) -> list[Tensor | None]:
    analysis = reading.analysis(block_size, looks=True)
    whole, single = rectangles(analysis, *descend(analysis, exact))
    full, partial = _trimmed(analysis, whole, single)
    rows, columns = analysis.counts
    tables: list[Tensor | None] = []
    for transposed in (False, True):
        for parts in (partial, full):
            if transposed and not q_blocks:
                tables += [None, None]
                continue
            shape = (*analysis.lanes, *((columns, rows) if transposed else (rows, columns)))
            tables += from_runs(_runs(parts, shape, transposed), shape, compact)
    return tables


def _trimmed(analysis: Analysis, whole: Rectangles, single: Rectangles) -> tuple[list[Rectangles], list[Rectangles]]:
    """(full, partial) rectangles: the blocks cut short by the lengths leave the full ones."""
    partial = [single]
    for dim in (0, 1):
        if analysis.sizes[2 + dim] % analysis.block_size[dim] == 0:
            continue
        last = analysis.counts[dim] - 1
        place, count = whole[2 + dim], whole[4 + dim]
        touches = place + count > last
        strip = [x[touches] for x in whole]
        strip[2 + dim], strip[4 + dim] = torch.full_like(strip[2 + dim], last), torch.ones_like(strip[4 + dim])
        partial.append(Rectangles(*strip))
        fields = list(whole)
        fields[4 + dim] = count - touches.long()
        whole = Rectangles(*(x[fields[4 + dim] > 0] for x in fields))
    return [whole], partial


def _runs(parts: list[Rectangles], shape: tuple[int, ...], transposed: bool) -> Runs:
    """Rectangles as runs along the rows (or the columns, transposed)."""
    runs = []
    for part in parts:
        b, h, q, kv, q_count, kv_count = part
        if transposed:
            q, kv, q_count, kv_count = kv, q, kv_count, q_count
        row = (b * shape[1] + h) * shape[2] + q
        total = int(q_count.sum())
        if total > row.shape[0]:
            tile = torch.repeat_interleave(q_count, output_size=total)
            row = torch.arange(total, device=row.device) + (row - q_count.cumsum(0) + q_count).index_select(0, tile)
            kv, kv_count = kv.index_select(0, tile), kv_count.index_select(0, tile)
        runs.append(Runs(row, kv, kv_count))
    return Runs(*(torch.cat(x) for x in zip(*runs, strict=True)))
