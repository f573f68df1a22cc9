"""flash-attention's arguments: no mask at all, but flags, windows, cumulative lengths and cache lengths.

Recognised by structure: bands (causal, windows, shifts of them), bands within packed documents, and key lengths. The
rest is refused. This module lowers and never calls flash-attention, which is no dependency; its tensors are
(B, n, H, D).
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod._torch.tracing import readable
from maskmod._torch.workarounds import fill_
from maskmod.algebra import And, Mask, Sizes, conjuncts
from maskmod.analyser.reading import Reading
from maskmod.backends.protocol import Backend, Holder, Step
from maskmod.caches import PagedCache, RingCache, SlidingCache, StaticCache
from maskmod.errors import UnsupportedMask
from maskmod.facts.recognise import proven_band, proven_packed
from maskmod.facts.structure import Band, band_of
from maskmod.masks import Document, Full, KeyLengths
from maskmod.packing import cu_seqlens_from_document_ids

__all__ = ["CacheArgs", "Flash", "FlashArgs", "VarlenArgs"]

_ANY_LENGTH = 1 << 62  # a cache that evicts holds sequences of any length
_TODO = 'Use backend="flex" or "sdpa".'


class FlashArgs(NamedTuple):
    """For ``flash_attn_func``: window_size counts neighbours, -1 unbounded; the last query stands on the last key."""

    causal: bool
    window_size: tuple[int, int]
    why: str
    sizes: Sizes

    def kwargs(self) -> dict[str, Any]:
        """For ``flash_attn_func(q, k, v, **kwargs)``."""
        return {"causal": self.causal, "window_size": self.window_size}


class VarlenArgs(NamedTuple):
    """For ``flash_attn_varlen_func``: documents laid end to end, (B * n, H, D); cu_seqlens int32 (documents + 1,)."""

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    causal: bool
    window_size: tuple[int, int]
    why: str
    sizes: Sizes

    def kwargs(self) -> dict[str, Any]:
        """For ``flash_attn_varlen_func(q, k, v, **kwargs)``."""
        return {name: value for name, value in self._asdict().items() if name not in ("why", "sizes")}


class CacheArgs(NamedTuple):
    """For ``flash_attn_with_kvcache``: cache_seqlens int32 (B,), this step's tokens included; block_table or None."""

    cache_seqlens: Tensor
    block_table: Tensor | None
    causal: bool
    window_size: tuple[int, int]
    why: str

    def kwargs(self) -> dict[str, Any]:
        """For ``flash_attn_with_kvcache(q, k_cache, v_cache, **kwargs)``."""
        return {name: value for name, value in self._asdict().items() if name != "why"}


