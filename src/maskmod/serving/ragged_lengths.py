"""What kernels that know requests take for a flat step: lengths and pages, or FlashInfer's pages and bits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod._torch.workarounds import fill_
from maskmod.errors import UnsupportedMask
from maskmod.facts.structure import Band
from maskmod.oracle import vmap_at
from maskmod.serving.ragged_step import Holder, RaggedStep, band_of_any_length
from maskmod.serving.tokens import OfGathered, OfPages

__all__ = ["BitArgs", "Bits", "Lengths", "RaggedArgs", "Varlen"]

_TODO = 'Use backend="flex" or "sdpa".'


class RaggedArgs(NamedTuple):
    """For kernels that know requests by lengths: flash-attention's ``flash_attn_varlen_func``, torch's ``varlen_attn``.

    All tensors int32. cu_seqlens_q: (max_requests + 1,). Over pages, seqused_k: (max_requests,), keys of each request,
    and block_table: (max_requests, pages); over gathered keys, cu_seqlens_k: (max_requests + 1,).
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor | None
    seqused_k: Tensor | None
    block_table: Tensor | None
    max_seqlen_q: int
    max_seqlen_k: int
    causal: bool
    window_size: tuple[int, int]
    why: str
    for_torch: bool = False

    def kwargs(self) -> dict[str, Any]:
        """For ``flash_attn_varlen_func(q, k, v, **kwargs)``, or for torch's ``varlen_attn`` in a "varlen" plan."""
        if not self.for_torch:
            return {name: value for name, value in self._asdict().items() if name not in ("why", "for_torch")}
        return {
            "cu_seq_q": self.cu_seqlens_q,
            "cu_seq_k": self.cu_seqlens_k,
            "max_q": self.max_seqlen_q,
            "max_k": self.max_seqlen_k,
            "window_size": (self.window_size[0], 0) if self.causal else self.window_size,
            "seqused_k": self.seqused_k,
            "block_table": self.block_table,
        }


class BitArgs(NamedTuple):
    """For FlashInfer's paged prefill: which page where, and the mask as bits.

    packed_custom_mask: uint8, request after request, each from a whole byte: bit ``q * keys + k``, lowest first;
    mask_indptr: int32 (max_requests + 1,), where each request's bytes begin. paged_kv_indices: int32, the pages of all
    requests end to end, ``paged_kv_indptr`` (max_requests + 1,) where each one's begin.
    """

    qo_indptr: Tensor
    paged_kv_indptr: Tensor
    paged_kv_indices: Tensor
    paged_kv_last_page_len: Tensor
    packed_custom_mask: Tensor
    mask_indptr: Tensor
    why: str

    def kwargs(self) -> dict[str, Any]:
        """For ``BatchPrefillWithPagedKVCacheWrapper.plan(..., **kwargs)``; mask_indptr is the wrapper's own to make."""
        return {name: value for name, value in self._asdict().items() if name not in ("why", "mask_indptr")}


class Lengths(Holder):
    """Cumulative lengths, lengths and pages, int32."""

    for_torch = False

    def __init__(self, step: RaggedStep):
        where, layout = step.where, step.where.layout
        causal, window_size = _window(step)
        self.where = where

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=step.device)

        self.cu_seqlens_q = zeros(where.max_requests + 1)
        self.cu_seqlens_k = self.seqused_k = self.block_table = None
        longest = layout.kv_len
        if isinstance(where, OfPages):
            self.seqused_k = zeros(where.max_requests)
            self.block_table = zeros(where.max_requests, where.layout.columns)
            longest = where.layout.columns * where.layout.page_size
        else:
            self.cu_seqlens_k = zeros(where.max_requests + 1)
        self.args = RaggedArgs(
            self.cu_seqlens_q,
            self.cu_seqlens_k,
            self.seqused_k,
            self.block_table,
            where.max_tokens,
            longest,
            causal,
            window_size,
            "a band: lengths at fixed addresses, no mask",
            self.for_torch,
        )

    def buffers(self) -> list[Tensor]:
        held = (self.cu_seqlens_q, self.cu_seqlens_k, self.seqused_k, self.block_table)
        return [t for t in held if t is not None]

    def lines(self) -> list[str]:
        names = ("cu_seqlens_q", "cu_seqlens_k", "seqused_k", "block_table")
        held = [f"{name} {list(t.shape)}" for name in names if (t := getattr(self, name)) is not None]
        causal, window_size = self.args.kwargs().get("causal"), self.args.kwargs()["window_size"]
        flags = f"window_size={window_size}" if causal is None else f"causal={causal}, window_size={window_size}"
        return [f"{', '.join(held)}; {flags}"]

    def write_(self) -> None:
        where = self.where
        fill_(self.cu_seqlens_q, where.starts)
        if isinstance(where, OfPages) and self.seqused_k is not None and self.block_table is not None:
            asked = where.starts[1:] > where.starts[:-1]
            fill_(self.seqused_k, torch.where(asked, where.lengths, 0))
            # The kernel follows entries up to the length alone; an entry without a page names page 0, which is there.
            fill_(self.block_table, where.table.clamp(min=0))
        elif isinstance(where, OfGathered) and self.cu_seqlens_k is not None:
            fill_(self.cu_seqlens_k, where.key_starts)


