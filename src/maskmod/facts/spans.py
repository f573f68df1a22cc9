"""The visible keys of each query, and the visible queries of each key, as intervals: exact, without the dense mask.

Most masks are orders and equalities of one-axis values, which are solved for the key (or the query) without a look at
a token. The rest are descended in tiles: big tiles that are visible throughout give whole runs, and only the blocks on
the boundary are opened, a batch at a time. Time and memory follow the lengths and the boundary, never the square.

This is a fact about a mask: nothing here knows who wants intervals.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from maskmod.algebra import MaskMod, Sizes
from maskmod.algebra.lookup import check_size
from maskmod.analyser.reading import Reading, read
from maskmod.analyser.solve import solved
from maskmod.errors import MaskTypeError, UnsupportedMask
from maskmod.facts.tiles import tiles_of

__all__ = ["NotSpans", "Spans", "column_spans", "row_spans", "spans_of"]

_BLOCK = 128  # tokens of a block on the boundary, where a mask has to be opened
_MOST_HELD = 1 << 22  # intervals found in opened blocks, before it is asked whether some row has too many already


class NotSpans(UnsupportedMask):
    """A query (or a key, for columns) that sees more intervals than were asked for."""

    @property
    def place(self) -> tuple[int, int, int]:
        """The offending (b, h, q_idx), or (b, h, kv_idx)."""
        return self.args[3]


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Spans:
    """Intervals ``[start, end)``, ascending and apart: the keys of each query, or the queries of each key.

    Attributes:
        starts, ends: int64 (B|1, H|1, n, max_spans); a place that is not used holds the other length twice, so that it
            is empty and the order stays ascending. A lane that the mask does not read is given once.
        counts: int64 (B|1, H|1, n), how many places are used; 0 where nothing is visible.
        sizes: the sizes that were asked for.
    """

    starts: Tensor
    ends: Tensor
    counts: Tensor
    sizes: Sizes

    def __repr__(self) -> str:
        return f"Spans({list(self.counts.shape)}, up to {self.starts.shape[-1]} each)"

    def visible(self) -> Tensor:  # int64 (B|1, H|1, n)
        """How many keys each query sees (or queries each key)."""
        return (self.ends - self.starts).sum(-1)


def row_spans(
    mask: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    max_spans: int = 1,
    device: torch.device | str | None = None,
) -> Spans:
    """The keys that each query sees, as at most `max_spans` intervals.

    Args:
        mask: any callable ``(b, h, q_idx, kv_idx) -> bool``.
        B, H: sizes; None means 1. A lane that the predicate does not read comes back as 1.
        max_spans: intervals of one query, at least 1: the last dimension of the answer.
        device: None takes the device of the mask's own tensors, else torch's default.

    Raises:
        NotSpans: a query sees more intervals; the error names it (`NotSpans.place`), and how many there are.
        MaskTypeError: inside a trace, where values may not be looked at.

    >>> from maskmod import causal, sinks, sliding_window
    >>> spans = row_spans(causal() & (sliding_window(2) | sinks(1)), 1, 1, 5, 5, max_spans=2)
    >>> spans.starts[0, 0, 4].tolist(), spans.ends[0, 0, 4].tolist()
    ([0, 3], [1, 5])
    """
    return spans_of(read(mask, B, H, q_len, kv_len, device=device), max_spans=max_spans)


def column_spans(
    mask: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    max_spans: int = 1,
    device: torch.device | str | None = None,
) -> Spans:
    """The queries that see each key, as at most `max_spans` intervals; see `row_spans`.

    >>> from maskmod import causal
    >>> spans = column_spans(causal(), 1, 1, 4, 4)
    >>> spans.starts.flatten().tolist(), spans.ends.flatten().tolist()
    ([0, 1, 2, 3], [4, 4, 4, 4])
    """
    return spans_of(read(mask, B, H, q_len, kv_len, device=device), max_spans=max_spans, columns=True)


def spans_of(reading: Reading, *, max_spans: int = 1, columns: bool = False) -> Spans:
    """`row_spans`, or `column_spans`, of a mask that was read."""
    name = "column_spans" if columns else "row_spans"
    check_size(f"{name}(max_spans={max_spans!r})", max_spans, unit="intervals")
    if reading.traced:
        raise MaskTypeError(
            f"{name}(...) inside a trace", "whether rows are intervals depends on values", "Call it outside the graph."
        )
    n, length = reading.sizes[2:][:: -1 if columns else 1]
    if reading.is_empty:
        nothing = torch.full((*reading.sizes[:2], n, max_spans), length, dtype=torch.long, device=reading.device)
        return Spans(nothing, nothing.clone(), torch.zeros_like(nothing[..., 0]), reading.sizes)
    found = solved(reading, columns=columns)
    if found is None:
        row, start, end, counts = _runs(name, reading, columns, max_spans)
    else:
        row = None
        start, end = found
        counts = (start < end).sum(-1)
    most = int(counts.max())
    if most > max_spans:
        place = (counts.flatten() > max_spans).nonzero()[0, 0]
        raise _too_many(name, reading, int(place), str(int(counts.flatten()[place])), max_spans)
    shape = (*counts.shape, max_spans)
    if row is None:
        pad = max(0, max_spans - start.shape[-1])
        starts, ends = (torch.nn.functional.pad(x, (0, pad), value=length)[..., :max_spans] for x in (start, end))
        return Spans(starts, ends, counts, reading.sizes)
    place = torch.arange(row.shape[0], device=row.device) - (counts.flatten().cumsum(0) - counts.flatten())[row]
    starts, ends = (torch.full(shape, length, dtype=torch.long, device=row.device) for _ in range(2))
    starts.view(-1, max_spans)[row, place], ends.view(-1, max_spans)[row, place] = start, end
    return Spans(starts, ends, counts, reading.sizes)


def _too_many(name: str, reading: Reading, row: int, many: str, max_spans: int) -> NotSpans:
    _, H, q_len, kv_len = reading.lanes
    columns = name == "column_spans"
    n = kv_len if columns else q_len
    place = (row // n // H, row // n % H, row % n)
    what, other = ("key", "queries") if columns else ("query", "keys")
    lane = f" of batch row {place[0]}, head {place[1]}," if any(size > 1 for size in reading.lanes[:2]) else ""
    seen = f"{what} {place[2]}{lane} has {many} intervals of {other}"
    todo = "Pass a larger max_spans, or read the mask in blocks (classify_tiles)."
    written = f"{name}({reading.mask!r}, max_spans={max_spans})"
    return NotSpans(written, seen, todo, place)  # pyright: ignore[reportCallIssue]


def _runs(name: str, reading: Reading, columns: bool, max_spans: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(row, start, end) of every interval, in order, and how many each row has, by descending tiles.

    `row` counts over lanes first: (b * H + h) * n + index.
    """
    tiles = tiles_of(reading, (_BLOCK, _BLOCK), exact=False)
    B, H = reading.lanes[:2]
    n, length = reading.sizes[2:][:: -1 if columns else 1]
    blocks = -(-n // _BLOCK)
    full = tiles.full
    first, count = (full.kv, full.kv_count) if columns else (full.q, full.q_count)
    start, many = (full.q, full.q_count) if columns else (full.kv, full.kv_count)
    # Whole tiles: runs of block rows, joined there, and only then spread over the rows.
    which = torch.repeat_interleave(count)
    step = torch.arange(which.shape[0], device=reading.device) - (count.cumsum(0) - count)[which]
    block_row = ((full.b * H + full.h) * blocks + first)[which] + step
    runs = _joined(block_row, (start * _BLOCK)[which], ((start + many) * _BLOCK).clamp(max=length)[which], length)
    row = (runs[0] // blocks * n + runs[0] % blocks * _BLOCK).view(-1, 1) + torch.arange(_BLOCK, device=reading.device)
    inside = (runs[0] % blocks * _BLOCK).view(-1, 1) + torch.arange(_BLOCK, device=reading.device) < n
    parts = [(row[inside], *(x.view(-1, 1).expand(inside.shape)[inside] for x in runs[1:]))]
    held = 0
    for part, seen in tiles._opened():
        seen = seen.mT if columns else seen
        row0, start0 = (part.kv, part.q) if columns else (part.q, part.kv)
        edges = torch.nn.functional.pad(seen.to(torch.int8), (1, 1)).diff(dim=-1)
        begins, stops = (edges == 1).nonzero(), (edges == -1).nonzero()
        tile, at = begins[:, 0], begins[:, 1]
        row = (part.b * H + part.h)[tile] * n + row0[tile] * _BLOCK + at
        offset = start0[tile] * _BLOCK
        parts.append((row, begins[:, 2] + offset, stops[:, 2] + offset))
        held += row.shape[0]
        if held > _MOST_HELD:  # a row that has too many already: nothing is gained by opening the rest
            rows, many = row.unique_consecutive(return_counts=True)
            if int(many.max()) - 2 > max_spans:  # the first and the last may be parts of their neighbours
                raise _too_many(name, reading, int(rows[many.argmax()]), f"at least {int(many.max()) - 2}", max_spans)
    row, start, end = (torch.cat(x) for x in zip(*parts, strict=True))
    row, start, end = _joined(row, start, end, length)
    return row, start, end, torch.bincount(row, minlength=B * H * n).view(B, H, n)


def _joined(row: Tensor, start: Tensor, end: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted by row and start, with those that touch made one."""
    order = (row * (length + 1) + start).argsort()
    row, start, end = row[order], start[order], end[order]
    begins = torch.ones_like(row, dtype=torch.bool)
    begins[1:] = (row[1:] != row[:-1]) | (start[1:] != end[:-1])
    at = begins.nonzero().squeeze(1)
    last = torch.cat([at[1:], torch.tensor([row.shape[0]], device=at.device)])[: at.shape[0]] - 1
    return row[at], start[at], end[last]
