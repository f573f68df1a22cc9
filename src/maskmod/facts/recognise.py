"""What a mask turns out to be, whoever wrote it: a diagonal band, or packed documents with a band inside each.

`structure` reads types and never values, so that it answers the same in a trace. Here a candidate is read off a few
rows of tokens and then *proven* equal to the mask at these sizes, or dropped: a lambda is found causal, a window that
was written with `abs` is a window, documents are found in positions or starts as well as in ids. It looks at values:
outside a trace only, and never while a device's graph is captured.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maskmod._torch.tracing import readable
from maskmod.algebra import Index, MaskMod, as_mask
from maskmod.analyser.reading import Reading, read
from maskmod.analyser.settle import TileList
from maskmod.facts.proofs import Element, first_visible
from maskmod.facts.structure import Band

__all__ = ["Packed", "band_mask", "difference", "packed_mask", "proven_band", "proven_packed"]


class Packed(NamedTuple):
    """Documents laid end to end, ids (B|1, n) that count up from 0 in each row, and the band inside each document."""

    ids: Tensor
    band: Band


def proven_band(reading: Reading) -> Band | None:
    """The band that the mask is at these sizes, proven; None where it is none, and inside a trace.

    >>> from maskmod.analyser.reading import read
    >>> proven_band(read(lambda b, h, q_idx, kv_idx: abs(q_idx - kv_idx) < 3, 1, 1, 100, 100))
    Band(low=-2, high=2)
    """
    if not _may_look(reading) or reading.is_empty:
        return None
    q_len, kv_len = reading.sizes[2:]
    low = high = None
    # A bound that is ever met is met by the last row that sees something from below, by the first from above.
    for row in sorted({0, q_len // 2, q_len - 1}):
        hull = _hull(reading, row)
        if hull is None:
            continue
        low = hull[0] - row if hull[0] > 0 else low
        high = hull[1] - 1 - row if hull[1] < kv_len and high is None else high
    band = Band(low, high)
    return band if difference(reading, band_mask(band)) is None else None


def proven_packed(reading: Reading) -> Packed | None:
    """Packed documents with one band inside each, proven; None where the mask is no such thing, and inside a trace.

    >>> from maskmod.analyser.reading import read
    >>> start = torch.tensor([0, 0, 0, 3, 3])
    >>> mask = lambda b, h, q_idx, kv_idx: (kv_idx >= start[q_idx]) & (kv_idx <= q_idx)
    >>> packed = proven_packed(read(mask, 1, 1, 5, 5))
    >>> packed.ids.tolist(), packed.band
    ([[0, 0, 0, 1, 1]], Band(low=None, high=0))
    """
    q_len, kv_len = reading.sizes[2:]
    if not _may_look(reading) or reading.is_empty or q_len != kv_len:
        return None
    lanes = reading.lanes[0]
    ids = torch.zeros((lanes, q_len), dtype=torch.long, device=reading.device)
    if q_len > 1:
        # Neighbours of which neither sees the other belong to different documents.
        later = torch.arange(1, q_len, device=reading.device).view(-1, 1)
        for b in range(lanes):
            lane = torch.full((q_len - 1,), b, device=reading.device)
            tiles = TileList(lane, torch.zeros_like(lane), later[:, 0], later[:, 0])
            analysis = reading.analysis((1, 1), looks=True)
            apart = ~(analysis.tokens(tiles, later, later - 1) | analysis.tokens(tiles, later - 1, later)).view(-1)
            ids[b, 1:] = apart.cumsum(0)
    band = _band_inside(reading, ids)
    if band is None:
        return None
    packed = Packed(ids, band)
    return packed if difference(reading, packed_mask(packed)) is None else None


def difference(reading: Reading, candidate: MaskMod) -> Element | None:
    """Where the mask and the candidate differ, or None: they are equal."""
    return first_visible(read(reading.mask ^ as_mask(candidate), *reading.sizes, device=reading.device))


def band_mask(band: Band) -> MaskMod:
    """The band as a predicate."""

    def inside(b: Index, h: Index, q_idx: Index, kv_idx: Index) -> Index:
        seen = kv_idx >= 0
        if band.low is not None:
            seen = seen & (kv_idx - q_idx >= band.low)
        return seen if band.high is None else seen & (kv_idx - q_idx <= band.high)

    return inside


def packed_mask(packed: Packed) -> MaskMod:
    """The band inside each document as a predicate."""
    ids, inside = packed.ids, band_mask(packed.band)

    def seen(b: Index, h: Index, q_idx: Index, kv_idx: Index) -> Index:
        row = ids[0] if ids.shape[0] == 1 else ids[b]
        return (row[q_idx] == row[kv_idx]) & inside(b, h, q_idx, kv_idx)

    return seen


def _may_look(reading: Reading) -> bool:
    return not reading.traced and reading.root is not None and readable(*reading.mask.tensors())


def _hull(reading: Reading, row: int, b: int = 0) -> tuple[int, int] | None:
    """First and one past the last key of a row of lane (b, 0); None where it sees nothing."""
    at = torch.tensor([row], device=reading.device)
    lane, keys = torch.full_like(at, b), torch.arange(reading.sizes.kv_len, device=reading.device)
    tiles = TileList(lane, torch.zeros_like(lane), at, at)
    seen = reading.analysis((1, 1), looks=True).tokens(tiles, at.view(1, 1), keys.view(1, -1)).view(-1).nonzero()
    return (int(seen[0]), int(seen[-1]) + 1) if seen.shape[0] else None


def _band_inside(reading: Reading, ids: Tensor) -> Band | None:
    """The band that the first and the last row of the longest document show."""
    _, n = ids.shape
    flat = (ids + torch.arange(ids.shape[0], device=ids.device).view(-1, 1) * n).view(-1)
    _, lengths = flat.unique_consecutive(return_counts=True)
    longest = int(lengths.argmax())
    begin, size = int(lengths[:longest].sum()), int(lengths[longest])
    b, first = divmod(begin, n)
    top, bottom = _hull(reading, first, b), _hull(reading, first + size - 1, b)
    if top is None or bottom is None:
        return None
    low = None if bottom[0] <= first else bottom[0] - (first + size - 1)
    high = None if top[1] >= first + size else top[1] - 1 - first
    return Band(low, high)