def _window(step: RaggedStep) -> tuple[bool, tuple[int, int]]:
    """``(causal, (left, right))``, neighbours counted from the last query on the last key; -1 is unbounded."""
    band: Band | None = band_of_any_length(step.written)
    if band is None:
        seen = f"structure does not prove that {step.written!r} is one diagonal band"
        raise UnsupportedMask(step.spelled, seen, _TODO)
    low, high = band
    if (low is not None and low > 0) or (high is not None and high < 0):
        seen = f"the band {low} <= kv_idx - q_idx <= {high} leaves out the query's own key, which a window has"
        raise UnsupportedMask(step.spelled, seen, _TODO)
    window_size = (-1 if low is None else -low, -1 if high is None else high)
    return high == 0, window_size


class Varlen(Lengths):
    """The same by the names of torch's ``varlen_attn``."""

    for_torch = True


class Bits(Holder):
    """FlashInfer's pages and bits."""

    def __init__(self, step: RaggedStep):
        where = step.where
        if not isinstance(where, OfPages):
            raise UnsupportedMask(step.spelled, "FlashInfer reads its keys from pages", "Pass a Paged layout.")
        if step.sizes.H > 1:
            raise UnsupportedMask(
                step.spelled, "FlashInfer's bits have no heads, and it reads h", 'Use backend="flex".'
            )
        self.where, self.mask, layout = where, step.written, where.layout
        self.longest = layout.columns * layout.page_size
        # A request of n tokens has at most n * longest bits, and begins on a whole byte.
        self.bytes = where.max_tokens * self.longest // 8 + where.max_requests

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=step.device)

        self.qo_indptr, self.kv_indptr = zeros(where.max_requests + 1), zeros(where.max_requests + 1)
        self.indices = zeros(where.max_requests * layout.columns)
        self.last = zeros(where.max_requests)
        self.bits, self.mask_indptr = zeros(self.bytes, dtype=torch.uint8), zeros(where.max_requests + 1)
        self.args = BitArgs(
            self.qo_indptr,
            self.kv_indptr,
            self.indices,
            self.last,
            self.bits,
            self.mask_indptr,
            "pages, and a bit for each token and key of its request",
        )
        self.byte = torch.arange(self.bytes, device=step.device)
        self.bit = torch.arange(8, device=step.device)
        self.column = torch.arange(layout.columns, device=step.device)
        self.device = step.device

    def buffers(self) -> list[Tensor]:
        return [self.qo_indptr, self.kv_indptr, self.indices, self.last, self.bits, self.mask_indptr]

    def lines(self) -> list[str]:
        return [f"{self.bytes} bytes of bits, for the most keys that each token may meet"]

    def write_(self) -> None:
        where, layout = self.where, self.where.layout
        starts, none = where.starts, where.starts[:1] * 0
        counts = starts[1:] - starts[:-1]
        lengths = torch.where(counts > 0, where.lengths, 0)
        begins = torch.cat((none, ((counts * lengths + 7) // 8).cumsum(0)))
        pages = (lengths + (layout.page_size - 1)) // layout.page_size
        page_begins = torch.cat((none, pages.cumsum(0)))
        # Pages past a request's own go to one more entry, which is cut off.
        place = torch.where(self.column < pages[:, None], page_begins[:-1, None] + self.column, self.indices.shape[0])
        indices = where.table.new_zeros(self.indices.shape[0] + 1)
        indices = indices.scatter(0, place.view(-1), where.table.clamp(min=0).view(-1))
        request = torch.searchsorted(begins[1:], self.byte, right=True)
        there = request < where.max_requests
        row = torch.where(there, request, 0)[:, None]  # (bytes, 1)
        bit = (self.byte[:, None] - begins[row]) * 8 + self.bit  # (bytes, 8), from the request's first
        length = lengths[row].clamp(min=1)
        token, key = bit // length, bit % length
        there = there[:, None] & (token < counts[row])
        visible = self._at(row, lengths[row] - counts[row] + token, key) & there
        packed = (visible.to(torch.int32) << self.bit).sum(-1)
        for buffer, new in (
            (self.qo_indptr, starts),
            (self.kv_indptr, page_begins),
            (self.indices, indices[:-1]),
            (self.last, lengths - (pages - 1).clamp(min=0) * layout.page_size),
            (self.bits, packed.to(torch.uint8)),
            (self.mask_indptr, begins),
        ):
            fill_(buffer, new)

    def _at(self, row: Tensor, position: Tensor, key: Tensor) -> Tensor:
        """The mask at rows (bytes, 1), positions and keys (bytes, 8)."""
        head = torch.zeros_like(key.view(-1))
        flat = [x.expand(key.shape).reshape(-1) for x in (row, position, key)]
        seen = vmap_at(self.mask, flat[0], head, flat[1][:, None], flat[2][:, None])
        return seen.view(key.shape)
