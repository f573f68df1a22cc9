"""Masks in blocks: classify them, build flex's `BlockMask`, paint a dense mask. No token is evaluated needlessly.

The analyser (`maskmod.abstract`) answers for whole blocks; a few sampled tokens prove most of the rest partial; what is
left is evaluated, in batches. Inside a trace everything has static shapes and no value is looked at; there a block may
be called partial that is not, which costs time and never changes attention, unless `exact=True`.

This package does not know what a mask means, only how to ask.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskmod.algebra import Mask, MaskMod, Sizes, as_mask, device_of, sizes_of
from maskmod.blocks.analysis import Analysis, TileList
from maskmod.blocks.paint import paint
from maskmod.blocks.tables import COMPACT_BYTES, Runs, compacted, from_classes, from_runs
from maskmod.blocks.tiles import Rectangles, Row, Tiles, descend, rectangles
from maskmod.dense import vmap_mask
from maskmod.errors import MaskTypeError, MaskValueError
from maskmod.tracing import known_true, tracing

__all__ = ["BlockClasses", "Rectangles", "Row", "Tiles", "block_mask", "classify_blocks", "classify_tiles", "paint"]

GRID_BLOCKS = 1 << 18  # up to this many blocks they are all asked about at once; beyond, big tiles come first


class BlockClasses(NamedTuple):
    """Which blocks are empty, partial and full: bool (B, H, n_q_blocks, n_kv_blocks) each, exactly one True.

    As in torch, a block cut short by the lengths is never full.
    """

    empty: Tensor
    partial: Tensor
    full: Tensor


def _block_size(block_size: int | tuple[int, int]) -> tuple[int, int]:
    pair = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    if len(pair) != 2 or any(isinstance(s, bool) or not isinstance(s, int) for s in pair):
        raise MaskTypeError(f"block_size={block_size!r}", "neither an int nor a pair of ints", "Pass 128, or (q, kv).")
    if min(pair) < 1:
        raise MaskValueError(f"block_size={block_size!r}", "blocks of no tokens", "Pass 1 or more.")
    return pair


class _Job(NamedTuple):
    """Checked arguments, as every reader here needs them."""

    mask: Mask
    sizes: Sizes
    block_size: tuple[int, int]
    device: torch.device
    traced: bool
    exact: bool


def _job(
    mask: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    block_size: int | tuple[int, int],
    exact: bool | None,
    device: torch.device | str | None,
) -> _Job:
    mask = as_mask(mask)
    sizes = sizes_of(mask, B, H, q_len, kv_len)
    traced = tracing(*mask.tensors())
    return _Job(
        mask, sizes, _block_size(block_size), device_of(mask, device), traced, not traced if exact is None else exact
    )


def classify_blocks(
    mask: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    block_size: int | tuple[int, int] = 128,
    exact: bool | None = None,
    device: torch.device | str | None = None,
) -> BlockClasses:
    """Every block as empty, partial or full.

    Args:
        mask: any callable ``(b, h, q_idx, kv_idx) -> bool``.
        B, H: sizes; None means 1.
        block_size: tokens in a block, or (queries, keys).
        exact: True opens the blocks that the analyser leaves open; False may call a block partial that is empty or
            full. None is True outside a trace and False inside one. True inside a trace evaluates every token.
        device: None takes the device of the mask's own tensors, else torch's default.

    >>> from maskmod import causal
    >>> classify_blocks(causal(), 1, 1, 6, 6, block_size=2).partial[0, 0].int().tolist()
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    """
    job = _job(mask, B, H, q_len, kv_len, block_size, exact, device)
    full, partial = _classes(job)
    shape = (*job.sizes[:2], *full.shape[2:])
    full, partial = full.expand(shape), partial.expand(shape)
    return BlockClasses(~(full | partial), partial, full)


def _classes(job: _Job) -> tuple[Tensor, Tensor]:  # bool (B|1, H|1, n_q, n_kv) each
    """(full, partial) over all blocks, with torch's rule for blocks cut short."""
    if any(known_true(n == 0) for n in job.sizes):
        counts = [-(-n // s) for n, s in zip(job.sizes[2:], job.block_size, strict=True)]
        nothing = torch.zeros((*job.sizes[:2], *counts), dtype=torch.bool, device=job.device)
        return nothing, nothing.clone()
    analysis = Analysis(*job[:4], looks=job.exact)
    if job.traced:
        if job.exact or analysis.root is None:
            must, may = _evaluated(job)
        else:
            must, may = analysis.grid()
    elif analysis.counts[0] * analysis.counts[1] <= GRID_BLOCKS or analysis.root is None:
        must, may = analysis.grid()
        if job.exact:
            must, may = _settled(analysis, must, may)
    else:
        must, may = _filled(analysis, job.exact)
    return _cut(job, analysis, must, may)


def _evaluated(job: _Job) -> tuple[Tensor, Tensor]:
    """Every token, in a graph."""
    visible = vmap_mask(job.mask, *job.sizes, device=job.device)
    answers = []
    for padding in (True, False):
        x = visible
        for dim, size, length in zip((-2, -1), job.block_size, job.sizes[2:], strict=True):
            pad = [0, 0] * (-1 - dim) + [0, -length % size]
            x = torch.nn.functional.pad(x, pad, value=padding)
        rows, columns = x.shape[-2] // job.block_size[0], x.shape[-1] // job.block_size[1]
        x = x.view(*x.shape[:2], rows, job.block_size[0], columns, job.block_size[1])
        answers.append(x.all(-1).all(-2) if padding else x.any(-1).any(-2))
    return answers[0], answers[1]


def _settled(analysis: Analysis, must: Tensor, may: Tensor) -> tuple[Tensor, Tensor]:
    open_ = (may & ~must).nonzero()
    if not open_.shape[0]:
        return must, may
    where = open_.unbind(1)
    full, empty = analysis.settle(TileList(*where))
    must, may = must.clone(), may.clone()
    must[where], may[where] = full, ~empty
    return must, may


def _filled(analysis: Analysis, exact: bool) -> tuple[Tensor, Tensor]:
    """The quad-tree's answer spread over a table of blocks."""
    full, partial = descend(analysis, exact)
    must = torch.zeros((*analysis.lanes, *analysis.counts), dtype=torch.bool, device=analysis.device)
    for ratio, tiles in full:
        step = torch.arange(ratio, device=analysis.device)
        rows, columns = analysis.counts
        q = (tiles.q.view(-1, 1, 1) * ratio + step.view(1, -1, 1)).clamp(max=rows - 1)
        kv = (tiles.kv.view(-1, 1, 1) * ratio + step).clamp(max=columns - 1)
        must[tiles.b.view(-1, 1, 1), tiles.h.view(-1, 1, 1), q, kv] = True
    may = must.clone()
    may[tuple(partial)] = True
    return must, may


def _cut(job: _Job, analysis: Analysis, must: Tensor, may: Tensor) -> tuple[Tensor, Tensor]:
    """(full, partial) from (must, may): torch pads with False, so a block cut short is never full."""
    full = must & may
    for dim, size, length in zip((2, 3), job.block_size, job.sizes[2:], strict=True):
        if not known_true(length % size == 0):
            whole = torch.arange(full.shape[dim], device=full.device) < length // size
            full = full & (whole.view(-1, 1) if dim == 2 else whole)
    return full, may & ~full


def classify_tiles(
    mask: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    block_size: int | tuple[int, int] = 128,
    exact: bool | None = None,
    device: torch.device | str | None = None,
) -> Tiles:
    """A quad-tree of the mask: big tiles that are visible throughout, and the blocks on the boundary.

    The same answer as `classify_blocks` in O(N + boundary) memory and time, for lengths whose block table
    would not fit. Not for use inside a trace: its shapes depend on values.

    >>> from maskmod import causal
    >>> tiles = classify_tiles(causal(), 1, 1, 1024, 1024)
    >>> tiles.visible(), tiles.first_empty_row()
    (524800, None)
    """
    job = _job(mask, B, H, q_len, kv_len, block_size, exact, device)
    if job.traced:
        raise MaskTypeError(
            "classify_tiles(...) inside a trace", "its shapes depend on values", "Use classify_blocks there."
        )
    analysis = Analysis(*job[:4], looks=True)
    if 0 in job.sizes:
        nothing = torch.zeros(0, dtype=torch.long, device=job.device)
        none = Rectangles(*(nothing,) * 6)
        return Tiles(none, none, True, job.block_size, analysis)
    full, partial = rectangles(analysis, *descend(analysis, job.exact))
    return Tiles(full, partial, job.exact, job.block_size, analysis)


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
    job = _job(mask, B, H, q_len, kv_len, block_size, exact, device)
    counts = [-(-n // s) for n, s in zip(job.sizes[2:], job.block_size, strict=True)]
    if job.traced:
        if compact:
            raise MaskValueError(
                "block_mask(compact=True) inside a trace", "its width depends on values", "Leave compact=None there."
            )
        compact = False
    elif compact is None:
        compact = job.sizes.B * job.sizes.H * counts[0] * counts[1] * 4 > COMPACT_BYTES
    tables = _long_tables(job, compact, q_blocks) if _is_long(job, counts) else _tables(job, compact, q_blocks)
    expanded = [None if t is None else _expanded(t, job.sizes) for t in tables]
    return BlockMask((job.sizes.q_len, job.sizes.kv_len), *expanded, BLOCK_SIZE=job.block_size, mask_mod=mask)  # pyright: ignore


def _is_long(job: _Job, counts: list[int]) -> bool:
    return not job.traced and 0 not in job.sizes and counts[0] * counts[1] > GRID_BLOCKS


def _expanded(table: Tensor, sizes: Sizes) -> Tensor:
    """Every lane of its own where that is small, since kernels like it; otherwise one entry shared by all lanes."""
    shape = (sizes.B, sizes.H, *table.shape[2:])
    if table.shape == shape:
        return table
    table = table.expand(shape)
    return table.contiguous() if table.numel() * 4 <= COMPACT_BYTES else table


def _tables(job: _Job, compact: bool, q_blocks: bool) -> list[Tensor | None]:
    full, partial = _classes(job)
    tables: list[Tensor | None] = []
    for transposed in (False, True):
        for blocks in (partial, full):
            if transposed and not q_blocks:
                tables += [None, None]
                continue
            blocks = blocks.mT if transposed else blocks
            tables += compacted(blocks) if compact else from_classes(blocks)
    return tables


def _long_tables(job: _Job, compact: bool, q_blocks: bool) -> list[Tensor | None]:
    analysis = Analysis(*job[:4], looks=True)
    whole, single = rectangles(analysis, *descend(analysis, job.exact))
    full, partial = _trimmed(job, analysis, whole, single)
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


def _trimmed(
    job: _Job, analysis: Analysis, whole: Rectangles, single: Rectangles
) -> tuple[list[Rectangles], list[Rectangles]]:
    """(full, partial) rectangles: the blocks cut short by the lengths leave the full ones."""
    partial = [single]
    for dim in (0, 1):
        if job.sizes[2 + dim] % job.block_size[dim] == 0:
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
