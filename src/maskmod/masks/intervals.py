"""Masks given as intervals, one or more for each query or each key: what kernels of intervals take, as masks.

The readers `row_spans` and `column_spans` go the other way, from a mask to its intervals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from maskmod._torch.tracing import known_true
from maskmod.algebra import Mask
from maskmod.algebra.lookup import check_table, check_table_sizes, look_up, wide
from maskmod.errors import MaskShapeError, MaskTypeError
from maskmod.masks.head_tables import check_lead, check_length, entry
from maskmod.masks.positional import causal

__all__ = [
    "AttentionSlices",
    "ColumnIntervals",
    "FlashMask",
    "QueryWindows",
    "RowIntervals",
    "attention_slices",
    "column_intervals",
    "eviction",
    "flashmask",
    "query_windows",
    "row_intervals",
]


class _Intervals(Mask):
    starts: Tensor | None
    ends: Tensor | None

    def __post_init__(self):
        for table in self._tables():
            check_table(self, table, holds="positions")

    def _tables(self) -> Iterator[Tensor]:
        return (table for table in (self.starts, self.ends) if table is not None)

    def _holds(self, b, row, inner):
        """Whether the interval of ``row`` holds ``inner``; a row outside the tables has none."""
        visible = inner == inner
        if self.starts is not None:
            start, inside = look_up(self.starts, b, row)
            visible = visible & (wide(start, self.starts) <= inner) & inside
        if self.ends is not None:
            end, inside = look_up(self.ends, b, row)
            visible = visible & (inner < wide(end, self.ends)) & inside
        return visible


class RowIntervals(_Intervals):
    """See `row_intervals`."""

    _name = "row_intervals"

    def __call__(self, b, h, q_idx, kv_idx):
        return self._holds(b, q_idx, kv_idx)

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        for table in self._tables():
            check_table_sizes(self, table, B, q_len, "q_len")


def row_intervals(starts: Tensor | None, ends: Tensor | None) -> Mask:
    """Query q sees the keys ``starts[q] <= kv_idx < ends[q]``: ends[q] - starts[q] of them.

    Several intervals a query are joined with ``|`` (the row intervals of HSTU's and MagiAttention's ``func`` arrays);
    xformers' padded and gappy keys are one interval for each query.

    Args:
        starts: the first key, integers (n,) or (B, n); None begins at key 0.
        ends: one past the last key; None has no end.

    >>> rows = row_intervals(torch.tensor([0, 2]), torch.tensor([1, 5]))
    >>> [kv for kv in range(6) if rows(0, 0, 1, kv)]
    [2, 3, 4]
    """
    return RowIntervals(starts, ends)


class ColumnIntervals(_Intervals):
    """See `column_intervals`."""

    _name = "column_intervals"

    def __call__(self, b, h, q_idx, kv_idx):
        return self._holds(b, kv_idx, q_idx)

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        for table in self._tables():
            check_table_sizes(self, table, B, kv_len, "kv_len")


def column_intervals(starts: Tensor | None, ends: Tensor | None) -> Mask:
    """Key k is seen by the queries ``starts[k] <= q_idx < ends[k]``; a query sees the keys whose interval holds it.

    Flamingo's cross-attention, where each image is seen by the text up to the next one, is
    ``column_intervals(begin[image_of_key], end[image_of_key])``.

    Args:
        starts: the first query that sees each key, integers (n,) or (B, n); None begins at query 0.
        ends: one past the last query that sees it; None has no end.

    >>> columns = column_intervals(torch.tensor([0, 0, 3]), torch.tensor([2, 9, 9]))
    >>> [kv for kv in range(3) if columns(0, 0, 2, kv)]
    [1]
    """
    return ColumnIntervals(starts, ends)


def eviction(ends: Tensor) -> Mask:
    """Causal, and key k is forgotten from query ``ends[k]`` on: q + 1 keys less those already evicted (FlashMask).

    ``dfs_tree`` is this with the ends of subtrees.

    Args:
        ends: the first query that does not see the key any more, integers (n,) or (B, n).

    >>> [kv for kv in range(4) if eviction(torch.tensor([2, 4, 4, 4]))(0, 0, 2, kv)]
    [1, 2]
    """
    return causal() & column_intervals(None, ends)


class QueryWindows(Mask):
    """See `query_windows`."""

    sizes: Tensor

    _name = "query_windows"

    def __post_init__(self):
        check_table(self, self.sizes, holds="window sizes")

    def __call__(self, b, h, q_idx, kv_idx):
        size, inside = look_up(self.sizes, b, q_idx)
        return (kv_idx <= q_idx) & (q_idx - kv_idx < wide(size, self.sizes)) & inside

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_table_sizes(self, self.sizes, B, q_len, "q_len")


def query_windows(sizes: Tensor) -> Mask:
    """A sliding window of its own for each query: query q sees ``sizes[q]`` keys, itself included.

    ``0 <= q_idx - kv_idx < sizes[q_idx]``. Packed causal text is ``query_windows(position_ids + 1)``, which reads one
    table where ``causal() & document(ids)`` reads two (torchtitan).

    Args:
        sizes: keys that each query sees, integers (n,) or (B, n); 0 sees nothing.

    >>> [kv for kv in range(4) if query_windows(torch.tensor([1, 2, 1, 2]))(0, 0, 3, kv)]
    [2, 3]
    """
    return QueryWindows(sizes)


class FlashMask(Mask):
    """See `flashmask`."""

    indices: Tensor
    causal: bool = dataclasses.field(kw_only=True)

    _name = "flashmask"

    def __post_init__(self):
        if not isinstance(self.indices, Tensor) or self.indices.is_floating_point() or self.indices.dtype == torch.bool:
            raise MaskTypeError(self, "no integer tensor", "Pass startend_row_indices as int32 or int64.")
        widths = (1, 2) if self.causal else (2, 4)
        if self.indices.dim() != 4 or self.indices.shape[-1] not in widths:
            raise MaskShapeError(
                self,
                f"shape {list(self.indices.shape)}",
                f"Pass (B, H, kv_len, c) with c {widths[0]} or {widths[1]} where causal={self.causal}.",
            )

    def __call__(self, b, h, q_idx, kv_idx):
        width = self.indices.shape[-1]

        def bound(column: int):
            value, inside = entry(self.indices[..., column], (b, h), kv_idx)
            return wide(value, self.indices), inside

        start, inside = bound(0)
        hidden = q_idx >= start
        if (self.causal and width == 2) or width == 4:
            hidden = hidden & (q_idx < bound(1)[0])
        if self.causal:
            return (hidden ^ True) & (kv_idx <= q_idx) & inside
        above = q_idx < bound(width - 1)[0]
        if width == 4:
            above = above & (q_idx >= bound(2)[0])
        return ((hidden | above) ^ True) & inside

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        check_lead(self, self.indices[..., 0], B, H, 1)
        check_length(self, self.indices, 2, kv_len, "kv_len")


def flashmask(startend_row_indices: Tensor, *, causal: bool = True) -> Mask:
    """FlashMask's column-wise intervals of *hidden* queries, as a mask: key k is hidden from the rows they name.

    One or two intervals a key: ``[LTS, LTE)`` below the diagonal and, without causality, ``[UTS, UTE)`` above it.
    Columns in PaddlePaddle's order: causal 1 LTS, 2 LTS LTE; otherwise 2 LTS UTE, 4 LTS LTE UTS UTE; what is left out
    reaches the edge. Causal is top-left here; PaddlePaddle's, bottom-right where lengths differ, is `shift` of this.

    Args:
        startend_row_indices: integers (B or 1, H or 1, kv_len, 1 | 2 | 4).
        causal: whether a query sees no later key besides.

    >>> lts = torch.tensor([2, 4, 4, 4]).view(1, 1, 4, 1)
    >>> [kv for kv in range(4) if flashmask(lts)(0, 0, 2, kv)]
    [1, 2]
    """
    return FlashMask(startend_row_indices, causal=causal)


class AttentionSlices(Mask):
    """See `attention_slices`."""

    q_ranges: Tensor
    k_ranges: Tensor
    types: Tensor

    _name = "attention_slices"

    def __post_init__(self):
        for ranges in (self.q_ranges, self.k_ranges):
            if not isinstance(ranges, Tensor) or ranges.dim() != 2 or ranges.shape[1] != 2:
                raise MaskShapeError(self, "ranges of another shape", "Pass integer tensors (n, 2) of starts and ends.")
        if not isinstance(self.types, Tensor) or self.types.dim() != 1:
            raise MaskShapeError(self, "types of another shape", "Pass an integer tensor (n,) of 0, 1, 2 or 3.")
        counts = {self.q_ranges.shape[0], self.k_ranges.shape[0], self.types.shape[0]}
        if len(counts) != 1:
            raise MaskShapeError(self, f"{sorted(counts)} slices", "Pass as many ranges as types.")

    def __call__(self, b, h, q_idx, kv_idx):
        visible = (q_idx < q_idx) | (kv_idx < kv_idx)  # nothing
        for i in range(self.types.shape[0]):
            (q_start, q_end), (k_start, k_end) = self.q_ranges[i], self.k_ranges[i]
            # Bit 0 ends each row on the diagonal through the last corner, bit 1 begins it on that through the first.
            ends_early, begins_late = self.types[i] % 2 == 1, self.types[i] // 2 == 1
            begins = kv_idx >= k_start + (q_idx - q_start) * begins_late
            ends = kv_idx < k_end - (q_end - q_idx - 1) * ends_early
            visible = visible | ((q_idx >= q_start) & (q_idx < q_end) & begins & ends)
        return visible

    def check(self, B: int | None, H: int | None, q_len: int | None, kv_len: int | None) -> None:
        if known_true(self.types.shape[0] > _MOST_SLICES):
            raise MaskShapeError(
                self, f"{self.types.shape[0]} slices, each a part of the predicate", f"Use {_MOST_SLICES} at most."
            )


_MOST_SLICES = 256


def attention_slices(q_ranges: Tensor, k_ranges: Tensor, types: Tensor) -> Mask:
    """MagiAttention's slices, joined: slice i is a part of the rectangle ``q_ranges[i]`` x ``k_ranges[i]``.

    Types: 0 the whole rectangle; 1 causal, aligned to its bottom-right corner; 2 inverse causal, to its top-left
    corner; 3 both. A query sees what its slices show it.

    Args:
        q_ranges, k_ranges: starts and ends, integers (n, 2).
        types: integers (n,). Each slice is a part of the predicate: n is at most 256.

    >>> two = attention_slices(torch.tensor([[0, 3], [3, 6]]), torch.tensor([[0, 3], [0, 6]]), torch.tensor([0, 1]))
    >>> [kv for kv in range(6) if two(0, 0, 4, kv)]
    [0, 1, 2, 3, 4]
    """
    return AttentionSlices(q_ranges, k_ranges, types)
