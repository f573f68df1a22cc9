"""flex's block tables of a flat step, of each request's own blocks alone, at fixed addresses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskmod.backends.flex import FlexArgs
from maskmod.blocks.classify import classify_blocks
from maskmod.blocks.index_tables import from_classes
from maskmod.serving.ragged_bands import BandBlocks, PageBlocks
from maskmod.serving.ragged_step import Holder, RaggedStep, band_of_any_length
from maskmod.serving.tokens import OfGathered, OfPages

__all__ = ["Blocks"]


class Blocks(Holder):
    """A BlockMask with full-width tables, of a request's own blocks only; the predicate reads the plan's buffers."""

    reads_keys = True

    def __init__(self, step: RaggedStep):
        self.step, self.size, sizes = step, step.block_size, step.sizes
        n_q, n_kv = (-(-n // self.size) for n in (sizes.q_len, sizes.kv_len))
        count, indices = (1, sizes.H, n_q), (1, sizes.H, n_q, n_kv)
        self.tables = [torch.zeros(s, dtype=torch.int32, device=step.device) for s in (count, indices, count, indices)]
        lengths, size = (sizes.q_len, sizes.kv_len), (self.size, self.size)
        no_q_blocks = (None,) * 4  # only a backward needs them
        blocks = BlockMask(lengths, *self.tables, *no_q_blocks, BLOCK_SIZE=size, mask_mod=step.mask)  # pyright: ignore
        self.args = FlexArgs(blocks, "a BlockMask whose full-width tables are rewritten in place each step")
        self.q_begins = torch.arange(n_q, device=step.device) * self.size
        self.page_blocks = (
            _blocks_of_pages(step.where, n_kv, self.size) if isinstance(step.where, OfPages) else self.q_begins
        )
        self.kv_begins = torch.arange(n_kv, device=step.device) * self.size

        self.band = None
        band = band_of_any_length(step.written)
        if band is not None and isinstance(step.where, OfPages):
            self.band = PageBlocks(step.where, band, self.size)
        elif band is not None and isinstance(step.where, OfGathered):
            self.band = BandBlocks(step.where, band, self.size)

    def buffers(self) -> list[Tensor]:
        return self.tables

    def lines(self) -> list[str]:
        return [f"tables of {list(self.tables[1].shape)} blocks of {self.size}, of each request's own keys alone"]

    def write_(self) -> None:
        # Not exact: static shapes and no look at values; a block called partial in doubt changes no result.
        full, partial = self.classes()
        for tables, blocks in ((self.tables[:2], partial), (self.tables[2:], full)):
            for table, new in zip(tables, from_classes(blocks), strict=True):
                table.copy_(new)

    def classes(self) -> tuple[Tensor, Tensor]:
        """(full, partial), bool (1, H|1, n_q, n_kv)."""
        if self.band is not None:
            full, partial = self.band.read()
            return full.expand(self.tables[1].shape), partial.expand(self.tables[1].shape)
        step = self.step
        classes = classify_blocks(step.mask, *step.sizes, block_size=self.size, exact=False, device=step.device)
        return classes.full, classes.partial & self.own()

    def own(self) -> Tensor:
        """(n_q, n_kv) bool: blocks in which some token's request has keys at all."""
        where = self.step.where
        ends, starts = where.starts[1:], where.starts[:-1]
        asks = (starts < self.q_begins[:, None] + self.size) & (ends > self.q_begins[:, None]) & (starts < ends)
        if isinstance(where, OfPages):
            size = where.layout.page_size
            held = (where.logical >= 0) & (where.logical * size < where.lengths[:, None])  # (requests, pages)
            has = held.float() @ self.page_blocks  # (requests, n_kv)
        else:
            begin, end = where.key_starts[:-1, None], where.key_starts[1:, None]
            has = ((begin < self.kv_begins + self.size) & (end > self.kv_begins) & (begin < end)).float()
        return (asks.float() @ has) > 0


def _blocks_of_pages(where: OfPages, blocks: int, block_size: int) -> Tensor:
    """(num_pages, blocks) float: 1 where a page's slots lie in a block, in whole or in part."""
    size = where.layout.page_size
    first = torch.arange(where.layout.num_pages, device=where.device)[:, None] * size
    block = torch.arange(blocks, device=where.device) * block_size
    return ((first < block + block_size) & (first + size > block)).float()