class Flash(Backend):
    name = "flash"

    def lower(self, reading: Reading, *, dtype: torch.dtype, empty_rows: str = "keep") -> FlashArgs | VarlenArgs:
        written = f'lower({reading.mask!r}, "flash")'
        if empty_rows != "keep":
            raise UnsupportedMask(
                written, "flash-attention gives rows that see nothing zeros", 'Pass empty_rows="keep".'
            )
        sizes = reading.sizes
        parts = list(conjuncts(reading.mask))
        documents = [part for part in parts if type(part) is Document]
        rest = reduce(And, [part for part in parts if type(part) is not Document], Full())
        band = band_of(rest, sizes.q_len, sizes.kv_len)
        alike = len(documents) <= 1 and all(part.kv_ids is None for part in documents) and sizes.q_len == sizes.kv_len
        if band is None or (documents and not alike):
            proven = _proven(written, reading)
            if proven is not None:
                return proven
        if band is None:
            raise UnsupportedMask(written, f"structure does not prove that {rest!r} is one diagonal band", _TODO)
        if not documents:
            causal, window_size = _window(written, band, sizes.kv_len - sizes.q_len)
            return FlashArgs(causal, window_size, "structure proves it one diagonal band: a window, no mask", sizes)
        if len(documents) > 1 or documents[0].kv_ids is not None or sizes.q_len != sizes.kv_len:
            raise UnsupportedMask(written, "queries and keys are not packed alike by one document(ids)", _TODO)
        causal, window_size = _window(written, band, 0)
        cu_seqlens, longest = _packed(written, documents[0].q_ids, sizes)
        return VarlenArgs(
            cu_seqlens,
            cu_seqlens,
            longest,
            longest,
            causal,
            window_size,
            "packed documents: a window in each, no mask",
            sizes,
        )

    def read_back(self, args: FlashArgs | VarlenArgs) -> Tensor:
        B, H, q_len, kv_len = args.sizes
        (left, right), ahead = args.window_size, kv_len - q_len
        distance = torch.arange(kv_len) - torch.arange(q_len)[:, None] - ahead
        seen = torch.ones((q_len, kv_len), dtype=torch.bool)
        if left >= 0:
            seen &= distance >= -left
        if right >= 0 or args.causal:
            seen &= distance <= (0 if args.causal else right)
        if isinstance(args, FlashArgs):
            return seen.expand(B, H, q_len, kv_len)
        owner = torch.repeat_interleave(args.cu_seqlens_q.cpu().long().diff()).view(B, q_len)
        return (seen & (owner[:, :, None] == owner[:, None, :]))[:, None].expand(B, H, q_len, kv_len)

    def holder(self, step: Step) -> Holder:
        return _FlashHolder(step)


def _proven(written: str, reading: Reading) -> FlashArgs | VarlenArgs | None:
    """Arguments of a mask that structure does not know, but that is proven one band, or one in each document."""
    sizes = reading.sizes
    band = proven_band(reading)
    if band is not None:
        causal, window_size = _window(written, band, sizes.kv_len - sizes.q_len)
        return FlashArgs(causal, window_size, "proven, at these sizes, one diagonal band: a window, no mask", sizes)
    packed = proven_packed(reading)
    if packed is None:
        return None
    causal, window_size = _window(written, packed.band, 0)
    cu_seqlens, longest = _packed(written, packed.ids, sizes)
    why = "proven, at these sizes, packed documents: a window in each, no mask"
    return VarlenArgs(cu_seqlens, cu_seqlens, longest, longest, causal, window_size, why, sizes)


def _packed(written: str, ids: Tensor, sizes: Sizes) -> tuple[Tensor, int]:
    """Cumulative lengths over all rows laid end to end, and the longest document."""
    if not readable(ids):
        raise UnsupportedMask(
            written, "the number of documents is read from their ids, and a graph cannot", "Lower it outside the graph."
        )
    rows = ids[..., : sizes.q_len].expand(sizes.B, sizes.q_len)
    runs = (rows.diff(dim=-1) != 0).sum(-1) + 1
    ordered = rows.sort(-1).values
    if sizes.q_len and bool((runs != (ordered.diff(dim=-1) != 0).sum(-1) + 1).any()):
        raise UnsupportedMask(written, "a document's tokens are not next to each other", _TODO)
    # Numbered from 0 within a row, so that the end of a row always ends a document, and none is called -1.
    number = torch.nn.functional.pad((rows.diff(dim=-1) != 0).cumsum(-1), (1, 0)) if sizes.q_len else rows
    number = number + torch.arange(sizes.B, device=ids.device)[:, None] * sizes.q_len
    cu_seqlens = cu_seqlens_from_document_ids(number.reshape(-1))
    return cu_seqlens, int(cu_seqlens.diff().max()) if cu_seqlens.shape[0] > 1 else 0


def _window(written: object, band: Band, ahead: int) -> tuple[bool, tuple[int, int]]:
    """``(causal, (left, right))`` of a band ``low <= kv_idx - q_idx <= high``, where key ``ahead`` is query 0's own."""
    low, high = band
    left = -1 if low is None else ahead - low
    right = -1 if high is None else high - ahead
    if (low is not None and left < 0) or (high is not None and right < 0):
        raise UnsupportedMask(
            written,
            f"counted from the last query on the last key, the band has {(left, right)} neighbours, and "
            "flash-attention takes a negative count for unbounded",
            _TODO,
        )
    causal = right == 0 and high is not None
    return causal, (left, 0 if causal else right)


