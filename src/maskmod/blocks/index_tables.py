"""Index tables of a BlockMask: per row the ascending columns of its blocks, by scatter and never by sorting rows.

`from_classes` builds one from a dense table of blocks, with static shapes; `compacted` from the blocks that are there.
`from_runs` builds one from runs of neighbouring columns, without ever holding a dense table. Entries past a row's
count are undefined in torch's format, yet `BlockMask._adjust` reads them: `from_classes` puts the row's other columns
there, as torch does; elsewhere they are some valid column.

A compact table is as wide as its widest row. Readers of a BlockMask take the number of columns from the table's
shape, so it is stored behind an overlapping view of the full logical width: rows run into each other there, past
their counts. Such a table must not be written to.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["COMPACT_BYTES", "Runs", "compacted", "from_classes", "from_runs"]

COMPACT_BYTES = 64 << 20  # a full-width table above this size is stored compactly
ENTRIES_AT_ONCE = 1 << 22


class Runs(NamedTuple):
    """Runs of neighbouring blocks: `length` columns from `start`, in row `row` of all lanes' rows laid end to end."""

    row: Tensor
    start: Tensor
    length: Tensor


def from_classes(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (B, H, n) and indices (B, H, n, m), int32, of a bool (B, H, n, m); static shapes, no look at values."""
    columns = blocks.shape[-1]
    rank = blocks.cumsum(-1)
    count = blocks.sum(-1, keepdim=True)  # also of no columns
    column = torch.arange(columns, device=blocks.device)
    # Present blocks first, absent ones after them, each in order: a permutation, so the scatter fills every entry.
    place = torch.where(blocks, rank - 1, count + column - rank)
    indices = torch.empty(blocks.shape, dtype=torch.int32, device=blocks.device)
    indices = indices.scatter(-1, place, column.int().expand(blocks.shape))
    return count.squeeze(-1).int(), indices


def compacted(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The same, outside a trace, as wide as the widest row."""
    lanes, (rows, columns) = blocks.shape[:2], blocks.shape[2:]
    count = blocks.sum(-1, dtype=torch.int32)
    entry = blocks.reshape(count.numel(), columns).nonzero()  # ascending by row, then column
    row, column = entry[:, 0], entry[:, 1]
    width = _width(count, columns, True)
    before = count.view(-1).cumsum(0) - count.view(-1)
    place = torch.arange(row.shape[0], device=blocks.device) + (
        torch.arange(before.shape[0], device=blocks.device) * width - before
    ).index_select(0, row)
    flat = _storage(before.shape[0], width, columns, blocks.device)
    flat.scatter_(0, place, column.int())
    return count, _view(flat, (*lanes, rows, columns), width)


def from_runs(runs: Runs, shape: tuple[int, int, int, int], compact: bool) -> tuple[Tensor, Tensor]:
    """Counts and indices from disjoint runs in any order."""
    *lanes, rows, columns = shape
    total = lanes[0] * lanes[1] * rows
    device = runs.row.device
    key = runs.row * columns + runs.start
    order = torch.argsort(key.int() if total * columns < 1 << 31 else key)
    row, start, length = (x.index_select(0, order) for x in runs)
    count = torch.zeros(total, dtype=torch.long, device=device).index_add_(0, row, length)
    width = _width(count, columns, compact)
    flat = _storage(total, width, columns, device)
    end = length.cumsum(0)
    begin = end - length  # entries before each run
    row_begin = count.cumsum(0) - count  # entries before each row
    if (
        row.shape[0]
        and int(length.sum()) * 4 > total * width
        and bool(((row[1:] != row[:-1]) | (start[1:] == (start + length)[:-1])).all())
    ):
        # Each row is one run, and rows are long: count up from its first column, which beats placing every entry.
        first = torch.zeros(total, dtype=torch.int32, device=device)
        first.scatter_reduce_(0, row, start.int(), "amin", include_self=False)
        steps = torch.arange(width, dtype=torch.int32, device=device)
        table = flat[: total * width].view(total, width)
        torch.add(first.unsqueeze(1), steps, out=table).clamp_(max=columns - 1)
        return count.int().view(*lanes, rows), _view(flat, shape, width)
    # Along a run, entry number, place in the table and column all grow by one: two differences say it all.
    to_place = row * width - row_begin.index_select(0, row)
    to_column = (start - begin).int()
    for part in _batches(end):
        lengths, first, past = length[part], int(begin[part.start]), int(end[part.stop - 1])
        run = torch.repeat_interleave(
            torch.arange(part.start, part.stop, device=device), lengths, output_size=past - first
        )
        entry = torch.arange(first, past, device=device)
        columns_there = to_column.index_select(0, run).add_(entry)
        flat.scatter_(0, entry.add_(to_place.index_select(0, run)), columns_there)
    return count.int().view(*lanes, rows), _view(flat, shape, width)


def _batches(end: Tensor) -> list[slice]:
    """Slices of runs with at most about ENTRIES_AT_ONCE entries each."""
    if not end.shape[0]:
        return []
    total = int(end[-1])
    if total <= ENTRIES_AT_ONCE:
        return [slice(0, end.shape[0])]
    marks = torch.arange(ENTRIES_AT_ONCE, total, ENTRIES_AT_ONCE, device=end.device)
    cuts = [0, *torch.searchsorted(end, marks).tolist(), end.shape[0]]
    return [slice(a, b) for a, b in itertools.pairwise(cuts) if a < b]


def _width(count: Tensor, columns: int, compact: bool) -> int:
    return max(1, int(count.max())) if compact and count.numel() else columns


def _storage(rows: int, width: int, columns: int, device: torch.device) -> Tensor:
    return torch.zeros(rows * width + (columns - width), dtype=torch.int32, device=device)


def _view(flat: Tensor, shape: tuple[int, ...], width: int) -> Tensor:
    B, H, rows, columns = shape
    return flat.as_strided((B, H, rows, columns), (H * rows * width, rows * width, width, 1))
