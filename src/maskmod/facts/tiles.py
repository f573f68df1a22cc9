"""A mask as a quad-tree: big tiles that are all visible, and the blocks on the boundary; O(N + boundary).

Big tiles are asked about first, and only those left open are divided. Nothing of the size of a block table is held.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import MaskMod
from maskmod.analyser.reading import Reading, read
from maskmod.analyser.settle import Analysis, TileList
from maskmod.analyser.solve import solved
from maskmod.errors import MaskTypeError, MaskValueError

__all__ = ["Rectangles", "Row", "Tiles", "checked_block_size", "classify_tiles", "descend", "rectangles", "tiles_of"]

# Tile sizes in blocks. The first step halves, since most boundaries are a block or two wide; then fewer, larger steps.
RATIOS = (1, 2, 8, 32, 128, 512, 2048)
TOP_TILES = 4096  # tiles asked about first, at most


class Rectangles(NamedTuple):
    """Rectangles of blocks: lane, first block and number of blocks along queries and along keys; each (n,)."""

    b: Tensor
    h: Tensor
    q: Tensor
    kv: Tensor
    q_count: Tensor
    kv_count: Tensor


class Row(NamedTuple):
    """One query."""

    b: int
    h: int
    q_idx: int


class _TooMany(Exception):
    """More tokens would have to be evaluated than the caller allows."""


def descend(
    analysis: Analysis, exact: bool, max_opened: int | None = None
) -> tuple[list[tuple[int, TileList]], TileList]:
    """Full tiles by their size in blocks, and the partial blocks; `exact` opens blocks that intervals leave open."""
    rows, columns = analysis.counts
    B, H = analysis.lanes
    device = analysis.device
    if analysis.root is None:
        ratios = RATIOS[:1]  # nothing can be said of a tile: start with the blocks
    else:
        top = next((r for r in RATIOS if -(-rows // r) * -(-columns // r) * B * H <= TOP_TILES), RATIOS[-1])
        ratios = RATIOS[: RATIOS.index(top) + 1]
    tiles = _all(B, H, -(-rows // ratios[-1]), -(-columns // ratios[-1]), device)
    full: list[tuple[int, TileList]] = []
    for level in range(len(ratios) - 1, -1, -1):
        ratio = ratios[level]
        if analysis.root is not None:
            tiles = tiles.take(analysis.may(tiles, ratio))
            leaves_hidden = analysis.may(tiles, ratio, sign=False)
            full.append((ratio, tiles.take(~leaves_hidden)))
            tiles = tiles.take(leaves_hidden)
        if level:
            tiles = _divide(
                tiles, ratio // ratios[level - 1], -(-rows // ratios[level - 1]), -(-columns // ratios[level - 1])
            )
    if exact:
        settled = analysis.settle(tiles, max_opened)
        if settled is None:
            raise _TooMany
        all_visible, none_visible = settled
        if bool(all_visible.any()):
            full.append((1, tiles.take(all_visible)))
        open_ = ~(all_visible | none_visible)
        tiles = tiles if bool(open_.all()) else tiles.take(open_)
    return full, tiles


def _all(B: int, H: int, rows: int, columns: int, device: torch.device) -> TileList:
    place = torch.arange(B * H * rows * columns, device=device)
    kv = place % columns if columns else place
    rest = place // columns if columns else place
    zero = torch.zeros(1, dtype=torch.long, device=device).expand(place.shape[0])
    lane = rest // max(rows, 1)
    return TileList(lane // H if B > 1 else zero, lane % H if H > 1 else zero, rest % max(rows, 1), kv)


def _divide(tiles: TileList, factor: int, rows: int, columns: int) -> TileList:
    """Each tile into factor x factor, leaving out what lies past the last block."""
    step = torch.arange(factor, device=tiles.q.device)
    n = tiles.count
    q = (tiles.q.view(n, 1, 1) * factor + step.view(1, factor, 1)).expand(n, factor, factor).reshape(-1)
    kv = (tiles.kv.view(n, 1, 1) * factor + step.view(1, 1, factor)).expand(n, factor, factor).reshape(-1)
    lanes = [
        x[:1].expand(q.shape[0]) if n and x.stride(0) == 0 else x.repeat_interleave(factor * factor) for x in tiles[:2]
    ]
    children = TileList(lanes[0], lanes[1], q, kv)
    if rows % factor or columns % factor:
        children = children.take((q < rows) & (kv < columns))
    return children


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Tiles:
    """The answer of `classify_tiles`: tiles that are visible throughout, and the blocks on the boundary.

    Attributes:
        full: `Rectangles` of blocks in which every token inside the lengths is visible.
        partial: `Rectangles` of single blocks; each holds a visible and a hidden token if `exact`, else may hold both.
        exact: whether every block in `partial` really is partial.
        block_size: (queries, keys).
    """

    full: Rectangles
    partial: Rectangles
    exact: bool
    block_size: tuple[int, int]
    _reading: Reading

    @property
    def _analysis(self) -> Analysis:
        return self._reading.analysis(self.block_size, looks=True)

    @property
    def opened(self) -> int:
        """Tokens that were evaluated because the analyser could not settle a block: 0 where it knows the mask well."""
        return self._analysis.opened

    def __repr__(self) -> str:
        B, H, q_len, kv_len = self._analysis.sizes
        return (
            f"Tiles({B} x {H} x {q_len} x {kv_len}, blocks of {self.block_size}: {self.full.q.shape[0]} full tiles, "
            f"{self.partial.q.shape[0]} {'partial' if self.exact else 'undecided'} blocks)"
        )

    def visible(self) -> int:
        """The number of visible (query, key) pairs, exactly, over all of B and H."""
        counts = self._solved_counts()
        if counts is not None:
            count = int(counts.sum())
        else:
            q0, q1, kv0, kv1 = self._extent(self.full)
            count = int(((q1 - q0) * (kv1 - kv0)).sum()) + sum(int(seen.sum()) for _, seen in self._opened())
        B, H = self._analysis.lanes
        return count * (self._analysis.sizes.B // max(B, 1)) * (self._analysis.sizes.H // max(H, 1))

    @property
    def density(self) -> float:
        """The visible part of all pairs, 0 to 1; 0 where there are none."""
        B, H, q_len, kv_len = self._analysis.sizes
        pairs = B * H * q_len * kv_len
        return self.visible() / pairs if pairs else 0.0

    def row_counts(self) -> Tensor:  # (B, H, q_len) int64
        """How many keys each query sees."""
        counts = self._solved_counts()
        return self._rows()[0] if counts is None else counts.expand(self._reading.sizes[:3])

    def _solved_counts(self) -> Tensor | None:  # (B|1, H|1, q_len) int64
        """The same without a look at a block, where the mask is solved for its keys or for its queries."""
        found = solved(self._reading)
        if found is not None:
            return (found.end - found.start).sum(-1)
        found = solved(self._reading, columns=True)
        if found is None:
            return None
        B, H, q_len, _ = self._reading.lanes
        steps = torch.zeros((B, H, q_len + 1), dtype=torch.long, device=found.start.device)
        for places, sign in ((found.start, 1), (found.end, -1)):
            places = places.flatten(2)
            steps.scatter_add_(2, places, torch.full((), sign, device=places.device).expand(places.shape))
        return steps.cumsum(2)[..., :q_len]

    def empty_rows(self) -> Tensor:  # (B, H, q_len) bool
        """Which queries see nothing."""
        return self.row_counts() == 0

    def first_empty_row(self) -> Row | None:
        """A query that sees nothing, or None: the witness of `empty_rows`."""
        found = self.empty_rows().nonzero()
        return Row(*found[0].tolist()) if found.shape[0] else None

    def contiguous_rows(self) -> Tensor:  # (B, H, q_len) bool
        """Whether the keys that a query sees are one run; a query that sees nothing counts as one."""
        count, first, last = self._rows()
        return (count == 0) | (last - first + 1 == count)

    def _extent(self, part: Rectangles) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """First and one past last query, first and one past last key, in tokens."""
        (bq, bkv), (_, _, q_len, kv_len) = self.block_size, self._analysis.sizes
        return (
            part.q * bq,
            ((part.q + part.q_count) * bq).clamp(max=q_len),
            part.kv * bkv,
            ((part.kv + part.kv_count) * bkv).clamp(max=kv_len),
        )

    def _opened(self) -> Iterator[tuple[TileList, Tensor]]:
        """Partial blocks in batches with their tokens (n, bq, bkv); False past the lengths."""
        tiles = TileList(*self.partial[:4])
        batch = self._analysis.at_once(self.block_size[0] * self.block_size[1])
        _, _, q_len, kv_len = self._analysis.sizes
        for start in range(0, tiles.count, batch):
            part = TileList(*(x[start : start + batch] for x in tiles))
            seen = self._analysis.tokens(part, *self._analysis.inside(part))
            steps = [torch.arange(s, device=seen.device) for s in self.block_size]
            if q_len % self.block_size[0]:
                seen = seen & (part.q.view(-1, 1) * self.block_size[0] + steps[0] < q_len).unsqueeze(2)
            if kv_len % self.block_size[1]:
                seen = seen & (part.kv.view(-1, 1) * self.block_size[1] + steps[1] < kv_len).unsqueeze(1)
            yield part, seen

    def _rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Visible keys of each query: how many, the first and the last."""
        B, H = self._analysis.lanes
        sizes, device = self._analysis.sizes, self._analysis.device
        bq, bkv = self.block_size
        rows = self._analysis.counts[0]
        # Whole blocks first, one entry a block row; then queries.
        lane_row = (self.full.b * H + self.full.h) * (rows + 1) + self.full.q
        _, _, kv0, kv1 = self._extent(self.full)
        steps = torch.zeros(B * H * (rows + 1) + 1, dtype=torch.long, device=device)
        steps.index_add_(0, lane_row, kv1 - kv0).index_add_(0, lane_row + self.full.q_count, kv0 - kv1)
        count = steps[:-1].view(B, H, rows + 1).cumsum(-1)[..., :rows]
        first = torch.full((B * H * rows,), sizes.kv_len, dtype=torch.long, device=device)
        last = torch.full_like(first, -1)
        for size in self.full.q_count.unique().tolist():
            some = (self.full.q_count == size).nonzero().squeeze(1)
            row = ((self.full.b[some] * H + self.full.h[some]) * rows + self.full.q[some]).view(-1, 1)
            row = (row + torch.arange(size, device=device)).view(-1)
            first.scatter_reduce_(0, row, kv0[some].repeat_interleave(size), "amin")
            last.scatter_reduce_(0, row, (kv1[some] - 1).repeat_interleave(size), "amax")
        by_query = [x.reshape(B * H, rows).repeat_interleave(bq, 1).reshape(-1) for x in (count, first, last)]
        count, first, last = (x.clone() for x in by_query)
        step = torch.arange(bq, device=device)
        for part, seen in self._opened():
            row = (((part.b * H + part.h) * rows + part.q).view(-1, 1) * bq + step).view(-1)
            here = seen.sum(2)
            some = here > 0
            start = part.kv.view(-1, 1) * bkv
            begin = torch.where(some, start + seen.int().argmax(2), sizes.kv_len)
            end = torch.where(some, start + bkv - 1 - seen.flip(2).int().argmax(2), -1)
            count.index_add_(0, row, here.view(-1))
            first.scatter_reduce_(0, row, begin.view(-1), "amin")
            last.scatter_reduce_(0, row, end.view(-1), "amax")
        shape = (sizes.B, sizes.H, sizes.q_len)
        return tuple(x.view(B, H, rows * bq)[..., : sizes.q_len].expand(shape) for x in (count, first, last))  # type: ignore[return-value]


