"""Frames: over which rectangles of indices a question is asked, and the per-block summaries it is answered from.

`Blocks` reduces the one-axis values of an expression to one entry per block, once per value, guard and block size;
coarser tiles are reduced from the finest ones. `Grid` asks about all blocks at once (static shapes, traceable);
`Selection` about a list of them, of any multiple of the block size. Both present the summaries so that a queries' entry
and a keys' entry broadcast against each other.

Nothing here knows what a mask is; the arrays carry (B|1, H|1, n_q|1, n_kv|1) and then the value's own shape.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskmod.analyser.expression import LANES, NEITHER, Node, Q, Tape

__all__ = ["Blocks", "Grid", "Guard", "Selection"]

Guard = tuple[tuple[Node, bool], ...]  # facts of one axis; a token counts where all of them hold


def _fold(x: Tensor, dim: int, size: int, reduce: Callable, traced: bool) -> Tensor:
    """Reduce blocks of `size` along `dim`; the last one may be short. `reduce` is idempotent and takes (x, dim)."""
    n = x.shape[dim]
    if traced:  # repeat the last entry: harmless to an idempotent reduction, and no question about n
        count = -(-n // size)
        index = torch.arange(count * size, device=x.device).clamp(max=n - 1)
        return reduce(x.index_select(dim, index).unflatten(dim, (count, size)), dim + 1)
    count, tail = divmod(n, size)
    if not tail:
        return reduce(x.unflatten(dim, (count, size)), dim + 1)
    last = reduce(x.narrow(dim, count * size, tail).unsqueeze(dim), dim + 1)
    if not count:
        return last
    return torch.cat([reduce(x.narrow(dim, 0, count * size).unflatten(dim, (count, size)), dim + 1), last], dim)


def _union(x: Tensor, dim: int) -> Tensor:
    """Bitwise OR along `dim`, by halves."""
    n = x.shape[dim]
    while n > 1:
        half = n // 2
        folded = x.narrow(dim, 0, half) | x.narrow(dim, half, half)
        if n % 2:
            folded = torch.cat([folded, x.narrow(dim, n - 1, 1)], dim)
        x, n = folded, half + n % 2
    return x.squeeze(dim)


def _dim(axes: int) -> int | None:
    return None if axes == NEITHER else 2 if axes == Q else 3


def _as_integers(x: Tensor) -> Tensor:
    return x.to(torch.int8) if x.dtype == torch.bool else x


def _smallest(x: Tensor, dim: int) -> Tensor:
    return x.amin(dim)


def _largest(x: Tensor, dim: int) -> Tensor:
    return x.amax(dim)


def _holds(x: Tensor, dim: int) -> Tensor:
    return x.any(dim)


class Blocks:
    """Per-block summaries of one-axis nodes, for blocks of `size` = (queries, keys).

    `looks` says whether Python may look at values, which saves work; never in a trace, nor in a server's step.
    """

    def __init__(self, tape: Tape, size: tuple[int, int], *, looks: bool):
        self.tape, self.size, self.looks = tape, size, looks
        self.counts = tuple(-(-n // s) for n, s in zip(tape.lengths[2:], size, strict=True))
        self._done: dict[tuple, Tensor] = {}
        self._sorted: dict[int, bool] = {}
        self.ordered: dict = {}  # what `may` derives from an order beside an equality, once for all frames

    def _cached(self, kind: str, node: Node, guard: Guard, ratio: int, base: Callable, reduce: Callable) -> Tensor:
        """The summary over blocks; over tiles of `ratio` blocks, reduced from it."""
        key = (kind, node.number, tuple((n.number, sign) for n, sign in guard), ratio)
        if key not in self._done:
            dim = _dim(node.axes)
            if ratio == 1 or dim is None:
                self._done[key] = base()
            else:
                fine = self._cached(kind, node, guard, 1, base, reduce)
                self._done[key] = _fold(fine, dim, ratio, reduce, self.tape.traced)
        return self._done[key]

    def guarded(self, guard: Guard) -> Tensor | None:
        """Where all facts of the guard hold, token by token."""
        held = None
        for node, sign in guard:
            value = node.value if sign else ~node.value
            held = value if held is None else held & value
        return held

    def _extreme(self, node: Node, guard: Guard, ratio: int, largest: bool) -> Tensor:
        dim, size = _dim(node.axes), self.size[0 if node.axes == Q else 1]
        if dim is None:
            x = _as_integers(node.value)
            return x if x.dtype.is_floating_point else x.long()
        reduce = _largest if largest else _smallest

        def base() -> Tensor:
            if node.is_position and not guard:
                count, n = self.counts[dim - 2], self.tape.lengths[dim]
                shape = [1] * LANES
                shape[dim] = count
                first = torch.arange(count, device=self.tape.device) * size
                return ((first + (size - 1)).clamp(max=n - 1) if largest else first).view(shape)
            x = _as_integers(node.value)
            held = self.guarded(guard)
            if held is not None:
                if x.dtype.is_floating_point:
                    nothing = -torch.inf if largest else torch.inf
                else:
                    info = torch.iinfo(x.dtype)
                    nothing = info.min if largest else info.max
                x = torch.where(held.reshape(held.shape + (1,) * len(node.shape)), x, nothing)
            x = _fold(x, dim, size, reduce, self.tape.traced)
            return x if x.dtype.is_floating_point else x.long()

        return self._cached("hi" if largest else "lo", node, guard, ratio, base, reduce)

    def lo(self, node: Node, guard: Guard, ratio: int) -> Tensor:
        """The smallest value in each block among tokens of the guard; the largest of its dtype if there are none."""
        return self._extreme(node, guard, ratio, False)

    def hi(self, node: Node, guard: Guard, ratio: int) -> Tensor:
        return self._extreme(node, guard, ratio, True)

    def any(self, node: Node, sign: bool, guard: Guard, ratio: int) -> Tensor:
        """Whether the fact holds at some token of each block where the guard holds too."""
        dim = _dim(node.axes)
        if dim is None:
            return node.value if sign else ~node.value

        def base() -> Tensor:
            held = node.value if sign else ~node.value
            allowed = self.guarded(guard)
            if allowed is not None:
                held = held & allowed.reshape(allowed.shape + (1,) * len(node.shape))
            return _fold(held, dim, self.size[dim - 2], _holds, self.tape.traced)

        return self._cached("any" if sign else "any not", node, guard, ratio, base, _holds)

    def signature(self, node: Node, guard: Guard, ratio: int) -> Tensor:
        """A 64-bit set of the hashes of the values in each block: disjoint sets mean that no value is shared."""

        def base() -> Tensor:
            x = node.value.long()
            # Ids near each other must not collide, so the low bits stay; higher bits are folded in for sparse ids.
            hashed = (x + 7 * (x >> 6) + 11 * (x >> 13) + 13 * (x >> 27)) & 63
            bits = torch.bitwise_left_shift(torch.ones_like(x), hashed)
            held = self.guarded(guard)
            if held is not None:
                bits = torch.where(held.reshape(held.shape + (1,) * len(node.shape)), bits, 0)
            dim = 2 if node.axes == Q else 3
            return _fold(bits, dim, self.size[dim - 2], _union, self.tape.traced)

        return self._cached("signature", node, guard, ratio, base, _union)

    def sorted(self, node: Node) -> bool:
        """Whether the values are seen never to decrease: intervals of sorted ids need no hashes."""
        if not self.looks:
            return False
        if node.number not in self._sorted:
            dim, x = 2 if node.axes == Q else 3, node.value
            n = x.shape[dim]
            self._sorted[node.number] = bool((x.narrow(dim, 1, n - 1) >= x.narrow(dim, 0, n - 1)).all())
        return self._sorted[node.number]


class Grid:
    """All blocks: summaries broadcast to (B|1, H|1, n_q, n_kv)."""

    lanes, ratio = LANES, 1

    def __init__(self, blocks: Blocks):
        self.blocks = blocks
        B, H = blocks.tape.lengths[:2]
        self.shape = (B, H, *blocks.counts)

    def spread(self, summary: Tensor) -> Tensor:
        return summary

    def lane(self, which: int) -> Tensor:
        return self.blocks.tape.positions(which)


class Selection:
    """A list of tiles of `ratio` x `ratio` blocks: summaries are picked to (number of tiles,)."""

    lanes = 1

    def __init__(self, blocks: Blocks, ratio: int, b: Tensor, h: Tensor, q: Tensor, kv: Tensor):
        self.blocks, self.ratio = blocks, ratio
        self.index = (b, h, q, kv)
        self.shape = tuple(q.shape)

    def spread(self, summary: Tensor) -> Tensor:
        lanes = summary.shape[:LANES]
        long = [d for d in range(LANES) if lanes[d] > 1]
        if not long:
            return summary.reshape((1, *summary.shape[LANES:]))
        if len(long) == 1:
            flat = summary.reshape((lanes[long[0]], *summary.shape[LANES:]))
            return flat.index_select(0, self.index[long[0]])
        return summary[tuple(self.index[d] if lanes[d] > 1 else 0 for d in range(LANES))]

    def lane(self, which: int) -> Tensor:
        return self.index[which]
