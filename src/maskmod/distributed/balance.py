"""Give every rank the same attention work: whole blocks by a min-heap over exact row work, the remainder to the token.

The work of a query is how many keys it sees, summed over heads, batch rows and masks. This module asks `row_work` for
that number and knows nothing else of a mask; it knows no process group.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskmod.algebra import Mask, MaskMod, as_mask
from maskmod.distributed.layouts import Layout, ranges
from maskmod.distributed.work import RowWork, row_work
from maskmod.errors import MaskTypeError, MaskValueError

__all__ = ["Balanced", "assign"]

TOLERANCE = 0.001  # of the mean work: what max may exceed it by before blocks are swapped or divided
BITS = 2048  # of an int that stands for all keys: finer ones cost more than they tell
TRIES = 16  # pieces looked at before one is divided
SWAPS = 8  # at most so many a rank, and then divisions: a plan's time stays bounded whatever the mask


class Piece(NamedTuple):
    """The tokens ``start <= idx < stop`` and their work."""

    work: float
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Balanced(Layout):
    """Every rank gets the same work under these masks, and by default as many tokens as any other.

    Blocks of ``block`` tokens go, heaviest first, to the rank with the least work (a min-heap); then ranks swap blocks,
    and at the end parts of blocks, until no rank exceeds the mean by more than a thousandth. The ranks must build it
    from equal masks: it is worked out on each, from row counts alone.

    Args:
        masks: one mask, or those of the layers of one model.
        weights: how many layers use each mask; None is one each.
        block: tokens that stay together, but for those divided at the end; a multiple of the kernel's block keeps its
            blocks whole.
        locality: how many visible pairs the fetching of one key is worth. A block stays with the rank that holds the
            keys it sees where that costs less than an even load would gain. 0 looks at the work alone.
        even: whether every rank holds as many tokens as any other (to within one), as the rest of a model wants; False
            lets a rank with light tokens hold more of them.
        B, H: sizes at which the masks are read; None is 1.

    >>> from maskmod import causal
    >>> [Balanced(causal(), block=2).positions(rank, 2, 8).tolist() for rank in range(2)]
    [[0, 1, 6, 7], [2, 3, 4, 5]]
    """

    def __init__(
        self,
        masks: MaskMod | Sequence[MaskMod],
        weights: Sequence[float] | None = None,
        block: int = 128,
        *,
        locality: float = 1024.0,
        even: bool = True,
        B: int | None = None,
        H: int | None = None,
    ):
        given = [masks] if callable(masks) else list(masks)
        self.masks: tuple[Mask, ...] = tuple(as_mask(mask) for mask in given)
        self.weights = tuple(1.0 for _ in self.masks) if weights is None else tuple(float(w) for w in weights)
        self.block, self.locality, self.even, self.B, self.H = block, locality, even, B, H
        if not self.masks or len(self.weights) != len(self.masks) or any(w < 0 for w in self.weights):
            seen = f"{len(self.masks)} masks and weights {list(self.weights)}"
            raise MaskValueError("Balanced(masks, weights)", seen, "Pass a mask or more, each with a weight.")
        if isinstance(block, bool) or not isinstance(block, int):
            raise MaskTypeError(f"Balanced(block={block!r})", f"a {type(block).__name__}", "Pass a number of tokens.")
        if block < 1 or locality < 0:
            raise MaskValueError(f"Balanced(block={block}, locality={locality})", "too little", "Pass block >= 1.")

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for mask in self.masks for tensor in mask.tensors())

    def _order(self, world: int, length: int) -> tuple[Tensor, tuple[int, ...]]:
        read = [row_work(mask, self.B, self.H, length, length, hulls=self.locality > 0) for mask in self.masks]
        return assign(read, self.weights, world, block=self.block, locality=self.locality, even=self.even)

    def __repr__(self) -> str:
        weights = "" if set(self.weights) == {1.0} else f", {list(self.weights)}"
        masks = repr(self.masks[0]) if len(self.masks) == 1 else repr(list(self.masks))
        return f"Balanced({masks}{weights}, block={self.block})"


def assign(
    read: Sequence[RowWork], weights: Sequence[float], world: int, *, block: int, locality: float, even: bool
) -> tuple[Tensor, tuple[int, ...]]:
    """The order of all tokens, rank after rank, and how many each rank holds."""
    length = read[0].work.shape[0]
    ranks = _Ranks(_Rows([each.work for each in read], weights), world, block, even)
    ranks.deal(_seen(read, weights, block, length) if locality > 0 and world > 1 else None, locality)
    ranks.even_out()
    pieces = [sorted((p.start, p.size) for p in held) for held in ranks.held]
    flat = torch.tensor([pair for held in pieces for pair in held] or [(0, 0)], dtype=torch.long)
    return ranges(flat[:, 0], flat[:, 1]), tuple(sum(size for _, size in held) for held in pieces)


class _Seen(NamedTuple):
    """Which keys each block of queries sees between its first and its last, as bits of an int, `unit` keys a bit."""

    bits: list[int]
    unit: int


def _seen(read: Sequence[RowWork], weights: Sequence[float], block: int, length: int) -> _Seen:
    count = -(-length // block)
    first = torch.full((count,), length, dtype=torch.long)
    last = torch.full((count,), -1, dtype=torch.long)
    for each, weight in zip(read, weights, strict=True):
        if weight and each.first is not None and each.last is not None:
            first = torch.minimum(first, _by_block(each.first, block, length, count, "amin"))
            last = torch.maximum(last, _by_block(each.last, block, length, count, "amax"))
    unit = block * -(-count // BITS)
    some = last >= first
    ends = zip((first // unit * some).tolist(), ((last // unit + 1) * some).tolist(), strict=True)
    return _Seen([(1 << b) - (1 << a) for a, b in ends], unit)


def _by_block(rows: Tensor, block: int, length: int, count: int, how: str) -> Tensor:
    if length % block:
        fill = length if how == "amin" else -1
        rows = torch.nn.functional.pad(rows, (0, count * block - length), value=fill)
    return getattr(rows.view(count, block), how)(1)


class _Rows:
    """The work of the queries under several weighted masks."""

    def __init__(self, works: Sequence[Tensor], weights: Sequence[float]):
        self.works, self.weights, self.length = works, weights, works[0].shape[0]

    def blocks(self, block: int) -> list[float]:
        """The work of each block of queries."""
        total = 0.0
        for work, weight in zip(self.works, self.weights, strict=True):
            whole = self.length // block * block
            sums = torch.cat([work[:whole].view(-1, block).sum(1), work[whole:].sum().view(-1)])
            total = total + sums.double() * weight
        return total[: -(-self.length // block)].tolist()  # pyright: ignore[reportIndexIssue]

    def within(self, start: int, stop: int) -> Tensor:
        """The work of each of these queries, float64."""
        parts = (work[start:stop].double() * weight for work, weight in zip(self.works, self.weights, strict=True))
        return torch.stack(list(parts)).sum(0)


class _Ranks:
    """Which pieces each rank holds, and their work."""

    def __init__(self, rows: _Rows, world: int, block: int, even: bool):
        self.rows, self.world, self.block, self.even = rows, world, block, even
        self.length, self.blocks = rows.length, rows.blocks(block)
        self.loads = [0.0] * world
        self.held: list[list[Piece]] = [[] for _ in range(world)]  # by work, lightest first
        self.mean = sum(self.blocks) / world

    def deal(self, seen: _Seen | None, locality: float) -> None:
        """Blocks, heaviest first, each to the rank with the least work that has room for it."""
        works = self.blocks
        heaviest = sorted(range(len(works)), key=works.__getitem__, reverse=True)
        share, more = divmod(self.length, self.world)
        room = [share + (rank < more) if self.even else self.length for rank in range(self.world)]
        heap = [(0.0, rank) for rank in range(self.world)]
        fetched = [0] * self.world  # the keys that a rank holds or will have fetched, as bits
        owner = [-1] * (len(works) + 1)
        fetch = locality * seen.unit if seen is not None else 0.0
        left, block, limit = [], self.block, self.mean * (1 + TOLERANCE)
        loads, held = self.loads, self.held
        for number in heaviest:
            start, work = number * block, works[number]
            stop = min(start + block, self.length)
            while heap and (heap[0][0] != loads[heap[0][1]] or room[heap[0][1]] < block):
                rank = heapq.heappop(heap)[1]
                if room[rank] >= block:
                    heapq.heappush(heap, (loads[rank], rank))
            if not heap or stop - start < block:
                left.append(Piece(work, start, stop))
                continue
            rank = heap[0][1]
            if seen is not None:
                keys, near, others = seen.bits[number], fetched[rank], {owner[number - 1], owner[number + 1]}
                others.discard(rank)
                cost = None
                for other in others:
                    if other >= 0 and room[other] >= block and loads[other] + work <= limit:
                        if cost is None:
                            cost = loads[rank] + fetch * ((near | keys).bit_count() - near.bit_count())
                        there = loads[other]
                        if there < cost:
                            have = fetched[other]
                            there += fetch * ((have | keys).bit_count() - have.bit_count())
                            if there < cost:
                                rank, cost = other, there
                fetched[rank] |= keys | 1 << start // seen.unit
                owner[number] = rank
            held[rank].append(Piece(work, start, stop))
            loads[rank] += work
            room[rank] -= block
            if rank == heap[0][1]:
                heapq.heapreplace(heap, (loads[rank], rank))
        for pieces in held:
            pieces.reverse()
        self._fill(left, room)

    def _fill(self, left: list[Piece], room: list[int]) -> None:
        """Blocks that fit nowhere whole, cut to what each rank still has room for: heavy ones to light ranks."""
        if not self.even:
            for piece in left:
                self._put(min(range(self.world), key=self.loads.__getitem__), piece)
            return
        open_ranks = sorted((rank for rank in range(self.world) if room[rank]), key=self.loads.__getitem__)
        rest = [(piece.start, piece.stop) for piece in sorted(left, key=lambda p: p.work / p.size)]
        for rank in open_ranks:
            while room[rank]:
                start, stop = rest.pop()
                cut = min(stop - start, room[rank])
                self._put(rank, self._piece(stop - cut, stop))
                room[rank] -= cut
                if cut < stop - start:
                    rest.append((start, stop - cut))

    def even_out(self) -> None:
        """Swap blocks of the heaviest and the lightest rank, at last parts of blocks, until all are near the mean."""
        goal = self.mean * (1 + TOLERANCE)
        for turn in range(2 * SWAPS * self.world):
            heavy = max(range(self.world), key=self.loads.__getitem__)
            if self.loads[heavy] <= goal or self.mean == 0:
                return
            light = min(range(self.world), key=self.loads.__getitem__)
            wanted = (self.loads[heavy] - self.loads[light]) / 2
            whole = turn < SWAPS * self.world and self._swap(heavy, light, wanted)
            if not whole and not self._divide(heavy, light, min(self.loads[heavy] - self.mean, wanted * 2)):
                return

    def _swap(self, heavy: int, light: int, wanted: float) -> bool:
        """Exchange the two whole blocks whose difference is nearest to `wanted`, if it brings one rank to the mean."""
        out, back = self._whole(heavy), self._whole(light)
        best, at, k = abs(wanted), None, 0
        for i, piece in enumerate(out):  # both in ascending order of work
            while k < len(back) and piece.work - back[k].work > wanted:
                k += 1
            for other in back[max(k - 1, 0) : k + 1]:
                off = abs(piece.work - other.work - wanted)
                if off < best:
                    best, at = off, (i, other)
        if at is None or best > max(wanted - (self.loads[heavy] - self.mean * (1 + TOLERANCE)), 0.0) + wanted / 2:
            return False
        piece, other = out[at[0]], at[1]
        self._move(heavy, light, piece)
        self._move(light, heavy, other)
        return True

    def _divide(self, heavy: int, light: int, wanted: float) -> bool:
        """Move the last tokens of a piece, for as many light ones where ranks stay even, that make up `wanted`."""
        back = None
        if self.even:
            if not self.held[light]:
                return False
            back = min(self.held[light], key=lambda p: p.work / p.size)
        most = self.loads[heavy] - self.loads[light]
        best: tuple[float, Piece, int] | None = None
        for out in sorted(self.held[heavy], key=lambda p: -p.work / p.size)[:TRIES]:
            gain = _sums(self.rows.within(out.start, out.stop).flip(0))  # gain[t]: the work of the last t tokens
            if back is not None:
                gain = gain[: back.size + 1]
                gain = gain - _sums(self.rows.within(back.start, back.start + gain.shape[0] - 1))
            off = (gain - wanted).abs().masked_fill((gain <= 0) | (gain >= most), torch.inf)
            tokens = int(off.argmin())
            if float(off[tokens]) < (torch.inf if best is None else best[0]):
                best = (float(off[tokens]), out, tokens)
                if best[0] <= wanted / 4:
                    break
        if best is None:
            return False
        _, out, tokens = best
        self._move(heavy, light, out, self._piece(out.stop - tokens, out.stop))
        if back is not None:
            self._move(light, heavy, back, self._piece(back.start, back.start + tokens))
        return True

    def _whole(self, rank: int) -> list[Piece]:
        return [piece for piece in self.held[rank] if piece.size == self.block]

    def _move(self, source: int, target: int, piece: Piece, part: Piece | None = None) -> None:
        part = part or piece
        self.held[source].remove(piece)
        self.loads[source] -= piece.work
        for start, stop in ((piece.start, part.start), (part.stop, piece.stop)):
            if stop > start:
                self._put(source, self._piece(start, stop))
        self._put(target, part)

    def _put(self, rank: int, piece: Piece) -> None:
        insort(self.held[rank], piece)
        self.loads[rank] += piece.work

    def _piece(self, start: int, stop: int) -> Piece:
        return Piece(float(self.rows.within(start, stop).sum()), start, stop)


def _sums(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.cumsum(0)])
