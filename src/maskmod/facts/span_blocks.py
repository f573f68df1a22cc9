"""Cut a mask into rectangles of queries and keys that hold all it shows: what is visible, and a little beside it.

Queries go in blocks. For each interval that a block's rows see, the hull is what any of them sees and the core what all
of them see. A long core is a rectangle of its own, visible throughout; what remains carries a small boolean table, held
once for all rectangles that look alike. Each query-key pair lies in one rectangle at most. Nothing here grows with
q_len x kv_len, and nothing here runs a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from maskmod.analyser.reading import Reading
from maskmod.analyser.settle import TileList
from maskmod.analyser.solve import Intervals
from maskmod.facts.tiles import tiles_of

__all__ = ["Group", "Rectangle", "Rectangles", "TooOpen", "cut", "cut_tiles", "hulls", "inside"]

LONG_CORE = 512  # keys seen by all rows of a block: from here on they are worth a rectangle of their own
NEAR = 64  # hidden keys between two intervals that cost less than another rectangle
_TILE_KEYS = 64  # keys of a block, where tiles have to do


class TooOpen(Exception):
    """The partial rectangles of this mask would hold too many tokens, and how many; not an error of the user's."""


class Rectangle(NamedTuple):
    """Queries ``q : q + rows`` meet keys ``kv : kv + keys`` of lane (b, h), with the rows and keys of its group."""

    b: int
    h: int
    q: int
    kv: int


class Group(NamedTuple):
    """Rectangles of one shape.

    first: whether these are the first of their query blocks. What is visible: all where `visible` and `begin` are None;
    else `visible`, bool (rows, keys), or, where tables would grow large, the intervals ``begin <= key < stop`` of each
    row, int64 (rows, m), counted from the rectangle's first key. sees: bool (rows,), which rows see anything here; None
    where all do.
    """

    rows: int
    keys: int
    first: bool
    visible: Tensor | None
    begin: Tensor | None
    stop: Tensor | None
    sees: Tensor | None
    places: tuple[Rectangle, ...]


class Rectangles(NamedTuple):
    """A mask cut up: groups, those of first rectangles before the others; lanes (B|1, H|1).

    uncovered: whether a block of queries has no rectangle. pairs: what all rectangles hold. count: how many they are.
    """

    groups: tuple[Group, ...]
    lanes: tuple[int, int]
    uncovered: bool
    pairs: int

    @property
    def count(self) -> int:
        return sum(len(group.places) for group in self.groups)


class Hulls(NamedTuple):
    """Of each block of rows and each of its intervals, (lanes, blocks, m): an empty hull ends before it starts."""

    low: Tensor
    high: Tensor
    core_low: Tensor
    core_high: Tensor


def hulls(found: Intervals, rows: int) -> Hulls:
    """What any, and what all, of each `rows` queries see."""
    n, m = found.start.shape[-2:]
    start, end = found.start.reshape(-1, n, m), found.end.reshape(-1, n, m)
    sees = start < end
    stop = torch.where(sees, end, 0)
    short = -n % rows
    if short:  # the last row again: it changes neither what any sees nor what all see
        start, stop = (torch.cat([x, x[:, -1:].expand(-1, short, -1)], 1) for x in (start, stop))
    start, stop = start.unflatten(1, (-1, rows)), stop.unflatten(1, (-1, rows))
    # A row without this interval starts at the last key and stops at 0: no core is left.
    return Hulls(start.amin(2), stop.amax(2), start.amax(2), stop.amin(2))


class _Piece(NamedTuple):
    start: int
    end: int
    full: bool


