"""A mask as a grid of shares: how much of each cell is visible, with the certain cells known to be certain.

What the analyser settles is certain; of the rest a few elements are sampled. For pictures only: a share between 0 and
1 is an estimate. Any mask of a million tokens takes a fraction of a second.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import Mask, MaskMod, Sizes, mask_mod
from maskmod.analyser.reading import Reading, read
from maskmod.analyser.settle import TileList
from maskmod.errors import MaskValueError
from maskmod.facts.tiles import tiles_of

__all__ = ["Shades", "one_head", "shades_of"]

SAMPLES = 8  # queries, and as many keys, of a cell that is not settled
_AT_ONCE = 1 << 20


class Shades(NamedTuple):
    """``share`` (rows, columns) in 0..1; ``certain`` where it is 0 or 1 for every element of the cell."""

    share: Tensor
    certain: Tensor
    cell: int


def one_head(mask: Mask, sizes: Sizes, b: int, h: int, who: str) -> Reading:
    """One batch row and head of a mask, read as a mask of B = H = 1.

    Raises:
        MaskValueError: there is no such row or head.
    """
    if not (0 <= b < sizes.B and 0 <= h < sizes.H):
        seen = f"B={sizes.B} and H={sizes.H}"
        raise MaskValueError(f"{who}(b={b}, h={h})", seen, "Show a row and a head that exist.")
    one: MaskMod = mask
    if sizes.B * sizes.H > 1:
        one = mask_mod(lambda row, head, q_idx, kv_idx: mask(row + b, head + h, q_idx, kv_idx))
    return read(one, 1, 1, sizes.q_len, sizes.kv_len)


def shades_of(reading: Reading, cell: int) -> Shades:
    """The shares of cells of ``cell`` x ``cell`` elements of a mask read at B = H = 1."""
    _, _, q_len, kv_len = reading.sizes
    rows, columns = -(-q_len // cell), -(-kv_len // cell)
    share = torch.zeros(rows, columns)
    certain = torch.ones(rows, columns, dtype=torch.bool)
    tiles = tiles_of(reading, (cell, cell), exact=False)
    for q, kv, q_count, kv_count in torch.stack(tiles.full[2:], 1).tolist():
        share[q : q + q_count, kv : kv + kv_count] = 1
    undecided = TileList(*tiles.partial[:4])
    if undecided.count:
        found = torch.cat([_sampled(reading, undecided.take(part), cell) for part in _parts(undecided, cell)])
        share[undecided.q.cpu(), undecided.kv.cpu()] = found.cpu()
        certain[undecided.q.cpu(), undecided.kv.cpu()] = False
    return Shades(share, certain, cell)


def _parts(tiles: TileList, cell: int) -> tuple[Tensor, ...]:
    at_once = max(1, _AT_ONCE // min(SAMPLES, cell) ** 2)
    return torch.arange(tiles.count, device=tiles.q.device).split(at_once)


def _sampled(reading: Reading, tiles: TileList, cell: int) -> Tensor:
    """The visible share of sampled elements of each cell, kept off 0 and 1: the cell is not settled."""
    device, side = tiles.q.device, min(SAMPLES, cell)
    generator = torch.Generator(device=device).manual_seed(0)  # a picture is the same twice
    places = []
    for index, length in zip((tiles.q, tiles.kv), reading.sizes[2:], strict=True):
        # One random element of each of `side` strips: even, and no period of a mask can hide between them.
        strips = torch.arange(side, device=device) + torch.rand(
            index.shape[0], side, generator=generator, device=device
        )
        start = index.view(-1, 1) * cell
        places.append(start + (strips / side * (length - start).clamp(max=cell)).long())
    seen = reading.analysis((cell, cell), looks=True).tokens(tiles, *places)
    half = 0.5 / side**2
    return seen.float().mean((1, 2)).clamp(half, 1 - half)
