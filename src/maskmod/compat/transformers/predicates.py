"""The predicates of transformers' ``masking_utils``, each one maskmod expression.

This module knows what each name means and nothing of caches, configs or attention implementations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmod._torch.tracing import readable
from maskmod.algebra import Index, Mask, MaskMod, as_mask
from maskmod.masks import causal, chunked, document, full, key_padding, window
from maskmod.positions import remap, shift

__all__ = [
    "add_offsets_to_mask_function",
    "and_masks",
    "bidirectional_mask_function",
    "blockwise_overlay",
    "causal_mask_function",
    "chunked_causal_mask_function",
    "chunked_overlay",
    "fast_all",
    "find_packed_sequence_indices",
    "maybe_pad_block_sequence_ids",
    "or_masks",
    "packed_sequence_compatibility_function",
    "packed_sequence_mask_function",
    "padding_mask_function",
    "prepare_padding_mask",
    "remap_positions_for_packed_sequence",
    "sliding_window_bidirectional_mask_function",
    "sliding_window_bidirectional_overlay",
    "sliding_window_causal_mask_function",
    "sliding_window_overlay",
]

causal_mask_function: Mask = causal()
bidirectional_mask_function: Mask = full()


def and_masks(*mask_functions: MaskMod) -> Mask:
    """``a & b & ...``; of no masks at all, `full`."""
    both = None
    for mask in _callables(mask_functions):
        both = mask if both is None else both & mask
    return full() if both is None else both


def or_masks(*mask_functions: MaskMod) -> Mask:
    """``a | b | ...``; of no masks at all, a mask that hides everything."""
    either = None
    for mask in _callables(mask_functions):
        either = mask if either is None else either | mask
    return full() ^ True if either is None else either


def sliding_window_overlay(sliding_window: int) -> Mask:
    """The window's left edge alone: with `causal`, each query sees ``sliding_window`` keys, itself included."""
    if sliding_window < 1:  # hides the query itself too, which no count of neighbours says
        return shift(window(0, None), q_offset=1 - sliding_window)
    return window(sliding_window - 1, None)


def sliding_window_causal_mask_function(sliding_window: int) -> Mask:
    """Each query sees ``sliding_window`` keys, itself included."""
    return sliding_window_overlay(sliding_window) & causal()


def sliding_window_bidirectional_overlay(sliding_window: int) -> Mask:
    """Each query sees ``sliding_window`` keys on either side and itself: one side more than the causal window."""
    return window(sliding_window, sliding_window)


def sliding_window_bidirectional_mask_function(sliding_window: int) -> Mask:
    """The same as `sliding_window_bidirectional_overlay`."""
    return sliding_window_bidirectional_overlay(sliding_window)


def chunked_overlay(chunk_size: int, left_padding: Tensor) -> Mask:
    """Each query sees the keys of its own chunk; row b's chunks are counted from ``left_padding[b]``, shape (B,)."""
    return chunked(chunk_size, start=left_padding)


def chunked_causal_mask_function(chunk_size: int, left_padding: Tensor) -> Mask:
    """`chunked_overlay` below the diagonal (Llama 4)."""
    return chunked_overlay(chunk_size, left_padding) & causal()


class Spans(Mask):
    """See `blockwise_overlay`. maskmod's own `blockwise` reserves -1 alone; here every negative id is in no span."""

    ids: Tensor

    _name = "blockwise_overlay"

    def __call__(self, b: Index, h: Index, q_idx: Index, kv_idx: Index) -> Any:
        q_id = self.ids[b, q_idx]
        return (q_id == self.ids[b, kv_idx]) & (q_id >= 0)


def blockwise_overlay(block_sequence_ids: Tensor) -> Spans:
    """Each query sees the keys of its own span, before and after it; a negative id is in no span. Ids are (B, n)."""
    return Spans(block_sequence_ids)


def padding_mask_function(padding_mask: Tensor) -> Mask:
    """Every query sees the keys whose entry in ``padding_mask`` (B, n) is not zero."""
    return key_padding(padding_mask)


def packed_sequence_mask_function(packed_sequence_mask: Tensor) -> Mask:
    """Each query sees the keys of its own document; document numbers are (B, n)."""
    return document(packed_sequence_mask)


def remap_positions_for_packed_sequence(mask_function: MaskMod, position_ids: Tensor) -> Mask:
    """The mask read at ``position_ids`` (B, n) instead of at the indices of rows and columns."""
    return remap(mask_function, q=position_ids, kv=position_ids)


def packed_sequence_compatibility_function(
    mask_function: MaskMod, position_ids: Tensor, packed_sequence_mask: Tensor
) -> Mask:
    """The mask at each token's position in its document, and no key of another document."""
    inside = remap_positions_for_packed_sequence(mask_function, position_ids)
    return packed_sequence_mask_function(packed_sequence_mask) & inside


def add_offsets_to_mask_function(mask_function: MaskMod, q_offset: int | Tensor, kv_offset: int | Tensor) -> Mask:
    """The mask with its rows starting at ``q_offset`` and its columns at ``kv_offset``."""
    return shift(mask_function, q_offset=q_offset, kv_offset=kv_offset)


def prepare_padding_mask(attention_mask: Tensor | None, kv_length: int, kv_offset: int) -> Tensor | None:
    """The 2-D padding mask, lengthened with False up to the last key, ``kv_offset + kv_length``."""
    return None if attention_mask is None else lengthened(attention_mask, kv_length + kv_offset, 0)


def maybe_pad_block_sequence_ids(
    block_sequence_ids: Tensor, attention_mask: Tensor | None, kv_length: int, kv_offset: int
) -> Tensor:
    """The span ids, lengthened with -1 (no span) up to the last key. ``attention_mask`` is not read."""
    return lengthened(block_sequence_ids, kv_length + kv_offset, -1)


def fast_all(tensor: Tensor) -> Tensor:
    """Whether every entry of a boolean tensor is True, as a 0-d tensor: counted, which is faster than ``all()``."""
    return tensor.sum() == tensor.numel()


def lengthened(table: Tensor, length: int, value: int) -> Tensor:
    """A table (B, n) with at least ``length`` columns; new ones hold ``value``."""
    missing = length - table.shape[-1]
    return F.pad(table, (0, missing), value=value) if missing > 0 else table


def stored(table: Tensor) -> Tensor:
    """The same tensor, which inductor then keeps in memory: on CPU flex reads no table that is computed on the fly."""
    return table.as_strided(table.shape, table.stride())


def document_numbers(position_ids: Tensor) -> Tensor:
    """The document of each token, (B, n): a new one begins wherever a position does not follow the one before it."""
    first = position_ids[:, :1] - 1
    return (torch.diff(position_ids, prepend=first, dim=-1) != 1).cumsum(-1)


def find_packed_sequence_indices(position_ids: Tensor) -> Tensor | None:
    """`document_numbers` of ``position_ids`` (B, n), or None where every row is one document.

    Telling so reads the data; inside a trace the numbers always come back.
    """
    numbers = document_numbers(position_ids)
    if readable(numbers) and bool((numbers[:, -1] == 0).all()):
        return None
    return numbers


def _callables(mask_functions: tuple[MaskMod, ...]) -> list[Mask]:
    if not all(callable(mask) for mask in mask_functions):
        raise RuntimeError(f"{mask_functions}: not all of them can be called. Pass predicates (b, h, q_idx, kv_idx).")
    return [as_mask(mask) for mask in mask_functions]
