"""MagiAttention's slices: rectangles of queries and keys, each full, causal, inversely causal or both.

``q_ranges`` and ``k_ranges`` are int32 (N, 2), ``attn_type_map`` int32 (N,): 0 FULL, 1 CAUSAL (its diagonal ends in the
bottom-right corner), 2 INVCAUSAL (its diagonal begins in the top-left corner), 3 BICAUSAL. In a slice of queries
``[q0, q1)`` and keys ``[k0, k1)``, query q sees the keys from ``k0 + (q - q0 if type & 2 else 0)`` to
``k1 - (q1 - 1 - q if type & 1 else 0)``. Slices never overlap. Batch rows are laid end to end: query ``b * q_len + q``.

Source: MagiAttention's ``flex_flash_attn_func``. The kernel needs a Hopper GPU; it is not called here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import Sizes
from maskmod.analyser.reading import Reading
from maskmod.backends.protocol import Backend
from maskmod.backends.refusals import check_outside_a_trace, check_same, refusal
from maskmod.backends.strips import interval_of_row, spans_up_to
from maskmod.facts.spans import NotSpans

__all__ = ["Magi", "MagiArgs"]

_MOST_SPANS = 64


class MagiArgs(NamedTuple):
    """Slices over ``B * q_len`` queries and ``B * kv_len`` keys: int32 (N, 2), (N, 2) and (N,)."""

    q_ranges: Tensor
    k_ranges: Tensor
    attn_type_map: Tensor
    why: str
    sizes: Sizes

    def kwargs(self) -> dict[str, Any]:
        """For ``flex_flash_attn_func(q, k, v, **kwargs)`` with tokens (B * n, H, D)."""
        return {"q_ranges": self.q_ranges, "k_ranges": self.k_ranges, "attn_type_map": self.attn_type_map}


class Magi(Backend):
    name = "magi"

    def lower(self, reading: Reading, *, dtype: torch.dtype, empty_rows: str = "keep") -> MagiArgs:
        """The slices of the mask: as few as rows of one interval can be, and few where rows have several.

        Raises:
            UnsupportedMask: heads differ, or some row has more than 64 intervals.
        """
        check_outside_a_trace(reading, self.name, empty_rows)
        check_same(reading, self.name, "h")
        B, _, q_len, kv_len = reading.sizes
        try:
            spans = spans_up_to(reading, _MOST_SPANS)
        except NotSpans as found:
            seen = f"query {found.place[2]} sees more than {_MOST_SPANS} intervals of keys, each a slice of its own"
            raise refusal(reading, self.name, interval_of_row(reading, found.place, _MOST_SPANS), seen) from found
        slices: list[_Slice] = []
        found_here: list[_Slice] = []
        for b in range(B):
            lane = b if spans.counts.shape[0] > 1 else 0
            if b == 0 or spans.counts.shape[0] > 1:
                found_here = sorted(_cover(*(x[lane, 0].cpu() for x in (spans.starts, spans.ends, spans.counts))))
            slices += [
                _Slice(q0 + b * q_len, q1 + b * q_len, k0 + b * kv_len, k1 + b * kv_len, kind)
                for q0, q1, k0, k1, kind in found_here
            ]
        table = torch.tensor(slices, dtype=torch.int32, device=reading.device).view(-1, 5)
        q_ranges, k_ranges, kinds = table[:, :2].contiguous(), table[:, 2:4].contiguous(), table[:, 4].contiguous()
        return MagiArgs(q_ranges, k_ranges, kinds, f"{len(slices)} slices that do not overlap", reading.sizes)

    def read_back(self, args: MagiArgs) -> Tensor:
        B, H, q_len, kv_len = args.sizes
        seen = torch.zeros((B * q_len, B * kv_len), dtype=torch.int32)
        for (q0, q1), (k0, k1), kind in zip(
            args.q_ranges.tolist(), args.k_ranges.tolist(), args.attn_type_map.tolist(), strict=True
        ):
            row, key = torch.arange(q0, q1).view(-1, 1), torch.arange(k0, k1)
            part = torch.ones((q1 - q0, k1 - k0), dtype=torch.bool)
            if kind in (1, 3):
                part &= (k1 - 1) - key >= (q1 - 1) - row
            if kind in (2, 3):
                part &= key - k0 >= row - q0
            seen[q0:q1, k0:k1] += part
        if int(seen.max() if seen.numel() else 0) > 1:
            raise AssertionError("slices overlap: the kernel would count a key twice")
        apart = seen.view(B, q_len, B, kv_len)
        rows = torch.arange(B)
        own = apart[rows, :, rows]  # (B, q_len, kv_len)
        if int(seen.sum()) != int(own.sum()):
            raise AssertionError("a slice crosses from one batch row into another")
        return own.bool()[:, None].expand(B, H, q_len, kv_len).to(args.q_ranges.device)


class _Slice(NamedTuple):
    q0: int
    q1: int
    k0: int
    k1: int
    kind: int


class _Open:
    """A slice that still grows: its first row and key, where its interval stands in the current row, and its type."""

    def __init__(self, row: int, place: int, start: int, end: int):
        self.row, self.place, self.first, self.start, self.end = row, place, start, start, end
        self.kind: int | None = None  # of one row any type will do

    def closed(self, row: int) -> _Slice:
        return _Slice(self.row, row + 1, self.first, self.end, self.kind or 0)


def _cover(starts: Tensor, ends: Tensor, counts: Tensor) -> list[_Slice]:
    """Slices of rows whose intervals are starts and ends (n, m), `counts` (n,) of them used.

    Between two rows an interval's start stays (0) or moves by one (2), and its end likewise (0 or 1); a slice is a run
    of equal moves. Taking each run as far as it goes gives the fewest slices where rows have one interval. Rows where
    all intervals go on moving as before are skipped at once; Python looks only at those where something changes.
    """
    n = counts.shape[0]
    if not n:
        return []
    moved_start, moved_end = starts.diff(dim=0), ends.diff(dim=0)
    even = (moved_start >= 0) & (moved_start <= 1) & (moved_end >= 0) & (moved_end <= 1)
    used = torch.arange(starts.shape[1]) < counts[:-1, None]
    kinds = torch.where(used, torch.where(even, moved_end + 2 * moved_start, -1), 0)
    goes_on = (kinds >= 0).all(1) & (counts[1:] == counts[:-1])
    quiet = torch.zeros(n - 1, dtype=torch.bool)
    quiet[1:] = goes_on[1:] & goes_on[:-1] & (kinds[1:] == kinds[:-1]).all(1)
    events = [*(~quiet).nonzero().squeeze(1).tolist(), n - 1]
    table = torch.stack([starts, ends], -1)
    done: list[_Slice] = []
    live = [_Open(0, j, *place) for j, place in enumerate(table[0, : int(counts[0])].tolist())]
    at, ready = 0, 0
    while at < n - 1:
        live = _step(live, at, table[at + 1, : int(counts[at + 1])].tolist(), done)
        # What moved as its place did goes on so while the rows are quiet; what is new, or changed places, is looked at.
        kind = kinds[at].tolist()
        settled = all(s.kind == kind[s.place] and s.row <= at for s in live)
        while events[ready] <= at:
            ready += 1
        at = events[ready] if settled else at + 1
        row = table[at].tolist()
        for s in live:
            s.start, s.end = row[s.place]
    return done + [s.closed(n - 1) for s in live]


def _step(live: list[_Open], at: int, following: list[list[int]], done: list[_Slice]) -> list[_Open]:
    """From row `at` to the next one's intervals: slices that go on, and new ones; those that end join `done`."""
    free, kept = set(range(len(following))), []
    for s in live:
        for j in (s.place, *range(len(following))):
            if j not in free:
                continue
            start, end = following[j][0] - s.start, following[j][1] - s.end
            if start in (0, 1) and end in (0, 1) and s.kind in (None, end + 2 * start):
                s.kind, s.place, (s.start, s.end) = end + 2 * start, j, following[j]
                free.remove(j)
                kept.append(s)
                break
        else:
            done.append(s.closed(at))
    return kept + [_Open(at + 1, j, *following[j]) for j in sorted(free)]
