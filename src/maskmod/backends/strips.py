"""A mask a few rows at a time, and its bits: for layouts that hold every token, or every visible one.

From intervals where rows are a few of them, else token by token; never more than a strip of the dense mask at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from maskmod.analyser.reading import Reading
from maskmod.analyser.settle import TileList
from maskmod.facts.proofs import Element
from maskmod.facts.spans import NotSpans, Spans, spans_of

__all__ = [
    "few_spans",
    "hidden_interval_of_column",
    "interval_of_row",
    "packed_bits",
    "row_of",
    "spans_up_to",
    "strips",
]

_TOKENS_AT_ONCE = 1 << 22
_BITS_AT_ONCE = 1 << 27
_MOST_SPANS = 16  # intervals of a row, beyond which tokens are looked at


def spans_up_to(reading: Reading, most: int) -> Spans:
    """The rows as at most `most` intervals, in tables no wider than they need to be.

    Raises:
        NotSpans: some row has more.
    """
    for width in (1, 4, 16):
        if width >= most:
            break
        try:
            return spans_of(reading, max_spans=width)
        except NotSpans:
            pass
    return spans_of(reading, max_spans=most)


def few_spans(reading: Reading) -> Spans | None:
    """The rows as intervals, or None where some row has too many."""
    try:
        return spans_up_to(reading, _MOST_SPANS)
    except NotSpans:
        return None


def row_of(reading: Reading, b: int, h: int, q_idx: int) -> Tensor:
    """Which keys one query sees: bool (kv_len,)."""
    keys = torch.arange(reading.sizes.kv_len, device=reading.device)
    return _tokens(reading, b, h, torch.tensor([q_idx], device=reading.device), keys)[0]


def interval_of_row(reading: Reading, place: tuple[int, int, int], number: int) -> Element:
    """The first key of that interval (from 0) of the keys that query (b, h, q_idx) sees."""
    return Element(*place, _begin(row_of(reading, *place), number))


def hidden_interval_of_column(reading: Reading, place: tuple[int, int, int], number: int) -> Element:
    """The first query of that interval (from 0) of the queries that do not see key (b, h, kv_idx)."""
    b, h, kv_idx = place
    queries = torch.arange(reading.sizes.q_len, device=reading.device)
    seen = _tokens(reading, b, h, queries, torch.tensor([kv_idx], device=reading.device))[:, 0]
    return Element(b, h, _begin(~seen, number), kv_idx)


def _begin(holds: Tensor, number: int) -> int:
    return int((torch.nn.functional.pad(holds.int(), (1, 0)).diff() == 1).nonzero()[number])


def _tokens(reading: Reading, b: int, h: int, queries: Tensor, keys: Tensor) -> Tensor:
    lane = [torch.tensor([x], device=reading.device) for x in (b, h)]
    analysis = reading.analysis((1, 1), looks=True)
    return analysis.tokens(TileList(*lane, *lane), queries.view(1, -1), keys.view(1, -1))[0]


def strips(reading: Reading, b: int, h: int, *, multiple: int = 1) -> Iterator[tuple[int, Tensor]]:
    """(first query, bool (rows, kv_len)) over all queries of one lane; each strip but the last a multiple of rows."""
    _, _, q_len, kv_len = reading.sizes
    rows = max(1, _TOKENS_AT_ONCE // max(kv_len, 1) // multiple) * multiple
    keys = torch.arange(kv_len, device=reading.device)
    for start in range(0, q_len, rows):
        queries = torch.arange(start, min(q_len, start + rows), device=reading.device)
        yield start, _tokens(reading, b, h, queries, keys)


def packed_bits(reading: Reading, b: int, h: int, kv_len: int, spans: Spans | None) -> Tensor:
    """The rows of one lane, their first `kv_len` keys, laid end to end as bits, the lowest first: uint8 (bytes,)."""
    q_len = reading.sizes.q_len
    nothing = torch.zeros(0, dtype=torch.uint8, device=reading.device)
    if not q_len * kv_len:
        return nothing
    if spans is None:
        return torch.cat([_of_tokens(seen[:, :kv_len]) for _, seen in strips(reading, b, h, multiple=8)])
    lanes = spans.starts.shape[:2]
    lane = (b if lanes[0] > 1 else 0, h if lanes[1] > 1 else 0)
    start, end = spans.starts[lane].clamp(max=kv_len), spans.ends[lane].clamp(max=kv_len)
    rows = max(1, _BITS_AT_ONCE // kv_len // 8) * 8
    parts = [_of_intervals(start[q : q + rows], end[q : q + rows], kv_len) for q in range(0, q_len, rows)]
    return torch.cat(parts)


def _of_tokens(seen: Tensor) -> Tensor:
    bits = seen.reshape(-1)
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[0] % 8)).view(-1, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=seen.device)
    return (bits * weights).sum(1, dtype=torch.uint8)


def _of_intervals(start: Tensor, end: Tensor, kv_len: int) -> Tensor:
    """Intervals (rows, m) of rows of `kv_len` bits: whole bytes by where they begin and end, cut ones bit by bit."""
    rows = start.shape[0]
    first = torch.arange(rows, device=start.device).view(-1, 1) * kv_len
    some = start < end
    a, z = (start + first)[some], (end + first)[some]
    count = -(-rows * kv_len // 8)
    step = torch.zeros(count + 1, dtype=torch.int8, device=start.device)
    whole, stop = (a + 7) // 8, z // 8
    is_whole = whole < stop
    one = torch.ones(1, dtype=torch.int8, device=start.device).expand(int(is_whole.sum()))
    step.index_add_(0, whole[is_whole], one).index_add_(0, stop[is_whole], -one)
    packed = step[:-1].cumsum(0, dtype=torch.int8).view(torch.uint8) * 255
    for byte, low, high in _cut_bytes(a, z):
        packed.index_add_(0, byte, ((1 << high) - (1 << low)).to(torch.uint8))
    return packed


def _cut_bytes(a: Tensor, z: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(byte, first bit, one past the last bit) of the bytes that intervals [a, z) of bits share with others."""
    same = a // 8 == z // 8
    head = (a % 8 != 0) | same
    low = a[head] % 8
    yield a[head] // 8, low, torch.where(same[head], z[head] % 8, 8)
    tail = (z % 8 != 0) & ~same
    yield z[tail] // 8, torch.zeros_like(z[tail]), z[tail] % 8
