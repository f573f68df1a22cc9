"""Diagonal bands over a flat step: causal masks and windows, whose tokens each see one run of their request's keys.

What structure proves of a mask needs no predicate: runs of slots over gathered keys, and whole blocks over both
layouts, by a few comparisons of lengths. Exact for runs; for blocks, as elsewhere, one in doubt is called partial.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod.facts.structure import Band
from maskmod.serving.tokens import OfGathered, OfPages

__all__ = ["BandBlocks", "PageBlocks", "Runs"]


class Runs:
    """The slots ``begin <= slot < end`` that each token sees among gathered keys."""

    def __init__(self, where: OfGathered, band: Band):
        self.where, self.band, self.kv_len = where, band, where.layout.max_keys
        self._zero = torch.zeros(1, dtype=torch.int64, device=where.device)

    def read(self) -> tuple[Tensor, Tensor]:
        """Both (max_tokens,) int64, ``begin <= end``."""
        where, (low, high) = self.where, self.band
        first, last = where.key_starts[:-1], where.key_starts[1:]
        shift = last - where.lengths  # slot minus position
        zero = self._zero
        # A request's slots from position 0 on, and one more entry for tokens that are not used: no slots.
        begins = torch.cat((torch.maximum(first, shift), zero)).index_select(0, where.which)
        ends = torch.cat((last, zero)).index_select(0, where.which)
        if low is not None or high is not None:
            own = where.positions + torch.cat((shift, zero)).index_select(0, where.which)
            if low is not None:
                begins = torch.maximum(begins, own + low)
            if high is not None:
                ends = torch.minimum(ends, own + (high + 1))
        begins = begins.clamp(max=self.kv_len)
        return begins, torch.maximum(ends.clamp(max=self.kv_len), begins)


class BandBlocks:
    """Blocks of a band over gathered keys, from each token's run."""

    def __init__(self, where: OfGathered, band: Band, size: int):
        self.runs, self.size = Runs(where, band), size
        self.counts = [-(-n // size) for n in (where.max_tokens, where.layout.max_keys)]
        self.missing = self.counts[0] * size - where.max_tokens
        begin = torch.arange(self.counts[1], device=where.device) * size
        self.begin, self.end = begin, begin + size

    def read(self) -> tuple[Tensor, Tensor]:
        """(full, partial), bool (1, 1, n_q, n_kv); as in torch, a block cut short by the lengths is never full."""
        begin, end = (torch.nn.functional.pad(x, (0, self.missing))[:, None] for x in self.runs.read())
        sees = (torch.maximum(begin, self.begin) < torch.minimum(end, self.end)).view(-1, self.size, self.counts[1])
        all_of_it = ((begin <= self.begin) & (end >= self.end)).view(-1, self.size, self.counts[1])
        full = all_of_it.all(1)
        return full[None, None], (sees.any(1) & ~full)[None, None]


class PageBlocks:
    """Blocks of a band over pages, from what the tokens of one request in a block of queries see together."""

    def __init__(self, where: OfPages, band: Band, size: int):
        self.where, self.band, self.size = where, band, size
        pages, page = where.layout.num_pages, where.layout.page_size
        n_q, n_kv = (-(-n // size) for n in (where.max_tokens, pages * page))
        device = where.device
        self.begin = torch.arange(n_q, device=device)[:, None] * size  # (n_q, 1)
        first = torch.arange(pages, device=device)[:, None] * page
        block = torch.arange(n_kv, device=device) * size
        touches = (first < block + size) & (first + page > block)
        self.touches = touches.float()  # (pages, n_kv): a page's slots lie in a block, in whole or in part
        uncut = block + size <= pages * page
        self.pages_of_block = torch.where(uncut, touches.sum(0), pages + 1).float()  # a block cut short is never full

    def read(self) -> tuple[Tensor, Tensor]:
        """(full, partial), bool (1, 1, n_q, n_kv)."""
        where, (low, high), page = self.where, self.band, self.where.layout.page_size
        starts, ends, lengths = where.starts[:-1], where.starts[1:], where.lengths
        first = torch.maximum(starts, self.begin)  # (n_q, requests): the request's tokens in the block
        last = torch.minimum(ends, self.begin + self.size) - 1
        shift = lengths - ends
        holds = (where.logical >= 0)[None]
        page_first = where.logical[None] * page  # (1, requests, pages): positions
        page_last = page_first + (page - 1)
        sees = holds & (first <= last)[..., None] & (page_first < lengths[:, None])
        alone = (last - first == self.size - 1)[..., None]
        all_of_it = holds & alone & (page_last < lengths[:, None])
        if high is not None:
            sees = sees & (page_first <= (last + shift + high)[..., None])
            all_of_it = all_of_it & (page_last <= (first + shift + high)[..., None])
        if low is not None:
            sees = sees & (page_last >= (first + shift + low)[..., None])
            all_of_it = all_of_it & (page_first >= (last + shift + low)[..., None])
        may = (sees.any(1).float() @ self.touches) > 0
        full = (all_of_it.any(1).float() @ self.touches) == self.pages_of_block
        return full[None, None], (may & ~full)[None, None]
