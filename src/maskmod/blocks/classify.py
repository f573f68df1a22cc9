"""Every block of a mask as empty, partial or full. No token is evaluated needlessly.

The analyser answers for whole blocks; a few sampled tokens prove most of the rest partial; what is left is evaluated,
in batches. Inside a trace everything has static shapes and no value is looked at; there a block may be called partial
that is not, which costs time and never changes attention, unless `exact=True`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.algebra import MaskMod, Sizes
from maskmod.analyser.reading import Reading, read
from maskmod.analyser.settle import Analysis, TileList
from maskmod.facts.tiles import checked_block_size, descend
from maskmod.oracle import vmap_of

__all__ = ["BlockClasses", "classes_of", "classify_blocks", "cut_short", "is_long"]

GRID_BLOCKS = 1 << 18  # up to this many blocks they are all asked about at once; beyond, big tiles come first


class BlockClasses(NamedTuple):
    """Which blocks are empty, partial and full: bool (B, H, n_q_blocks, n_kv_blocks) each, exactly one True.

    As in torch, a block cut short by the lengths is never full.
    """

    empty: Tensor
    partial: Tensor
    full: Tensor


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
    reading, block_size = read(mask, B, H, q_len, kv_len, device=device), checked_block_size(block_size)
    full, partial = classes_of(reading, block_size, exact=exact)
    shape = (*reading.sizes[:2], *full.shape[2:])
    full, partial = full.expand(shape), partial.expand(shape)
    return BlockClasses(~(full | partial), partial, full)


def is_long(reading: Reading, block_size: tuple[int, int]) -> bool:
    """Whether there are too many blocks to ask about at once; never so in a trace, where all shapes are static."""
    n_q, n_kv = (-(-n // s) for n, s in zip(reading.sizes[2:], block_size, strict=True))
    return not reading.traced and 0 not in reading.sizes and n_q * n_kv > GRID_BLOCKS


def classes_of(
    reading: Reading, block_size: tuple[int, int], *, exact: bool | None
) -> tuple[Tensor, Tensor]:  # bool (B|1, H|1, n_q, n_kv) each
    """(full, partial) over all blocks, with torch's rule for blocks cut short."""
    exact = not reading.traced if exact is None else exact
    if reading.is_empty:
        counts = [-(-n // s) for n, s in zip(reading.sizes[2:], block_size, strict=True)]
        nothing = torch.zeros((*reading.sizes[:2], *counts), dtype=torch.bool, device=reading.device)
        return nothing, nothing.clone()
    analysis = reading.analysis(block_size, looks=exact)
    if reading.traced:
        if exact or analysis.root is None:
            must, may = _evaluated(reading, block_size)
        else:
            must, may = analysis.grid()
    elif analysis.root is None or not is_long(reading, block_size):
        must, may = analysis.grid()
        if exact:
            must, may = _settled(analysis, must, may)
    else:
        must, may = _filled(analysis, exact)
    return cut_short(must, may, analysis.sizes, block_size)


def _evaluated(reading: Reading, block_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Every token, in a graph."""
    visible = vmap_of(reading.mask, reading.sizes, reading.device)
    answers = []
    for padding in (True, False):
        x = visible
        for dim, size, length in zip((-2, -1), block_size, reading.sizes[2:], strict=True):
            pad = [0, 0] * (-1 - dim) + [0, -length % size]
            x = torch.nn.functional.pad(x, pad, value=padding)
        rows, columns = x.shape[-2] // block_size[0], x.shape[-1] // block_size[1]
        x = x.view(*x.shape[:2], rows, block_size[0], columns, block_size[1])
        answers.append(x.all(-1).all(-2) if padding else x.any(-1).any(-2))
    return answers[0], answers[1]


def _settled(analysis: Analysis, must: Tensor, may: Tensor) -> tuple[Tensor, Tensor]:
    open_ = (may & ~must).nonzero()
    if not open_.shape[0]:
        return must, may
    where = open_.unbind(1)
    settled = analysis.settle(TileList(*where))
    assert settled is not None  # without a limit
    full, empty = settled
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


def cut_short(
    must: Tensor, may: Tensor, sizes: Sizes, block_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:  # as must and may
    """(full, partial) from (must, may): torch pads with False, so a block cut short is never full."""
    full = must & may
    for dim, size, length in zip((2, 3), block_size, sizes[2:], strict=True):
        if not known_true(length % size == 0):
            whole = torch.arange(full.shape[dim], device=full.device) < length // size
            full = full & (whole.view(-1, 1) if dim == 2 else whole)
    return full, may & ~full