def checked_block_size(block_size: int | tuple[int, int]) -> tuple[int, int]:
    pair = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    if len(pair) != 2 or any(isinstance(s, bool) or not isinstance(s, int) for s in pair):
        raise MaskTypeError(f"block_size={block_size!r}", "neither an int nor a pair of ints", "Pass 128, or (q, kv).")
    if min(pair) < 1:
        raise MaskValueError(f"block_size={block_size!r}", "blocks of no tokens", "Pass 1 or more.")
    return pair


def classify_tiles(
    mask: MaskMod,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    *,
    block_size: int | tuple[int, int] = 128,
    exact: bool | None = None,
    max_opened: int | None = None,
    device: torch.device | str | None = None,
) -> Tiles:
    """A quad-tree of the mask: big tiles that are visible throughout, and the blocks on the boundary.

    The same answer as `classify_blocks` in O(N + boundary) memory and time, for lengths whose block table
    would not fit. Not for use inside a trace: its shapes depend on values.

    Args:
        mask, B, H, block_size, device: see `classify_blocks`.
        exact: True opens the blocks that the analyser leaves open; False may call a block partial that is empty or
            full; None is True as far as `max_opened` allows, and says in `Tiles.exact` how it ended.
        max_opened: tokens that may be evaluated to open blocks; None is any number. `Tiles.opened` says how many were.

    Raises:
        MaskValueError: ``exact=True`` takes more tokens than ``max_opened``.

    >>> from maskmod import causal
    >>> tiles = classify_tiles(causal(), 1, 1, 1024, 1024)
    >>> tiles.visible(), tiles.first_empty_row()
    (524800, None)
    """
    reading, block_size = read(mask, B, H, q_len, kv_len, device=device), checked_block_size(block_size)
    if reading.traced:
        raise MaskTypeError(
            "classify_tiles(...) inside a trace", "its shapes depend on values", "Use classify_blocks there."
        )
    if max_opened is not None and (isinstance(max_opened, bool) or not isinstance(max_opened, int) or max_opened < 0):
        written = f"classify_tiles(max_opened={max_opened!r})"
        raise MaskValueError(written, "not a number of tokens", "Pass zero or more, or None.")
    try:
        return tiles_of(reading, block_size, exact=exact is not False, max_opened=max_opened)
    except _TooMany:
        if exact:
            raise MaskValueError(
                f"classify_tiles({reading.mask!r}, exact=True, max_opened={max_opened})",
                "the analyser leaves more tokens open",
                "Allow more, or pass exact=None for a sound answer; docs/fast_predicates.md says what opens blocks.",
            ) from None
        return tiles_of(reading, block_size, exact=False)


