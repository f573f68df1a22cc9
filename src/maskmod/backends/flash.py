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

from maskmod.algebra import And, Mask, Sizes, conjuncts
from maskmod.backends import Backend, Request
from maskmod.bands import Band, band_of
from maskmod.errors import UnsupportedMask
from maskmod.masks import Document, Full, KeyLengths
from maskmod.packing import cu_seqlens_from_document_ids
from maskmod.tracing import readable

__all__ = ["BACKEND", "CacheArgs", "FlashArgs", "VarlenArgs", "band_and_lengths", "flash_window"]

_TODO = 'Use backend="flex" or "sdpa".'


class FlashArgs(NamedTuple):
    """For ``flash_attn_func``: window_size counts neighbours, -1 unbounded; the last query stands on the last key."""

    causal: bool
    window_size: tuple[int, int]
    why: str

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

    def kwargs(self) -> dict[str, Any]:
        """For ``flash_attn_varlen_func(q, k, v, **kwargs)``."""
        return {name: value for name, value in self._asdict().items() if name != "why"}


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


def lower(
    mask: Mask, sizes: Sizes, *, dtype: torch.dtype, device: torch.device | None, empty_rows: str = "keep"
) -> FlashArgs | VarlenArgs:
    written = f'lower({mask!r}, "flash")'
    if empty_rows != "keep":
        raise UnsupportedMask(written, "flash-attention gives rows that see nothing zeros", 'Pass empty_rows="keep".')
    parts = list(conjuncts(mask))
    documents = [part for part in parts if type(part) is Document]
    rest = reduce(And, [part for part in parts if type(part) is not Document], Full())
    band = band_of(rest, sizes.q_len, sizes.kv_len)
    if band is None:
        raise UnsupportedMask(written, f"structure does not prove that {rest!r} is one diagonal band", _TODO)
    if not documents:
        causal, window_size = flash_window(written, band, sizes.kv_len - sizes.q_len)
        return FlashArgs(causal, window_size, "structure proves it one diagonal band: a window, no mask")
    if len(documents) > 1 or documents[0].kv_ids is not None or sizes.q_len != sizes.kv_len:
        raise UnsupportedMask(written, "queries and keys are not packed alike by one document(ids)", _TODO)
    causal, window_size = flash_window(written, band, 0)
    cu_seqlens, longest = _packed(written, documents[0].q_ids, sizes)
    return VarlenArgs(
        cu_seqlens, cu_seqlens, longest, longest, causal, window_size, "packed documents: a window in each, no mask"
    )


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


def flash_window(written: object, band: Band, ahead: int) -> tuple[bool, tuple[int, int]]:
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


def band_and_lengths(written: object, mask: Mask, q_len: int, kv_len: int) -> tuple[Band, list[Tensor]]:
    """A mask as one band and the key lengths it is cut to."""
    parts = list(conjuncts(mask))
    lengths = [part.lengths for part in parts if type(part) is KeyLengths]
    rest = reduce(And, [part for part in parts if type(part) is not KeyLengths], Full())
    band = band_of(rest, q_len, kv_len)
    if band is None:
        raise UnsupportedMask(written, f"structure does not prove that {rest!r} is one diagonal band", _TODO)
    return band, lengths


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, args: FlashArgs | VarlenArgs, **_: object) -> Tensor:
    raise UnsupportedMask('attention(backend="flash")', _NOT_CALLED, _TODO)


_NOT_CALLED = "maskmod lowers masks for flash-attention and does not call it"


def refuse(mask: Mask, request: Request) -> str | None:
    return _NOT_CALLED


BACKEND = Backend("flash", lower, attend, refuse)
