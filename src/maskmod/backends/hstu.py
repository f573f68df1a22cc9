"""HSTU row functions: for each query its visible keys as intervals, the first of which begins at key 0.

``func`` is int32 (B|1, H|1, n_func, q_len) with n_func odd: query q sees ``[0, F0)``, ``[F1, F2)``, ``[F3, F4)`` and so
on, endpoints in order. Beside it stand the blocks a kernel visits, as compact lists (MagiAttention's FA4 calls them
``LinearBlockSparseTensors``): counts (B*H*blocks,), offsets (B*H*blocks + 1,) and block numbers, partial and full.

Source: MagiAttention's documentation of its FA4 backend. The kernel needs a Blackwell GPU; it is not called here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import Sizes
from maskmod.algebra.lookup import check_size
from maskmod.analyser.reading import Reading
from maskmod.backends.protocol import Backend
from maskmod.backends.refusals import check_outside_a_trace, refusal
from maskmod.backends.strips import interval_of_row, spans_up_to
from maskmod.blocks.classify import classes_of
from maskmod.facts.spans import NotSpans, Spans
from maskmod.facts.tiles import checked_block_size

__all__ = ["Hstu", "HstuArgs", "LinearBlocks"]


class LinearBlocks(NamedTuple):
    """Blocks of keys that each block of queries visits: number of them, where they begin in `idx`, and which; int32."""

    cnt: Tensor
    offset: Tensor
    idx: Tensor


class HstuArgs(NamedTuple):
    """func int32 (B|1, H|1, n_func, q_len), and the blocks of (queries, keys) = block_size: partial ones, full ones."""

    func: Tensor
    partial_blocks: LinearBlocks
    full_blocks: LinearBlocks
    block_size: tuple[int, int]
    why: str
    sizes: Sizes

    def kwargs(self) -> dict[str, Any]:
        """The tensors by the names that MagiAttention's kernels use."""
        named = {"func": self.func}
        for kind, blocks in (("mask", self.partial_blocks), ("full", self.full_blocks)):
            named |= {f"{kind}_block_{part}": tensor for part, tensor in blocks._asdict().items()}
        return named


class Hstu(Backend):
    name = "hstu"
    options = ("block_size", "max_spans")

    def lower(
        self,
        reading: Reading,
        *,
        dtype: torch.dtype,
        empty_rows: str = "keep",
        block_size: int | tuple[int, int] = (256, 128),
        max_spans: int = 16,
    ) -> HstuArgs:
        """The row function with as few endpoints as the mask needs, for `max_spans` intervals of a row at most.

        Raises:
            UnsupportedMask: some query sees more intervals of keys.
        """
        check_outside_a_trace(reading, self.name, empty_rows)
        check_size(f"max_spans={max_spans!r}", max_spans, unit="intervals")
        size = checked_block_size(block_size)
        try:
            spans = spans_up_to(reading, max_spans)
        except NotSpans as found:
            seen = f"query {found.place[2]} sees more than {max_spans} intervals of keys"
            raise refusal(reading, self.name, interval_of_row(reading, found.place, max_spans), seen) from found
        func = _function(spans, reading.sizes.kv_len)
        full, partial = classes_of(reading, size, exact=True)
        why = f"{func.shape[2]} endpoints a row: row intervals, {size[0]} x {size[1]} blocks"
        return HstuArgs(func, _linear(partial), _linear(full), size, why, reading.sizes)

    def read_back(self, args: HstuArgs) -> Tensor:
        B, H, q_len, kv_len = args.sizes
        func = args.func.long().unsqueeze(-1)  # (B|1, H|1, n_func, q_len, 1)
        key = torch.arange(kv_len, device=func.device)
        seen = key < func[:, :, 0]
        for j in range(1, func.shape[2], 2):
            seen = seen | ((key >= func[:, :, j]) & (key < func[:, :, j + 1]))
        # Only what a listed block covers is computed, and a full block is not masked at all.
        visited = torch.zeros((*func.shape[:2], q_len, kv_len), dtype=torch.int8, device=func.device)
        lanes, (bq, bkv) = visited.flatten(0, 1), args.block_size
        blocks = -(-q_len // bq)
        for kind, (cnt, offset, idx) in ((1, args.partial_blocks), (2, args.full_blocks)):
            for row in range(cnt.shape[0]):
                for at in range(int(offset[row]), int(offset[row]) + int(cnt[row])):
                    q0, kv0 = row % blocks * bq, int(idx[at]) * bkv
                    lanes[row // blocks, q0 : q0 + bq, kv0 : kv0 + bkv] = kind
        return ((visited == 2) | ((visited == 1) & seen)).expand(B, H, q_len, kv_len)


def _function(spans: Spans, kv_len: int) -> Tensor:
    starts, ends, counts = spans.starts, spans.ends, spans.counts
    from_zero = (starts[..., 0] == 0) & (counts > 0)
    first = torch.where(from_zero, ends[..., 0], 0)
    pairs = int((counts - from_zero.long()).max()) if counts.numel() else 0
    starts, ends = (torch.nn.functional.pad(x, (0, 1), value=kv_len) for x in (starts, ends))
    place = torch.arange(pairs, device=starts.device) + from_zero.long().unsqueeze(-1)
    rows = [first]
    for j in range(pairs):
        rows += [x.gather(-1, place[..., j : j + 1]).squeeze(-1) for x in (starts, ends)]
    return torch.stack(rows, -2).int()


def _linear(blocks: Tensor) -> LinearBlocks:
    """A table of blocks (B|1, H|1, n_q, n_kv) as one list, its rows laid end to end."""
    rows = blocks.flatten(0, 2)
    cnt = rows.sum(-1, dtype=torch.int32)
    offset = torch.nn.functional.pad(cnt.cumsum(0), (1, 0)).int()
    return LinearBlocks(cnt, offset, rows.nonzero()[:, 1].int())