def _pieces(intervals: list[list[int]]) -> list[_Piece]:
    """One block's keys from its [low, high, core low, core high] of each interval: ascending, apart."""
    joined: list[tuple[int, int, list[tuple[int, int]]]] = []
    for low, high, core_low, core_high in sorted(x for x in intervals if x[0] < x[1]):
        core = [(core_low, core_high)] if core_low < core_high else []
        if joined and low - joined[-1][1] < NEAR:
            first, last, cores = joined[-1]
            joined[-1] = (first, max(last, high), cores + core)
        else:
            joined.append((low, high, core))
    pieces = []
    for low, high, cores in joined:
        at = low
        for start, end in sorted(cores):
            if start < at or not (end - start >= LONG_CORE or (start, end) == (low, high)):
                continue
            if at < start:
                pieces.append(_Piece(at, start, False))
            pieces.append(_Piece(start, end, True))
            at = end
        if at < high:
            pieces.append(_Piece(at, high, False))
    return pieces


class _Sorted:
    """Rectangles sorted by shape, as they are found."""

    def __init__(self, q_len: int, rows: int, heads: int):
        self.q_len, self.rows, self.heads = q_len, rows, heads
        self.full: dict[tuple[int, int, bool], list[Rectangle]] = {}
        self.partial: dict[tuple[int, int, bool], list[Rectangle]] = {}
        self.uncovered, self.pairs = False, 0

    def add(self, lane: int, block: int, pieces: list[_Piece]) -> None:
        q = block * self.rows
        count = min(self.rows, self.q_len - q)
        self.uncovered |= not pieces
        for number, (start, end, full) in enumerate(pieces):
            self.pairs += count * (end - start)
            key = (count, end - start, number == 0)
            place = Rectangle(lane // self.heads, lane % self.heads, q, start)
            (self.full if full else self.partial).setdefault(key, []).append(place)

    @property
    def opened(self) -> int:
        """Tokens of all partial rectangles."""
        return sum(rows * keys * len(places) for (rows, keys, _), places in self.partial.items())

    def groups(self, partial: Iterator[Group]) -> tuple[Group, ...]:
        found = [Group(*key, None, None, None, None, tuple(places)) for key, places in self.full.items()]
        return tuple(sorted((*found, *partial), key=lambda group: not group.first))


def cut(found: Intervals, rows: int, most: int) -> Rectangles:
    """The rectangles of intervals (B|1, H|1, q_len, m), in blocks of `rows` queries; tables of `most` tokens in all."""
    B, H, q_len, m = found.start.shape
    by_shape = _Sorted(q_len, rows, H)
    for lane, blocks in enumerate(torch.stack(hulls(found, rows), -1).tolist()):
        for block, intervals in enumerate(blocks):
            by_shape.add(lane, block, _pieces(intervals))
    start, end = (x.reshape(B * H, q_len, m) for x in found)

    def partial() -> Iterator[Group]:
        held = 0
        for (count, keys, first), places in by_shape.partial.items():
            where = torch.tensor([(p.b * H + p.h, p.q, p.kv) for p in places], device=start.device)
            q = where[:, 1:2] + torch.arange(count, device=start.device)
            # Intervals as seen from the rectangle's first key, (places, rows, m).
            begin, stop = ((x[where[:, :1], q] - where[:, 2].view(-1, 1, 1)).clamp(0, keys) for x in (start, end))
            for head, alike in _alike(torch.stack([begin, stop], -1).flatten(1)):
                ends = begin[head].clone(), stop[head].clone()
                sees = (ends[0] < ends[1]).any(-1)
                sees = None if bool(sees.all()) else sees
                held += count * keys
                visible = inside(*ends, keys) if held <= most else None
                ends = (None, None) if held <= most else ends
                yield Group(count, keys, first, visible, *ends, sees, tuple(places[i] for i in alike))

    return Rectangles(by_shape.groups(partial()), (B, H), by_shape.uncovered, by_shape.pairs)


def inside(begin: Tensor, stop: Tensor, keys: int) -> Tensor:  # bool (rows, keys)
    """Which of the first `keys` keys lie in one of each row's intervals, (rows, m)."""
    at = torch.arange(keys, device=begin.device)
    return ((at >= begin.unsqueeze(-1)) & (at < stop.unsqueeze(-1))).any(1)


def _alike(tables: Tensor) -> Iterator[tuple[int, list[int]]]:
    """Rows of `tables` that are equal: the first of each kind, and all of the kind."""
    # A sum with odd weights tells most kinds apart; only within one sum are tables compared entry by entry.
    weights = torch.arange(1, 2 * tables.shape[1], 2, device=tables.device) * 0x9E3779B1
    sums = (tables.long() * weights).sum(1)
    kinds, kind_of = sums.unique(return_inverse=True)
    for kind in range(kinds.shape[0]):
        left = (kind_of == kind).nonzero().squeeze(1)
        while left.shape[0]:
            same = (tables[left] == tables[left[0]]).all(1)
            yield int(left[0]), left[same].tolist()
            left = left[~same]


def cut_tiles(reading: Reading, rows: int, most: int) -> Rectangles:
    """The rectangles of any mask, by descending tiles and opening what is partial.

    Raises:
        TooOpen: the partial rectangles would hold more than `most` tokens.
    """
    tiles = tiles_of(reading, (rows, _TILE_KEYS), exact=False)
    B, H, q_len, kv_len = reading.lanes
    blocks = -(-q_len // rows)
    runs: dict[tuple[int, int], list[_Piece]] = {}
    tokens = 0
    for part, full in ((tiles.full, True), (tiles.partial, False)):
        for b, h, q, kv, q_count, kv_count in zip(*(x.tolist() for x in part), strict=True):
            end = min((kv + kv_count) * _TILE_KEYS, kv_len)
            for block in range(q, q + q_count):
                runs.setdefault((b * H + h, block), []).append(_Piece(kv * _TILE_KEYS, end, full))
            tokens += 0 if full else rows * _TILE_KEYS
        if tokens > most:
            raise TooOpen(tokens)
    by_shape = _Sorted(q_len, rows, H)
    for lane in range(B * H):
        for block in range(blocks):
            by_shape.add(lane, block, _combined(sorted(runs.get((lane, block), []))))
    if by_shape.opened > most:
        raise TooOpen(by_shape.opened)
    analysis = reading.analysis((rows, _TILE_KEYS), looks=True)

    def partial() -> Iterator[Group]:
        for (count, keys, first), places in by_shape.partial.items():
            for chunk in range(0, len(places), step := analysis.at_once(count * keys)):
                some = places[chunk : chunk + step]
                b, h, q, kv = torch.tensor(some, device=reading.device).unbind(1)
                queries = q.view(-1, 1) + torch.arange(count, device=reading.device)
                visible = analysis.tokens(
                    TileList(b, h, q, kv), queries, kv.view(-1, 1) + torch.arange(keys, device=reading.device)
                )
                for head, alike in _alike(visible.flatten(1)):
                    table = visible[head].clone()
                    sees = table.any(-1)
                    sees = None if bool(sees.all()) else sees
                    yield Group(count, keys, first, table, None, None, sees, tuple(some[i] for i in alike))

    return Rectangles(by_shape.groups(partial()), (B, H), by_shape.uncovered, by_shape.pairs)


def _combined(runs: list[_Piece]) -> list[_Piece]:
    """Neighbouring runs of blocks joined into fewer, larger pieces; a long full one stays by itself."""
    joined: list[_Piece] = []
    for run in runs:
        before = joined[-1] if joined else None
        if before is not None and before.full and run.full and before.end == run.start:
            joined[-1] = _Piece(before.start, run.end, True)
        else:
            joined.append(run)
    pieces: list[_Piece] = []
    for run in joined:
        before = pieces[-1] if pieces else None
        alone = run.full and (run.end - run.start >= LONG_CORE or len(joined) == 1)
        if before is None or alone or (before.full and before.end - before.start >= LONG_CORE):
            pieces.append(run)
        elif run.start - before.end < NEAR:
            pieces[-1] = _Piece(before.start, run.end, False)
        else:
            pieces.append(run)
    return pieces