def tiles_of(reading: Reading, block_size: tuple[int, int], *, exact: bool, max_opened: int | None = None) -> Tiles:
    """`classify_tiles` of a mask that was read outside a trace."""
    if reading.is_empty:
        nothing = torch.zeros(0, dtype=torch.long, device=reading.device)
        none = Rectangles(*(nothing,) * 6)
        return Tiles(none, none, True, block_size, reading)
    analysis = reading.analysis(block_size, looks=True)
    full, partial = rectangles(analysis, *descend(analysis, exact, max_opened))
    return Tiles(full, partial, exact, block_size, reading)


def rectangles(
    analysis: Analysis, full: list[tuple[int, TileList]], partial: TileList
) -> tuple[Rectangles, Rectangles]:
    """Tiles of several sizes as rectangles of blocks, cut to the table."""
    rows, columns = analysis.counts
    q = torch.cat([t.q * r for r, t in full]) if full else partial.q[:0]
    kv = torch.cat([t.kv * r for r, t in full]) if full else partial.q[:0]
    b, h = (torch.cat([t[d] for _, t in full]) if full else partial.q[:0] for d in (0, 1))
    size = torch.cat([torch.full_like(t.q, r) for r, t in full]) if full else partial.q[:0]
    whole = Rectangles(b, h, q, kv, torch.minimum(size, rows - q), torch.minimum(size, columns - kv))
    one = torch.ones_like(partial.q)
    return whole, Rectangles(*partial, one, one)