def _band_and_lengths(written: object, mask: Mask, q_len: int, kv_len: int) -> tuple[Band, list[Tensor]]:
    """A mask as one band and the key lengths it is cut to."""
    parts = list(conjuncts(mask))
    lengths = [part.lengths for part in parts if type(part) is KeyLengths]
    rest = reduce(And, [part for part in parts if type(part) is not KeyLengths], Full())
    band = band_of(rest, q_len, kv_len)
    if band is None:
        raise UnsupportedMask(written, f"structure does not prove that {rest!r} is one diagonal band", _TODO)
    return band, lengths


class _FlashHolder:
    """Lengths (B,) for flash-attention's kernel over a cache, and a block table it can follow, both int32."""

    def __init__(self, step: Step):
        layout, q_len = step.layout, step.q_len
        written = f'DecodePlan({step.written!r}, {layout!r}, backend="flash")'
        todo = 'Use backend="flex" or "sdpa".'
        if type(layout) not in (StaticCache, PagedCache, SlidingCache, RingCache):
            raise UnsupportedMask(written, "flash-attention knows caches in order, and pages", todo)
        reach = layout.max_len if isinstance(layout, (StaticCache, PagedCache)) else _ANY_LENGTH
        band, self.limits = _band_and_lengths(written, step.written, reach, reach)
        self.position, self.most = step.position, None
        if isinstance(layout, (SlidingCache, RingCache)):
            # One query that sees every key of a full window: the order of the slots does not matter to it.
            sees_all = q_len == 1 and layout.headroom == 0 and (band.low is None or band.low <= 1 - layout.window)
            if not sees_all or not (band.high is None or band.high >= 0) or self.limits:
                raise UnsupportedMask(written, "its slots are out of order, and only one query may see them all", todo)
            self.most, band = layout.window, Band(None, None)
        elif q_len == 1 and band.low is None and band.high is not None and band.high >= 0:
            band = Band(None, None)  # one query, the last key its own: nothing comes after it
        elif self.limits and band != Band(None, None):
            raise UnsupportedMask(written, "it aligns the last query with the last key, which a length moves", todo)
        self.causal, self.window_size = _window(written, band, 0)
        self.cache_seqlens = torch.zeros(step.sizes.B, dtype=torch.int32, device=step.device)
        self.paged = layout if isinstance(layout, PagedCache) else None
        self.block_table = None
        if self.paged is not None:
            self.block_table = torch.zeros(self.paged.block_table.shape, dtype=torch.int32, device=step.device)
        self.args = CacheArgs(
            self.cache_seqlens,
            self.block_table,
            self.causal,
            self.window_size,
            "a band: lengths at a fixed address, no mask",
        )

    def buffers(self) -> list[Tensor]:
        return [self.cache_seqlens] if self.block_table is None else [self.cache_seqlens, self.block_table]

    def lines(self) -> list[str]:
        pages = "" if self.block_table is None else f"; block_table {list(self.block_table.shape)}"
        flags = f"causal={self.causal}, window_size={self.window_size}"
        return [f"cache_seqlens {list(self.cache_seqlens.shape)}{pages}; {flags}"]

    def write_(self) -> None:
        position = self.position
        lengths = (position if position.dim() == 1 else position[:, -1]) + 1
        for limit in self.limits:
            lengths = torch.minimum(lengths, limit)
        fill_(self.cache_seqlens, lengths.clamp(min=0, max=self.most))
        if self.paged is not None and self.block_table is not None:
            # The kernel follows entries up to the length alone: an entry without a page names page 0, which is there
            # to be read; one that names a page is passed on as it is.
            fill_(self.block_table, self.paged.block_table.clamp(min=0))
